//! Flipped bits in the files of a closed state: each is noticed, or takes the newest writes at most, as a crash does.

use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::*;

/// Flips of one file, spread over it.
const FLIPS: u64 = 40;

const WRITES: u32 = 80;

/// Makes a state with content in tables, blobs and journals, and closes it.
fn fill(dir: &TempDir) {
    let fill = |from: u32, upto: u32| {
        let data = open(dir).unwrap();
        (from..upto).for_each(|number| apply_one(&data, number));
        data.sync().unwrap();
    };
    fill(0, 40);
    flush(dir, "kv");
    fill(40, 60);
    flush(dir, "meta");
    fill(60, WRITES);
}

fn apply_one(data: &Data, number: u32) {
    let text = format!("\"{}\"", "x".repeat(if number.is_multiple_of(3) { 6_000 } else { 300 }));
    let write = named(&format!("n/{number}"), put_one(&format!("k/{number:03}"), &text));
    let applied = [("applied", Bytes::from(number.to_string())), ("membership", Bytes::from("m"))];
    data.apply(&[write], &applied).unwrap();
}

/// The content of the state after each write.
fn contents() -> Vec<Vec<Bytes>> {
    let data = simulated::open(&SimDisk::new(1), 1 << 20).unwrap();
    let after = (0..WRITES).map(|number| {
        apply_one(&data, number);
        data.snapshot().into_chunks().collect::<Result<_, _>>().unwrap()
    });
    after.collect()
}

/// Writes a table from memory to a file, and closes the state.
fn flush(dir: &TempDir, table: &str) {
    let db = fjall::Database::builder(dir.path().join("data")).open().unwrap();
    let table = db.keyspace(table, fjall::KeyspaceCreateOptions::default).unwrap();
    table.rotate_memtable_and_wait().unwrap();
}

