//! openraft's log on the `log/` database.
//!
//! This file only translates entries to bytes. Durability is up to [`crate::storage::Log`], whose writer calls openraft
//! back after the fsync. Recent entries are read from memory, in place; older ones, which only a restart and peers that are
//! behind need, on a thread that may block.

use std::ops::{Bound, Range, RangeBounds};
use std::{fmt::Debug, io, sync::Arc};

use bytes::Bytes;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, entry::RaftEntry};
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use crate::clock;
use crate::limits::COMMAND_BYTES_MAX;
use crate::replication::blocking::Blocking;
use crate::replication::peer::{claims::LeaderId, frames::PEER_BODY_BYTES_MAX};
use crate::replication::types::{
    LogEntry, LogId, TypeConfig, Vote, decode, decode_shared, encode, encode_with_rounds, encoded_bytes, traces_of,
};
use crate::storage::{self, Log};
use crate::telemetry::{Stage, Telemetry, TraceContext, names};

pub(super) const VOTE: &str = "vote";
const COMMITTED: &str = "committed";

/// Maximum bytes of entries returned by one read of the log for replication or apply; at least one entry is returned.
///
/// The last entry may go beyond it, by less than the largest entry. So an append always fits into a frame between nodes.
const READ_BYTES_MAX: usize = 4 * 1024 * 1024;

const _: () = assert!(READ_BYTES_MAX + 2 * COMMAND_BYTES_MAX <= PEER_BODY_BYTES_MAX);

/// The Raft log of this node. Cheap to clone.
#[derive(Clone)]
pub struct LogStore {
    pub(crate) log: Log,
    pub(crate) telemetry: Telemetry,
    pub(crate) blocking: Blocking,
}

