//! The part of the log that is in memory: its range, its newest entries, and its named values.
//!
//! Readers see it ahead of the disk: it includes changes that are still queued for the writer.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;

/// Bytes of recent entries kept for replication and apply. Entries that are not synced yet are kept beyond it.
const TAIL_BYTES_MAX: usize = 8 * 1024 * 1024;

pub(super) struct Tail {
    /// First index of the log, and the index after the last; equal if the log is empty.
    pub(super) range: Range<u64>,
    /// The newest entries, including all that are not synced yet.
    entries: BTreeMap<u64, Bytes>,
    bytes: usize,
    /// Entries below this index are synced.
    synced: u64,
    /// How often entries were removed from the end. What is read from the disk meanwhile may be none of the log any more.
    pub(super) truncations: u64,
    pub(super) named: BTreeMap<String, Bytes>,
    /// Whether a named value has changed since the writer took them.
    have_named_changed: bool,
}

impl Tail {
    pub(super) fn new(range: Range<u64>, named: BTreeMap<String, Bytes>) -> Self {
        let (synced, entries) = (range.end, BTreeMap::new());
        Self { range, entries, bytes: 0, synced, truncations: 0, named, have_named_changed: false }
    }

    /// The part of a range that must be read from disk, and the entries that follow it from memory.
    pub(super) fn read(&self, range: Range<u64>) -> (Range<u64>, Vec<Bytes>) {
        let range = range.start.max(self.range.start)..range.end.min(self.range.end);
        if range.is_empty() {
            return (0..0, Vec::new());
        }
        let mut in_memory = self.entries.range(range.clone()).peekable();
        let on_disk_end = in_memory.peek().map_or(range.end, |(index, _)| **index);
        (range.start..on_disk_end, in_memory.map(|(_, entry)| entry.clone()).collect())
    }

    /// Sets or removes a named value.
    pub(super) fn set_named(&mut self, name: &str, value: Option<Bytes>) {
        match (value, self.named.get_mut(name)) {
            (Some(value), Some(present)) => *present = value,
            (Some(value), None) => drop(self.named.insert(name.to_owned(), value)),
            (None, _) => drop(self.named.remove(name)),
        }
        self.have_named_changed = true;
    }

    /// The named values, and whether they have changed since they were last taken.
    pub(super) fn take_named(&mut self) -> (BTreeMap<String, Bytes>, bool) {
        (self.named.clone(), std::mem::take(&mut self.have_named_changed))
    }

    pub(super) fn append(&mut self, entries: &[(u64, Bytes)]) {
        for (index, entry) in entries {
            if self.range.is_empty() {
                self.range = *index..*index;
                self.synced = *index;
            }
            self.range.end = index + 1;
            self.bytes += entry.len();
            self.entries.insert(*index, entry.clone());
        }
    }

    /// Removes all entries after `index`; every entry, without an index. Returns the index after the last one left.
    pub(super) fn truncate_after(&mut self, index: Option<u64>) -> u64 {
        let end = index.map_or(self.range.start, |index| index + 1).clamp(self.range.start, self.range.end);
        for (_, entry) in self.entries.split_off(&end) {
            self.bytes = self.bytes.saturating_sub(entry.len());
        }
        self.range.end = end;
        self.synced = self.synced.min(end);
        self.truncations += 1;
        end
    }

    /// Removes all entries up to `index`, inclusive.
    pub(super) fn purge_upto(&mut self, index: u64) {
        let next = index + 1;
        self.entries = self.entries.split_off(&next);
        self.bytes = self.entries.values().map(Bytes::len).sum();
        self.range = next.max(self.range.start)..next.max(self.range.end);
        self.synced = self.synced.max(next).min(self.range.end);
    }

    /// Records that entries below `end` are synced, and drops the oldest of them beyond the allowed memory.
    pub(super) fn forget_synced(&mut self, end: u64) {
        self.synced = self.synced.max(end).min(self.range.end);
        while self.bytes > TAIL_BYTES_MAX {
            let Some(oldest) = self.entries.first_entry().filter(|oldest| *oldest.key() < self.synced) else { break };
            let entry = oldest.remove();
            self.bytes = self.bytes.saturating_sub(entry.len());
        }
    }
}
