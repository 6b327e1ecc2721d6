//! openraft's state machine on the `data/` database.
//!
//! Committed entries are applied in chunks: one storage batch carries the writes of all entries that are ready, and the
//! position of the last one. `data/` is not fsynced per chunk, since the log restores it after a crash. It is fsynced
//! before a snapshot is reported, because the log may be purged up to a snapshot.

use std::{io, sync::Arc, time::Instant};

use futures::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use tokio::sync::{Notify, watch};

use super::log_store::stored;
use crate::clock;
use crate::replication::types::{
    LogEntry, LogId, SnapshotMeta, StoredMembership, TypeConfig, decode, decode_stored, encode, traces_of,
};
use crate::replication::{blocking::Blocking, error::Error, peer::snapshot::SnapshotSource};
use crate::storage::{self, Data, GuardedWrite};
use crate::telemetry::{Stage, Telemetry, names};

/// Key of the log id of the last applied entry.
pub(crate) const APPLIED: &str = "applied";
/// Key of the last applied membership.
const MEMBERSHIP: &str = "membership";
/// Key that is present once a snapshot was built or installed: from then on the log may begin after the first entry.
const SNAPSHOT_TAKEN: &str = "snapshot-taken";

/// Entries applied in one storage batch.
const APPLY_ENTRIES_MAX: usize = 256;

type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotSource>;

/// The index of the last log entry that this node has applied, as a value to wait for.
pub(crate) struct Applied {
    index: watch::Sender<u64>,
    /// Wakes readers that wait for an index.
    ///
    /// IMPORTANT: readers do not wait on `index`: tokio's watch channel wakes its receivers in random order, and a
    /// simulation must take the same course each time. `Notify` wakes them in the order in which they began to wait.
    advanced: Notify,
}

impl Applied {
    /// The index that a stored state shows; 0 for an empty state.
    pub(crate) fn of(data: &Data) -> Result<Self, Error> {
        let last: Option<LogId> = decode_stored(data.meta(APPLIED))?;
        let index = watch::Sender::new(last.map_or(0, |last| last.index()));
        Ok(Self { index, advanced: Notify::new() })
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

    /// Applies entries as one storage batch and answers the proposers that wait for them.
    async fn apply_chunk(&self, chunk: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let began = (Instant::now(), clock::now());
        let (entries, responders): (Vec<LogEntry>, Vec<_>) = chunk.into_iter().unzip();
        let Some(last) = entries.last() else { return Ok(()) };
        let last_index = last.log_id().index();
        let entries = Arc::new(entries);

        // fjall may stall a writer with blocking sleeps, so this must not run on an async thread.
        let outcomes = {
            let (data, entries) = (self.data.clone(), entries.clone());
            self.blocking.run(move || apply_entries(&data, &entries)).await??
        };

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
}

/// Applies entries in order; returns one list of outcomes per entry.
fn apply_entries(data: &Data, entries: &[LogEntry]) -> io::Result<Vec<Vec<storage::Outcome>>> {
    let mut writes: Vec<GuardedWrite> = Vec::with_capacity(entries.len());
    let mut counts = Vec::with_capacity(entries.len());
    let mut meta = Vec::with_capacity(2);
    for entry in entries {
        let before = writes.len();
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(round) => {
                for write in &round.writes {
                    writes.push(decode(&write.command).map_err(io::Error::other)?);
                }
            }
            EntryPayload::Membership(membership) => {
                let stored = StoredMembership::new(Some(entry.log_id()), membership.clone());
                meta.retain(|(key, _)| *key != MEMBERSHIP);
                meta.push((MEMBERSHIP, encode(&stored).map_err(io::Error::other)?));
            }
        }
        counts.push(writes.len() - before);
    }
    if let Some(last) = entries.last() {
        meta.push((APPLIED, encode(&last.log_id()).map_err(io::Error::other)?));
    }
    let mut outcomes = data.apply(&writes, &meta).map_err(io::Error::other)?.into_iter();
    Ok(counts.into_iter().map(|count| outcomes.by_ref().take(count).collect()).collect())
}

/// Replaces the state by a snapshot. Blocks.
pub(crate) fn install(data: &Data, snapshot: &SnapshotSource) -> io::Result<()> {
    let own = [(SNAPSHOT_TAKEN, bytes::Bytes::new())];
    data.install(snapshot.chunks()?, &own).map_err(io::Error::other)
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

    /// Nothing that reads the state waits for it.
    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotSource) -> Result<(), io::Error> {
        let data = self.data.clone();
        self.blocking.run(move || install(&data, &snapshot)).await??;
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
