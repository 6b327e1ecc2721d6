//! openraft's state machine on the `data/` database.
//!
//! Committed entries are applied in chunks: one storage batch carries the writes of all entries that are ready, and the
//! position of the last one. A small chunk whose keys were written recently is applied in memory, where it arrives; any other on a
//! blocking thread. `data/` is not fsynced per chunk, since the log restores it after a crash. It is fsynced
//! before a snapshot is reported, because the log may be purged up to a snapshot.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::{io, sync::Arc, time::Duration, time::Instant};

use futures::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::log_store::stored;
use crate::clock;
use crate::replication::types::{
    LogEntry, LogId, SnapshotMeta, StoredMembership, TypeConfig, decode_stored, encode, traces_of,
};
use crate::replication::{blocking::Blocking, error::Error, peer::snapshot::SnapshotSource};
use crate::storage::{self, Data, FeatureLevel, GuardedWrite};
use crate::telemetry::{Stage, Telemetry, names};

/// Key of the log id of the last applied entry.
pub(crate) const APPLIED: &str = "applied";
/// Key of the last applied membership.
pub(super) const MEMBERSHIP: &str = "membership";
/// Key that is present once a snapshot was built or installed: from then on the log may begin after the first entry.
const SNAPSHOT_TAKEN: &str = "snapshot-taken";

/// Key of the cluster's feature level; absent at the first.
pub(super) const LEVEL: &str = "feature-level";
/// Key of the time of the newest stamped round, as Unix time in milliseconds.
pub(super) const TIME: &str = "time";

/// Pause before a snapshot is installed again for which the disk had no space.
const INSTALL_RETRY: Duration = Duration::from_secs(10);

/// Most writes that are applied on an async thread, and most bytes of their commands. They take it half a millisecond.
const IN_PLACE_WRITES_MAX: usize = 128;
const IN_PLACE_BYTES_MAX: usize = 64 * 1024;

/// Interval at which writes that cannot be applied are reported.
const UNUSABLE_REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// Entries applied in one storage batch.
const APPLY_ENTRIES_MAX: usize = 256;

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotSource>;

/// How far this node has applied the log: the index of the last entry, as a value to wait for, and what the entries up to it say
/// about the cluster.
pub(crate) struct Applied {
    index: watch::Sender<u64>,
    /// The cluster's feature level.
    level: AtomicU32,
    /// The time of the newest stamped round; 0 before the first.
    time_ms: AtomicU64,
    /// Wakes readers that wait for an index.
    ///
    /// IMPORTANT: readers do not wait on `index`: tokio's watch channel wakes its receivers in random order, and a
    /// simulation must take the same course each time. `Notify` wakes them in the order in which they began to wait.
    advanced: Notify,
    /// When writes that cannot be applied were reported the last time.
    unusable_reported: Mutex<Option<Instant>>,
}

impl Applied {
    /// What a stored state shows; index 0 for an empty one.
    pub(crate) fn of(data: &Data) -> Result<Self, Error> {
        let last: Option<LogId> = decode_stored(data.meta(APPLIED))?;
        let index = watch::Sender::new(last.map_or(0, |last| last.index()));
        let (level, time_ms) = (AtomicU32::new(0), AtomicU64::new(0));
        let applied = Self { index, level, time_ms, advanced: Notify::new(), unusable_reported: Mutex::default() };
        applied.load(data)?;
        Ok(applied)
    }

    /// Takes over what the state says about the cluster.
    fn load(&self, data: &Data) -> Result<(), Error> {
        let level = decode_stored::<FeatureLevel>(data.meta(LEVEL))?.unwrap_or_default();
        self.level.store(level.0, Ordering::Release);
        self.time_ms.store(decode_stored(data.meta(TIME))?.unwrap_or(0), Ordering::Release);
        Ok(())
    }

    /// The cluster's feature level, as far as this node has applied the log.
    pub(crate) fn level(&self) -> FeatureLevel {
        FeatureLevel(self.level.load(Ordering::Acquire))
    }

    /// The time of the newest round that this node has applied, as Unix time in milliseconds; 0 before the first with a time.
    pub(crate) fn time_ms(&self) -> u64 {
        self.time_ms.load(Ordering::Acquire)
    }

    pub(crate) fn index(&self) -> u64 {
        *self.index.borrow()
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.index.subscribe()
    }

