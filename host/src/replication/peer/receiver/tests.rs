//! Tests of snapshots that arrive.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use super::*;
use crate::replication::peer::snapshot::Outgoing;
use crate::replication::types::{SnapshotMeta, Vote};
use crate::storage::Data;

/// A snapshot of a state with these values.
fn outgoing(dir: &Path, values: &[(&'static str, usize)]) -> Outgoing {
    let data = Data::open(dir, 1024 * 1024).unwrap();
    for (key, bytes) in values {
        data.apply(&[], &[(key, vec![7; *bytes].into())]).unwrap();
    }
    Outgoing::new(Vote::new(1, 1), SnapshotMeta::default(), SnapshotSource::Live(data.snapshot()))
}

const FEW_CHUNKS: [(&str, usize); 4] = [("a", 300_000), ("b", 300_000), ("c", 300_000), ("d", 300_000)];

/// The stream from byte `offset` on, broken after `cut` pieces.
async fn stream(outgoing: &Outgoing, offset: u64, cut: usize) -> Vec<io::Result<Bytes>> {
    let body = outgoing.body(offset, u64::MAX, &Blocking::Threads).unwrap();
    let mut all: Vec<io::Result<Bytes>> = body.collect().await;
    if cut < all.len() {
        all.truncate(cut);
        all.push(Err(io::Error::other("cut")));
    }
    all
}

fn receiver(dir: &Path, reserve_bytes: u64) -> Receiver {
    let free_space = FreeSpace::new(dir, reserve_bytes);
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    Receiver::new(dir.to_path_buf(), free_space, Blocking::Threads, tasks, stop)
}

async fn receive(receiver: &Receiver, stream: Vec<io::Result<Bytes>>) -> Result<Vec<Bytes>, Error> {
    let whole = Arc::new(Mutex::new(Vec::new()));
    let installed = whole.clone();
    let install = async move |_, source: SnapshotSource| {
        *installed.lock() = source.chunks().unwrap().map(Result::unwrap).collect();
        Ok(Bytes::new())
    };
    receiver.receive(futures::stream::iter(stream), |_| Ok(()), install).await?;
    Ok(std::mem::take(&mut *whole.lock()))
}

fn chunks(outgoing: &Outgoing) -> Vec<Bytes> {
    outgoing.source.chunks().unwrap().map(Result::unwrap).collect()
}

fn files(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

#[tokio::test]
async fn a_snapshot_goes_on_where_it_broke_off() {
    let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outgoing = outgoing(sender.path(), &FEW_CHUNKS);
    for half_a_frame in [0, 10] {
        let receiver = receiver(spool.path(), 0);
        let cut = stream(&outgoing, 0, 4).await;
        let sent: usize = cut.iter().skip(1).flatten().map(Bytes::len).sum();
        assert!(receive(&receiver, cut).await.is_err());
        let held = receiver.held(outgoing.id).await.unwrap();
        assert_eq!(held, sent as u64);

        let rest = stream(&outgoing, held - half_a_frame, usize::MAX).await;
        assert_eq!(receive(&receiver, rest).await.unwrap(), chunks(&outgoing));
        assert_eq!(files(spool.path()), 0);
    }
}

#[tokio::test]
async fn a_row_of_any_size_fits_into_a_snapshot() {
    let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outgoing = outgoing(sender.path(), &[("small", 1), ("large", 80 * 1024 * 1024)]);
    let whole = stream(&outgoing, 0, usize::MAX).await;
    assert!(receive(&receiver(spool.path(), 0), whole).await.unwrap() == chunks(&outgoing));
}

#[tokio::test]
async fn a_snapshot_with_a_gap_or_damage_is_refused_and_forgotten() {
    let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outgoing = outgoing(sender.path(), &FEW_CHUNKS);
    let receiver = receiver(spool.path(), 0);
    let late = stream(&outgoing, 100, usize::MAX).await;
    assert!(receive(&receiver, late).await.is_err());

    let mut damaged = stream(&outgoing, 0, usize::MAX).await;
    damaged[2] = Ok(Bytes::from(vec![0; damaged[2].as_ref().unwrap().len()]));
    assert!(receive(&receiver, damaged).await.is_err());
    assert_eq!(files(spool.path()), 0);
}

#[tokio::test]
async fn an_installation_goes_on_without_its_stream_and_happens_once() {
    let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outgoing = outgoing(sender.path(), &FEW_CHUNKS);
    let receiver = receiver(spool.path(), 0);
    let (installations, may_end) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let install = {
        let (installations, may_end) = (installations.clone(), may_end.clone());
        move |_, _| async move {
            installations.fetch_add(1, Ordering::Relaxed);
            drop(may_end.acquire().await);
            Ok(Bytes::from_static(b"done"))
        }
    };
    let whole = stream(&outgoing, 0, usize::MAX).await;
    let bytes: usize = whole.iter().skip(1).flatten().map(Bytes::len).sum();
    let first = receiver.receive(futures::stream::iter(whole), |_| Ok(()), install.clone());
    assert!(tokio::time::timeout(Duration::from_millis(300), first).await.is_err(), "the stream breaks");

    // The sender learns that everything is there, and the rest of the stream is empty.
    assert_eq!(receiver.held(outgoing.id).await.unwrap(), bytes as u64);
    let rest = stream(&outgoing, bytes as u64, usize::MAX).await;
    assert_eq!(rest.len(), 1);
    let again = receiver.receive(futures::stream::iter(rest), |_| Ok(()), install.clone());
    may_end.add_permits(1);
    assert_eq!(again.await.unwrap(), "done");
    assert_eq!(files(spool.path()), 0);

    // The answer may be lost too.
    let rest = stream(&outgoing, receiver.held(outgoing.id).await.unwrap(), usize::MAX).await;
    assert_eq!(receiver.receive(futures::stream::iter(rest), |_| Ok(()), install).await.unwrap(), "done");
    assert_eq!(installations.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_snapshot_that_holds_another_state_than_it_says_is_not_installed() {
    let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let last_log_id = Some(openraft::LogId::new(Vote::new(1, 1).leader_id, 7));
    let mut outgoing = outgoing(sender.path(), &FEW_CHUNKS);
    outgoing.meta = SnapshotMeta { last_log_id, ..SnapshotMeta::default() };
    let receiver = receiver(spool.path(), 0);
    let refused = receive(&receiver, stream(&outgoing, 0, usize::MAX).await).await.unwrap_err();
    assert!(refused.to_string().contains("another state"), "{refused}");
    assert_eq!(files(spool.path()), 0);
}

#[tokio::test]
async fn a_snapshot_whose_header_is_refused_takes_no_space() {
    let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outgoing = outgoing(sender.path(), &FEW_CHUNKS);
    let receiver = receiver(spool.path(), 0);
    let whole = futures::stream::iter(stream(&outgoing, 0, usize::MAX).await);
    let check = |_: &Header| Err(Error::Refused("no".to_owned()));
    let refused = receiver.receive(whole, check, async |_, _| Ok(Bytes::new())).await.unwrap_err();
    assert_eq!((refused.to_string().as_str(), files(spool.path())), ("no", 0));
}

#[tokio::test]
async fn however_many_snapshots_arrive_they_take_the_space_of_one() {
    let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let receiver = Arc::new(receiver(spool.path(), 0));
    let mut outgoing = outgoing(sender.path(), &FEW_CHUNKS);
    let mut stuck = Vec::new();
    for id in 0..20 {
        outgoing.id = id;
        // None of them ends.
        let body = futures::stream::iter(stream(&outgoing, 0, usize::MAX).await).chain(futures::stream::pending());
        let receiver = receiver.clone();
        stuck
            .push(tokio::spawn(async move { receiver.receive(body, |_| Ok(()), async |_, _| Ok(Bytes::new())).await }));
    }
    let last = stuck.pop().unwrap();
    for displaced in stuck {
        assert!(displaced.await.unwrap().unwrap_err().to_string().contains("another snapshot"));
    }
    assert!(!last.is_finished());
    // The one that arrives, and one that may be continued.
    assert!(files(spool.path()) <= 2, "{} files", files(spool.path()));
    last.abort();
    assert!(last.await.is_err());

    let whole = stream(&outgoing, 0, usize::MAX).await;
    assert_eq!(receive(&receiver, whole).await.unwrap(), chunks(&outgoing));
}

#[tokio::test]
async fn a_snapshot_that_does_not_fit_is_given_up_and_leaves_nothing() {
    // A file system that no build writes to.
    let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
    let outgoing = outgoing(sender.path(), &[("a", 4 << 20), ("b", 4 << 20), ("c", 4 << 20), ("d", 4 << 20)]);
    let all = FreeSpace::new(spool.path(), 0);
    all.measure();
    // The snapshot alone would fit.
    let receiver = receiver(spool.path(), all.spare_bytes() - (24 << 20));
    let refused = receive(&receiver, stream(&outgoing, 0, usize::MAX).await).await.unwrap_err();
    assert!(refused.to_string().contains("above its reserve"), "{refused}");
    assert_eq!(files(spool.path()), 0);
    assert!(receiver.free_space.disk_full().is_none());

    // The next one is refused before it arrives.
    let header = stream(&outgoing, 0, 1).await.into_iter().next();
    let stuck = futures::stream::iter(header).chain(futures::stream::pending());
    let install = async |_, _| Ok(Bytes::new());
    let refused = tokio::time::timeout(Duration::from_secs(5), receiver.receive(stuck, |_| Ok(()), install)).await;
    assert!(refused.unwrap().is_err());
    assert_eq!(files(spool.path()), 0);
}

#[tokio::test]
async fn a_full_disk_takes_no_snapshot() {
    let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outgoing = outgoing(sender.path(), &FEW_CHUNKS);
    let receiver = receiver(spool.path(), u64::MAX / 2);
    let refused = receive(&receiver, stream(&outgoing, 0, usize::MAX).await).await;
    assert!(matches!(refused, Err(Error::DiskFull(_))), "{refused:?}");
    assert_eq!(files(spool.path()), 0);
}