impl LogStore {
    async fn read_entries(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<LogEntry>> {
        if let Some(encoded) = self.log.read_in_memory(range.clone(), bytes_max) {
            return decode_all(&encoded);
        }
        let log = self.log.clone();
        self.blocking.run(move || decode_all(&log.read(range, bytes_max).map_err(io::Error::other)?)).await?
    }

    /// The log id of an entry that the log holds.
    pub(crate) async fn log_id_at(&self, index: u64) -> io::Result<Option<LogId>> {
        let entry = self.read_entries(index..index.saturating_add(1), usize::MAX).await?.pop();
        Ok(entry.map(|entry| entry.log_id()))
    }

    /// The index of the first entry that a leader wrote, if the last one in the log is its own.
    pub(crate) async fn first_of_last_leader(&self, leader: &LeaderId) -> io::Result<Option<u64>> {
        let Some((mut first, mut last)) = self.log.first_last() else { return Ok(None) };
        let is_own =
            async |index| io::Result::Ok(self.log_id_at(index).await?.is_some_and(|id| id.leader_id == *leader));
        if !is_own(last).await? {
            return Ok(None);
        }
        // A leader's entries follow each other.
        while first < last {
            let middle = first + (last - first) / 2;
            match is_own(middle).await? {
                true => last = middle,
                false => first = middle + 1,
            }
        }
        Ok(Some(last))
    }

    /// A callback that records the append in the traces of its writes, and reports it to openraft.
    fn traced(&self, entries: &[LogEntry], flushed: IOFlushed<TypeConfig>) -> storage::Done {
        let traces: Arc<[TraceContext]> = entries.iter().flat_map(traces_of).collect();
        let telemetry = self.telemetry.clone();
        let began = clock::now();
        Box::new(move |result| {
            let ended = clock::now();
            telemetry.metrics().write_stage(Stage::Append, ended.duration_since(began).unwrap_or_default());
            for trace in traces.iter() {
                telemetry.record_span(names::SPAN_LOG_APPEND, *trace, began, ended, &[]);
            }
            flushed.io_completed(result.map_err(io::Error::other));
        })
    }
}

fn decode_all(encoded: &[Bytes]) -> io::Result<Vec<LogEntry>> {
    encoded.iter().map(|bytes| decode_shared(bytes).map_err(io::Error::other)).collect()
}

/// Decodes a stored value, if there is one.
pub(super) fn stored<T: DeserializeOwned>(bytes: Result<Option<Bytes>, storage::Error>) -> io::Result<Option<T>> {
    bytes.map_err(io::Error::other)?.map(|bytes| decode(&bytes).map_err(io::Error::other)).transpose()
}

/// Hands an operation to the log's writer and waits until it is done.
pub(crate) async fn wait_for(operation: impl FnOnce(storage::Done)) -> io::Result<()> {
    let (done, result) = oneshot::channel();
    operation(Box::new(move |outcome| {
        // Sending fails if the caller has stopped waiting.
        let _ = done.send(outcome);
    }));
    result.await.map_err(|_| io::Error::other("the log's writer has stopped"))?.map_err(io::Error::other)
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<LogEntry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.read_entries(half_open(&range), usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<LogEntry>, io::Error> {
        self.read_entries(start..end, READ_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        stored(Ok(self.log.named(VOTE)))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let last_purged_log_id: Option<LogId> = stored(Ok(self.log.purged_marker()))?;
        let last_log_id = match self.log.first_last() {
            Some((_, last)) => {
                let entry = self.read_entries(last..last.saturating_add(1), usize::MAX).await?.pop();
                Some(entry.ok_or_else(|| io::Error::other("the last log entry cannot be read"))?.log_id())
            }
            None => last_purged_log_id,
        };
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = encode(vote).map_err(io::Error::other)?;
        wait_for(|done| self.log.save_named(VOTE, Some(vote), done)).await
    }

    /// Not fsynced: after a crash the leader tells the commit position again. Local reads wait for that (see
    /// [`crate::replication`], `reads`).
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let committed = encode(&committed).map_err(io::Error::other)?;
        self.log.note_named(COMMITTED, committed);
        Ok(())
    }

    /// None if the log ends before: it has lost its end, and an operator has accepted that.
    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let committed: Option<LogId> = stored(Ok(self.log.named(COMMITTED)))?.flatten();
        let last = self.get_log_state().await?.last_log_id;
        Ok(committed.filter(|committed| last.is_some_and(|last| committed.index() <= last.index())))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<LogEntry> = entries.into_iter().collect();
        let encoded = entries
            .iter()
            .map(|entry| {
                Ok((entry.log_id().index(), encode_with_rounds(entry, encoded_bytes(entry)).map_err(io::Error::other)?))
            })
            .collect::<io::Result<Vec<_>>>()?;
        self.log.append(encoded, self.traced(&entries, callback));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        wait_for(|done| self.log.truncate_after(last_log_id.map(|id| id.index()), done)).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let marker = encode(&log_id).map_err(io::Error::other)?;
        wait_for(|done| self.log.purge_upto(log_id.index(), marker, done)).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::FutureExt;
    use openraft::raft::AppendEntriesRequest;
    use openraft::{EntryPayload, LogId};

    use super::*;
    use crate::replication::types::{Round, RoundWrite};

    #[tokio::test]
    async fn the_largest_append_fits_into_a_frame() {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(&dir.path().join("log"), Box::new(|_, _| {}), false).unwrap();
        let mut store = LogStore { log, telemetry: Telemetry::disabled(), blocking: Blocking::Threads };
        let vote = Vote::new(u64::MAX, u64::MAX);
        // A read goes on as long as it has fewer bytes than its maximum.
        let entries = [(1, READ_BYTES_MAX - 1_024), (2, COMMAND_BYTES_MAX), (3, 1)].map(|(index, bytes)| {
            let writes = vec![RoundWrite { trace: None, command: vec![0; bytes].into() }];
            let log_id = LogId::new(*vote.leader_id(), index);
            (
                index,
                encode(&LogEntry {
                    log_id,
                    payload: EntryPayload::Normal(Round { stamped_at_ms: None, raises_to: None, writes }),
                })
                .unwrap(),
            )
        });
        store.log.append(entries.into(), Box::new(|_| {}));
        let entries = store.limited_get_log_entries(1, 4).await.unwrap();
        assert_eq!(entries.len(), 2);
        let last = Some(entries[1].log_id);
        let request = AppendEntriesRequest::<TypeConfig> { vote, prev_log_id: last, entries, leader_commit: last };
        let bytes = encode(&request).unwrap().len();
        assert!(bytes > COMMAND_BYTES_MAX + READ_BYTES_MAX - 1_024, "{bytes} bytes");
        assert!(bytes < PEER_BODY_BYTES_MAX, "{bytes} bytes");
    }

    static JOBS: AtomicU32 = AtomicU32::new(0);

    fn counted() -> futures::future::BoxFuture<'static, ()> {
        JOBS.fetch_add(1, Ordering::Relaxed);
        async {}.boxed()
    }

    #[tokio::test]
    async fn only_entries_that_are_not_in_memory_take_a_thread_that_may_block() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let log = Log::open(&dir.path().join("log"), Box::new(|_, _| {}), false).unwrap();
            LogStore { log, telemetry: Telemetry::disabled(), blocking: Blocking::InPlace(counted) }
        };
        let mut store = open();
        let entry = |index| {
            let log_id = LogId::new(*Vote::new(1, 1).leader_id(), index);
            encode(&LogEntry::new(log_id, EntryPayload::Blank)).unwrap()
        };
        let entries = (1..=3).map(|index| (index, entry(index))).collect();
        wait_for(|done| store.log.append(entries, done)).await.unwrap();
        assert_eq!(store.try_get_log_entries(1..=3).await.unwrap().len(), 3);
        assert_eq!(store.limited_get_log_entries(2, 4).await.unwrap().len(), 2);
        assert_eq!(store.get_log_state().await.unwrap().last_log_id.map(|last| last.index()), Some(3));
        assert_eq!(JOBS.load(Ordering::Relaxed), 0);

        store.log.close();
        drop(store);
        let mut store = open();
        assert_eq!(store.try_get_log_entries(1..=3).await.unwrap().len(), 3);
        assert_eq!(store.limited_get_log_entries(2, 4).await.unwrap().len(), 2);
        assert_eq!(store.get_log_state().await.unwrap().last_log_id.map(|last| last.index()), Some(3));
        assert_eq!(JOBS.load(Ordering::Relaxed), 3);
        store.log.close();
    }
}