/// Everything a state holds.
fn content(dir: &Path) -> Result<Vec<Bytes>, Error> {
    let open = || Data::open(&dir.join("data"), 8 << 20);
    let data = open()?;
    let read = data.snapshot().into_chunks().collect::<Result<_, _>>();
    drop(data);
    if read.is_err() {
        // What a read has met is not forgotten.
        assert!(matches!(open(), Err(Error::Corrupt(_))));
    }
    read
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
    found.sort();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target)
        } else {
            // An open database may remove a file meanwhile.
            let copied = std::fs::copy(&path, &target);
            assert!(copied.as_ref().map_or_else(|error| error.kind() == ErrorKind::NotFound, |_| true), "{copied:?}");
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_is_noticed_or_leaves_the_state_of_some_moment() {
    let original = tempfile::tempdir().unwrap();
    fill(&original);
    let moments = contents();
    assert_eq!(content(original.path()).unwrap(), moments[WRITES as usize - 1]);
    let mut paths = Vec::new();
    files(original.path(), &mut paths);
    let mut missed = Vec::new();
    let mut random = fastrand::Rng::with_seed(1);
    for path in paths {
        let name = path.strip_prefix(original.path()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1) as u64;
        for number in 0..FLIPS.min(end) {
            let at = (end * number / FLIPS.min(end)) as usize + random.usize(0..(end / FLIPS.min(end)) as usize);
            let changed = tempfile::tempdir().unwrap();
            copy(original.path(), changed.path());
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << random.u32(0..8);
            std::fs::write(changed.path().join(name), &flipped[..end as usize]).unwrap();
            match std::panic::catch_unwind(|| content(changed.path())) {
                Ok(Ok(found)) if !moments.contains(&found) => {
                    missed.push(format!("{}: byte {at} of {end}", name.display()))
                }
                Ok(Err(error)) if !matches!(error, Error::Corrupt(_)) => {
                    missed.push(format!("{}: byte {at} of {end}: {error:?}", name.display()));
                }
                Err(_) => missed.push(format!("{}: byte {at} of {end}: panic", name.display())),
                _ => {}
            }
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// Flips bits in the tables of a state, while it is open or not.
fn flip_bits_in_tables(dir: &TempDir) {
    let mut paths = Vec::new();
    files(&dir.path().join("data/keyspaces"), &mut paths);
    paths.retain(|path| path.parent().unwrap().ends_with("tables"));
    assert!(!paths.is_empty());
    for path in paths {
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        // The indices at the end were read when the file was opened.
        for at in (0..bytes.len() / 2).step_by(997) {
            file.write_all_at(&[bytes[at] ^ 4], at as u64).unwrap();
        }
    }
}

/// Looks for a file at the moment at which the failure of a state becomes known.
struct Learns {
    suspicion: PathBuf,
    was_remembered: Mutex<Option<bool>>,
}

impl Wake for Learns {
    fn wake(self: Arc<Self>) {
        self.was_remembered.lock().get_or_insert(self.suspicion.exists());
    }
}

/// Waits until `fails` meets the damage of a state, and checks that it is remembered then: as soon as it is known, the process ends.
fn is_met_and_remembered(dir: &TempDir, data: &Data, mut fails: impl FnMut() -> bool) {
    let learns = Arc::new(Learns { suspicion: dir.path().join("data.suspect"), was_remembered: Mutex::default() });
    let waker = Waker::from(learns.clone());
    let mut poisoned = pin!(data.poison().poisoned());
    assert!(poisoned.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let began = Instant::now();
    while !fails() {
        assert!(began.elapsed() < Duration::from_secs(60), "the damage was not met");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(*learns.was_remembered.lock(), Some(true));
    assert!(matches!(data.sync(), Err(Error::Poisoned(_))));
    // As after the end of the process: a write may wait for the engine for ever.
    let after = tempfile::tempdir().unwrap();
    copy(dir.path(), after.path());
    assert!(matches!(open(&after), Err(Error::Corrupt(_))));
}

#[test]
fn damage_that_a_read_meets_is_remembered() {
    let (dir, data) = data();
    (0..WRITES).for_each(|number| apply_one(&data, number));
    drop(data);
    flush(&dir, "kv");
    let data = open(&dir).unwrap();
    flip_bits_in_tables(&dir);
    is_met_and_remembered(&dir, &data, || data.scan(&RangeQuery::default()).is_err());
}

/// Writes as much to the registry's table as the engine holds of it in memory.
fn fill_table(data: &Data, round: u32) -> Result<(), Error> {
    let value = Value::json(format!("\"{}\"", "x".repeat(2_500)));
    let operation =
        |key| Operation { space: Space::System, key: format!("{key:04}/{round}"), action: Action::Put(value.clone()) };
    data.apply(&[write((0..1_900).map(operation).collect(), vec![])], &[])?;
    data.sync()
}

#[test]
fn damage_that_a_compaction_of_the_engine_meets_is_remembered() {
    let (dir, data) = data();
    (0..2).for_each(|round| fill_table(&data, round).unwrap());
    replacement::eventually("tables are flushed", || {
        let mut paths = Vec::new();
        files(&dir.path().join("data/keyspaces"), &mut paths);
        paths.iter().any(|path| path.parent().unwrap().ends_with("tables"))
    });
    flip_bits_in_tables(&dir);
    let writer = data.clone();
    std::thread::spawn(move || (2..200).try_for_each(|round| fill_table(&writer, round)));
    is_met_and_remembered(&dir, &data, || data.check().is_err());
}

#[test]
fn damage_that_a_compaction_after_deletions_meets_is_remembered() {
    let (dir, data) = data();
    let in_one = |operation: fn(&str) -> Operation| {
        write((0..4_000).map(|key| operation(&format!("{key:04}"))).collect(), vec![])
    };
    apply(&data, &[in_one(|key| put(key, "1"))]);
    drop(data);
    flush(&dir, "kv");
    let data = open(&dir).unwrap();
    apply(&data, &[in_one(delete)]);
    flip_bits_in_tables(&dir);
    is_met_and_remembered(&dir, &data, || data.check().is_err());
}

#[test]
fn an_examination_reads_every_row_in_parts() {
    let (_dir, data) = data();
    (0..WRITES).for_each(|number| apply_one(&data, number));
    let (mut position, mut parts) = (Some(Position::default()), 0);
    while let Some(from) = position {
        position = data.examine(from, 1_000).unwrap();
        parts += 1;
    }
    assert!(parts > WRITES / 3, "{parts}");
}