    fn advance(&self, index: u64) {
        self.index.send_replace(index);
        self.advanced.notify_waiters();
    }

    /// Waits until the index is at least `index`; false if the deadline comes first.
    pub(crate) async fn wait_for(&self, index: u64, deadline: tokio::time::Instant) -> bool {
        let reached = async {
            loop {
                // A change after this line is noticed, since the future was created before the index is read.
                let advanced = self.advanced.notified();
                if self.index() >= index {
                    return;
                }
                advanced.await;
            }
        };
        tokio::time::timeout_at(deadline, reached).await.is_ok()
    }
}

/// The replicated state of this node. Cheap to clone.
#[derive(Clone)]
pub struct StateMachine {
    pub(crate) data: Data,
    pub(crate) applied: Arc<Applied>,
    pub(crate) telemetry: Telemetry,
    pub(crate) blocking: Blocking,
}

impl StateMachine {
    pub(super) async fn snapshot(&self) -> io::Result<Snapshot> {
        let data = self.data.clone();
        self.blocking.run(move || snapshot_of(&data)).await?
    }

    /// Says that entries were passed over, at a bounded rate: another node may propose any number of them.
    fn report_unusable(&self, writes: usize, last_index: u64) {
        let mut reported = self.applied.unusable_reported.lock();
        if writes > 0 && reported.is_none_or(|reported| reported.elapsed() >= UNUSABLE_REPORT_INTERVAL) {
            *reported = Some(Instant::now());
            tracing::warn!(writes, last_index, "the log has writes that cannot be applied; all nodes pass over them");
        }
    }

    /// Applies entries as one storage batch and answers the proposers that wait for them.
    async fn apply_chunk(&self, chunk: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let began = (Instant::now(), clock::now());
        let (entries, responders): (Vec<LogEntry>, Vec<_>) = chunk.into_iter().unzip();
        let Some(last) = entries.last() else { return Ok(()) };
        let last_index = last.log_id().index();
        let entries = Arc::new(entries);
        let outcomes = self.apply_entries(&entries).await?;
        let unusable = outcomes.iter().flatten().filter(|outcome| **outcome == storage::Outcome::Unusable).count();
        self.report_unusable(unusable, last_index);
        self.telemetry.metrics().write_stage(Stage::Apply, began.0.elapsed());
        let ended = clock::now();
        for trace in entries.iter().flat_map(traces_of) {
            self.telemetry.record_span(names::SPAN_APPLY, trace, began.1, ended, &[]);
        }
        self.applied.advance(last_index);
        for (responder, outcome) in responders.into_iter().zip(outcomes) {
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    /// Applies entries in order; returns one list of outcomes per entry.
    async fn apply_entries(&self, entries: &Arc<Vec<LogEntry>>) -> io::Result<Vec<Vec<storage::Outcome>>> {
        let state = self.clone();
        // The disk must not hold up an async thread.
        if !is_small(entries) {
            let entries = entries.clone();
            return self.blocking.run(move || state.apply_changes(&state.changes_of(&entries)?)).await?;
        }
        // If everything is in memory, going to another thread and back would cost more than the writes.
        let changes = self.changes_of(entries)?;
        match self.data.apply_in_memory(&changes.writes, &changes.meta) {
            Some(outcomes) => Ok(self.note(&changes, outcomes.map_err(io::Error::other)?)),
            None => self.blocking.run(move || state.apply_changes(&changes)).await?,
        }
    }

    fn apply_changes(&self, changes: &Changes) -> io::Result<Vec<Vec<storage::Outcome>>> {
        let outcomes = self.data.apply(&changes.writes, &changes.meta).map_err(io::Error::other)?;
        Ok(self.note(changes, outcomes))
    }

    /// What entries change. Commands that cannot be applied are writes that change nothing (see [`GuardedWrite::decode_or_refuse`]):
    /// an error here would end the node, and end it again after each restart.
    ///
    /// Time never goes back: a round with an earlier stamp than the newest one before it, or without one, takes place at that
    /// one's time.
    fn changes_of(&self, entries: &[LogEntry]) -> io::Result<Changes> {
        let mut writes: Vec<GuardedWrite> = Vec::with_capacity(entries.len());
        let mut counts = Vec::with_capacity(entries.len());
        let (mut level, mut time_ms) = (self.applied.level(), self.applied.time_ms());
        let mut membership = None;
        for entry in entries {
            let before = writes.len();
            match &entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(round) => {
                    // Not once a chunk: it may hold the entry that raises the level.
                    level = level.max(round.level());
                    time_ms = time_ms.max(round.stamped_at_ms.unwrap_or(0));
                    // Once the cluster has a time, that of a leader that does not know it yet counts no more.
                    let time_ms = (level >= FeatureLevel::STAMPED).then_some(time_ms);
                    writes.extend(round.guarded_writes(time_ms, level));
                }
                EntryPayload::Membership(changed) => {
                    membership = Some(StoredMembership::new(Some(entry.log_id()), changed.clone()));
                }
            }
            counts.push(writes.len() - before);
        }
        let mut meta = Vec::with_capacity(4);
        if let Some(membership) = membership {
            meta.push((MEMBERSHIP, encode(&membership).map_err(io::Error::other)?));
        }
        if let Some(last) = entries.last() {
            meta.push((APPLIED, encode(&last.log_id()).map_err(io::Error::other)?));
        }
        if time_ms > self.applied.time_ms() {
            meta.push((TIME, encode(&time_ms).map_err(io::Error::other)?));
        }
        if level > self.applied.level() {
            meta.push((LEVEL, encode(&level).map_err(io::Error::other)?));
        }
        Ok(Changes { writes, counts, meta, level, time_ms })
    }

    /// Takes over what applied changes say about the cluster. Returns the outcomes by entry.
    fn note(&self, changes: &Changes, outcomes: Vec<storage::Outcome>) -> Vec<Vec<storage::Outcome>> {
        self.applied.level.store(changes.level.0, Ordering::Release);
        self.applied.time_ms.store(changes.time_ms, Ordering::Release);
        let mut outcomes = outcomes.into_iter();
        changes.counts.iter().map(|count| outcomes.by_ref().take(*count).collect()).collect()
    }
}

/// What a chunk of entries changes.
struct Changes {
    writes: Vec<GuardedWrite>,
    /// How many of them each entry has.
    counts: Vec<usize>,
    /// The state machine's own values.
    meta: Vec<(&'static str, bytes::Bytes)>,
    level: FeatureLevel,
    time_ms: u64,
}

/// Whether entries have few and small writes.
fn is_small(entries: &[LogEntry]) -> bool {
    let rounds = entries.iter().filter_map(|entry| match &entry.payload {
        EntryPayload::Normal(round) => Some(round),
        _ => None,
    });
    let (writes, bytes) =
        rounds.fold((0, 0), |(writes, bytes), round| (writes + round.writes.len(), bytes + round.command_bytes()));
    writes <= IN_PLACE_WRITES_MAX && bytes <= IN_PLACE_BYTES_MAX
}

/// Replaces the state by a snapshot. Blocks.
pub(crate) fn install(data: &Data, snapshot: &SnapshotSource) -> Result<(), storage::Error> {
    let own = [(SNAPSHOT_TAKEN, bytes::Bytes::new())];
    data.install(snapshot.chunks()?, &own)
}

/// A snapshot of the current state, which is durable up to the position it covers.
fn snapshot_of(data: &Data) -> io::Result<Snapshot> {
    let reader = data.snapshot();
    let meta = SnapshotMeta {
        last_log_id: stored(reader.meta(APPLIED))?,
        last_membership: stored(reader.meta(MEMBERSHIP))?.unwrap_or_default(),
    };
    data.sync().map_err(io::Error::other)?;
    Ok(Snapshot { meta, snapshot: SnapshotSource::Live(reader) })
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotSource;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let data = self.data.clone();
        let read = move || Ok((stored(data.meta(APPLIED))?, stored(data.meta(MEMBERSHIP))?.unwrap_or_default()));
        self.blocking.run(read).await?
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(APPLY_ENTRIES_MAX);
        while let Some(chunk) = chunks.next().await {
            self.apply_chunk(chunk.into_iter().collect::<io::Result<Vec<_>>>()?).await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    /// Nothing that reads the state waits for it. If the disk has no space for a second state, it is tried again until there is some,
    /// or the node stops: openraft takes an error for the end of the disk.
    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotSource) -> Result<(), io::Error> {
        loop {
            let (data, snapshot) = (self.data.clone(), snapshot.clone());
            match self.blocking.run(move || install(&data, &snapshot)).await? {
                Err(error) if error.is_disk_full() => {
                    tracing::error!(
                        retry_in = ?INSTALL_RETRY,
                        "the disk has no space for the state of a snapshot beside the current one, which stays until there is some"
                    );
                    tokio::time::sleep(INSTALL_RETRY).await;
                }
                installed => break installed.map_err(io::Error::other)?,
            }
        }
        self.applied.load(&self.data).map_err(io::Error::other)?;
        if let Some(last) = meta.last_log_id() {
            self.applied.advance(last.index());
        }
        tracing::info!(last_log_id = ?meta.last_log_id(), "snapshot installed");
        Ok(())
    }

    /// A snapshot takes no space on disk: it is read from the state when it is needed.
    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let data = self.data.clone();
        let current = move || match data.meta(SNAPSHOT_TAKEN).map_err(io::Error::other)? {
            Some(_) => snapshot_of(&data).map(Some),
            None => Ok(None),
        };
        self.blocking.run(current).await?
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotSource;

    /// Holds nothing that apply waits for.
    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let data = self.data.clone();
        let build = move || {
            data.apply(&[], &[(SNAPSHOT_TAKEN, bytes::Bytes::new())]).map_err(io::Error::other)?;
            snapshot_of(&data)
        };
        self.blocking.run(build).await?
    }
}

#[cfg(test)]
mod unusable_tests;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::types::{Round, RoundWrite, Vote};
    use crate::storage::Space;
    use crate::storage::memory::{Operation, SimDisk};
    use crate::storage::simulated_data as simulated;

    fn machine(data: &Data) -> StateMachine {
        let (applied, telemetry) = (Arc::new(Applied::of(data).unwrap()), Telemetry::disabled());
        StateMachine { data: data.clone(), applied, telemetry, blocking: Blocking::Threads }
    }

    /// A leader may not have applied the round with the first stamp yet, and its clock may be wrong.
    #[test]
    fn after_the_first_stamp_a_round_without_one_takes_place_at_the_newest_stamp() {
        let data = simulated::open(&SimDisk::new(1), 1 << 20).unwrap();
        let put = |key: &str, proposed_at_ms| {
            let action = storage::Action::Put(storage::Value::json("1"));
            let operations = vec![storage::Operation { space: Space::Kv, key: key.to_owned(), action }];
            let write = GuardedWrite { operations, proposed_at_ms, ..GuardedWrite::default() };
            vec![RoundWrite { trace: None, command: write.encode(FeatureLevel::FIRST).unwrap() }]
        };
        let rounds = [
            (None, put("before", 9_000)),
            (Some(5_000), vec![]),
            (None, put("without", 9_000)),
            (Some(4_000), put("earlier", 1)),
            (Some(6_000), put("later", 1)),
        ];
        let entries: Vec<LogEntry> = (1..)
            .zip(rounds)
            .map(|(index, (stamped_at_ms, writes))| {
                let log_id = LogId::new(*Vote::new(1, 1).leader_id(), index);
                LogEntry::new(log_id, EntryPayload::Normal(Round { stamped_at_ms, raises_to: None, writes }))
            })
            .collect();
        let machine = machine(&data);
        // In one batch or in several: the newest stamp is kept with the state.
        let (first, rest) = entries.split_at(2);
        for part in [first, rest] {
            machine.apply_changes(&machine.changes_of(part).unwrap()).unwrap();
        }
        let times = ["before", "without", "earlier", "later"]
            .map(|key| data.get(Space::Kv, key).unwrap().unwrap().meta.updated_at_ms);
        assert_eq!(times, [9_000, 5_000, 5_000, 6_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_for_which_there_is_no_space_is_installed_once_there_is() {
        let disks = [SimDisk::new(1), SimDisk::new(2)];
        let [source, data] = disks.each_ref().map(|disk| simulated::open(disk, 1 << 20).unwrap());
        source.apply(&[], &[("content", "here".into())]).unwrap();
        let mut machine = machine(&data);
        let began = tokio::time::Instant::now();
        disks[1].fail_next(Operation::Write, io::ErrorKind::StorageFull);
        let snapshot = SnapshotSource::Live(source.snapshot());
        machine.install_snapshot(&SnapshotMeta::default(), snapshot).await.unwrap();
        assert!(began.elapsed() >= INSTALL_RETRY);
        assert_eq!(data.meta("content").unwrap().unwrap(), "here");
    }
}
