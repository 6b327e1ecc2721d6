//! The segments of a log: which entry is where, and the file that is written to.
//!
//! A segment holds consecutive entries, from the one that its header names. All older segments end there. So a log that
//! is truncated, is opened after a crash, or jumps ahead because a snapshot was installed, starts a new segment; nothing that
//! was written is overwritten. Entries are purged by deleting segments from the front.
//!
//! A segment is created only after everything before it is durable. A hole between two segments is therefore damage, and only
//! the end of the last segment can be torn.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::files::{SegmentFile, SegmentFiles};
use super::record::{self, HEADER_BYTES, Header, Named, PREFIX_BYTES, Record};
use crate::storage::Error;

/// Bytes after which a segment is full. Space for all of it is reserved when it is created.
pub(super) const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

/// Memory kept for the records of the next batch.
const BUFFER_BYTES_MAX: usize = 1024 * 1024;

/// Where the entries are. Readers and the writer share it.
pub(super) struct Segments {
    files: Box<dyn SegmentFiles>,
    /// All segments by number. Never locked during a disk access.
    index: Mutex<VecDeque<Segment>>,
}

/// A segment that holds entries of the log, and the places of these.
struct Segment {
    number: u64,
    first: u64,
    /// Where the record of each entry starts.
    offsets: Vec<u32>,
    /// Where the last of these records ends.
    end: u32,
}

/// The content of a log, as found when it is opened.
pub(super) struct Found {
    pub(super) segments: Segments,
    pub(super) named: Named,
    /// The entries, from the first one that was not purged to after the last one.
    pub(super) range: Range<u64>,
    /// Damage that no crash explains. Everything after it is ignored.
    pub(super) damage: Option<String>,
    /// The number of the next segment.
    next_number: u64,
    /// Segments whose entries were purged.
    purged: Vec<u64>,
    /// Segments without entries, and those whose entries were truncated or follow damage.
    cut: Vec<u64>,
}

/// The end of the log. Only the log's writer has it.
pub(super) struct SegmentWriter {
    segments: Arc<Segments>,
    file: Box<dyn SegmentFile>,
    number: u64,
    /// Bytes of the file that are written.
    written: u64,
    /// Records that follow these.
    buffer: Vec<u8>,
    /// Where the entries in the buffer start.
    offsets: Vec<u32>,
    has_unsynced: bool,
    /// Index of the next entry.
    next: u64,
    /// Index and checksum of the last entry.
    last: Option<(u64, u32)>,
    named: Named,
}

impl Segment {
    fn end_index(&self) -> u64 {
        self.first + self.offsets.len() as u64
    }

    fn offset(&self, index: u64) -> Option<u32> {
        if index == self.end_index() {
            return Some(self.end);
        }
        self.offsets.get(usize::try_from(index.checked_sub(self.first)?).ok()?).copied()
    }

    /// Forgets the entries from `end` on.
    fn cut(&mut self, end: u64) {
        let kept = usize::try_from(end.saturating_sub(self.first)).unwrap_or(usize::MAX);
        if let Some(end) = self.offsets.get(kept) {
            self.end = *end;
            self.offsets.truncate(kept);
        }
    }
}

impl Segments {
    /// Reads all segments.
    ///
    /// # Errors
    ///
    /// If they cannot be read, or have another format.
    pub(super) fn find(files: Box<dyn SegmentFiles>, dir: &Path) -> Result<Found, Error> {
        let numbers = files.list()?;
        let next_number = numbers.last().map_or(1, |last| last + 1);
        let mut scan = Scan::default();
        for number in &numbers {
            let is_last = number + 1 == next_number;
            if let Err(found) = scan.segment(*number, &files.read(*number, 0, u64::MAX)?, is_last) {
                return Err(Error::Format { path: dir.to_path_buf(), found, supported: record::FORMAT });
            }
            if scan.damage.is_some() {
                break;
            }
        }
        let Scan { segments: mut index, named, mut damage } = scan;
        let end = index.back().map_or(0, Segment::end_index).max(named.start);
        let start = index.front().map_or(end, |segment| segment.first).max(named.start);
        if start > named.start && damage.is_none() {
            damage = Some(missing(named.start, start - 1));
        }
        index.retain(|segment| segment.end_index() > start && !segment.offsets.is_empty());
        let oldest = index.front().map_or(next_number, |segment| segment.number);
        let (purged, others): (Vec<_>, Vec<_>) = numbers.into_iter().partition(|number| *number < oldest);
        let cut = others.into_iter().filter(|number| index.iter().all(|live| live.number != *number)).collect();
        let segments = Self { files, index: Mutex::new(index) };
        Ok(Found { segments, named, range: start..end, damage, next_number, purged, cut })
    }

    /// Bytes written to all segments.
    pub(super) fn bytes(&self) -> u64 {
        self.index.lock().iter().map(|segment| u64::from(segment.end)).sum()
    }

    /// Index and checksum of the entry before `end`.
    pub(super) fn last_before(&self, end: u64) -> Result<Option<(u64, u32)>, Error> {
        let Some(last) = end.checked_sub(1) else { return Ok(None) };
        Ok(self.checksum(last)?.map(|checksum| (last, checksum)))
    }

    /// The checksum of an entry.
    fn checksum(&self, index: u64) -> Result<Option<u32>, Error> {
        let Some((number, range)) = self.place(index..index + 1, 1) else { return Ok(None) };
        let bytes = self.files.read(number, range.start + 4, 4)?;
        Ok(bytes.first_chunk().map(|checksum| u32::from_be_bytes(*checksum)))
    }

    /// The first entries of a range: at least one if the log has the first, all in one segment, and no more once their
    /// records reach `bytes_max`. None if the disk does not have the first.
    ///
    /// # Errors
    ///
    /// If the disk refuses, or an entry is damaged or missing.
    pub(super) fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Bytes>, Error> {
        let first = range.start;
        let Some((number, place)) = self.place(range.clone(), bytes_max) else { return Ok(Vec::new()) };
        let bytes = Bytes::from(self.files.read(number, place.start, place.end - place.start)?);
        let mut entries = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let expected = first + entries.len() as u64;
            match record::record(&bytes, number, at) {
                Some((Record::Entry { index, content, .. }, end)) if index == expected => {
                    entries.push(bytes.slice(content));
                    at = end;
                }
                Some((Record::Named(_), end)) => at = end,
                _ => return Err(damaged(expected)),
            }
        }
        if entries.is_empty() { Err(damaged(first)) } else { Ok(entries) }
    }

    /// The segment and the bytes of the first entries of a range.
    fn place(&self, range: Range<u64>, bytes_max: usize) -> Option<(u64, Range<u64>)> {
        let index = self.index.lock();
        let after = index.partition_point(|segment| segment.first <= range.start);
        let segment = index.get(after.checked_sub(1)?)?;
        let start = segment.offset(range.start).filter(|_| range.start < segment.end_index())?;
        let mut last = range.start + 1;
        let mut end = segment.offset(last)?;
        while last < range.end.min(segment.end_index()) && (end - start) as usize <= bytes_max {
            last += 1;
            end = segment.offset(last)?;
        }
        Some((segment.number, u64::from(start)..u64::from(end)))
    }

    /// Creates a segment that goes on with the entry `first`. Returns its file, and how much of it is written. Segments
    /// without an earlier entry are deleted.
    fn start(&self, number: u64, first: u64, named: &Named) -> Result<(Box<dyn SegmentFile>, u64), Error> {
        let mut content = Vec::new();
        record::put_header(&mut content, number, first);
        record::put_named(&mut content, number, named)?;
        let file = self.files.create(number, &content)?;
        let written = content.len() as u64;
        let dead = {
            let mut index = self.index.lock();
            let dead = cut(&mut index, first);
            index.push_back(Segment { number, first, offsets: Vec::new(), end: position(written) });
            dead
        };
        self.remove_cut(dead)?;
        Ok((file, written))
    }

    fn newest(&self) -> Option<u64> {
        self.index.lock().back().map(|segment| segment.number)
    }

    /// Forgets the segments of which all entries are below an index, except for the last segment.
    fn purged(&self, start: u64) -> Vec<u64> {
        let mut index = self.index.lock();
        let live = index.iter().position(|segment| segment.end_index() > start).unwrap_or(index.len());
        let purged = live.min(index.len().saturating_sub(1));
        index.drain(..purged).map(|segment| segment.number).collect()
    }

    /// Deletes segments whose entries were purged, the oldest first: a crash leaves no hole between the others.
    fn remove_purged(&self, numbers: Vec<u64>) -> Result<(), Error> {
        numbers.into_iter().try_for_each(|number| self.files.remove(number))
    }

    /// Deletes segments whose entries were truncated, the newest first: a crash leaves no hole between the others.
    fn remove_cut(&self, mut numbers: Vec<u64>) -> Result<(), Error> {
        numbers.sort_unstable();
        numbers.into_iter().rev().try_for_each(|number| self.files.remove(number))
    }
}

/// What was read of the segments so far.
#[derive(Default)]
struct Scan {
    segments: VecDeque<Segment>,
    named: Named,
    damage: Option<String>,
}

impl Scan {
    /// Reads a segment. Fails with its format, if that is unknown.
    fn segment(&mut self, number: u64, bytes: &[u8], is_last: bool) -> Result<(), u32> {
        let first = match record::header(bytes, number) {
            Header::First(first) => first,
            Header::Format(format) => return Err(format),
            Header::Invalid => {
                // A crash while a segment is created leaves it without a header. Nothing has been written to it then.
                if !is_last {
                    self.damage = Some(format!("segment {number} is damaged"));
                }
                return Ok(());
            }
        };
        let Some((Record::Named(named), mut at)) = record::record(bytes, number, HEADER_BYTES) else {
            if !is_last {
                self.damage = Some(format!("segment {number} is damaged"));
            }
            return Ok(());
        };
        cut(&mut self.segments, first);
        // Segments before the first one are gone on purpose. A log that jumps ahead moves its start.
        let end = self.segments.back().map_or(first, Segment::end_index).max(named.start);
        if first > end {
            self.damage = Some(missing(end, first - 1));
            return Ok(());
        }
        self.named = named;
        let mut segment = Segment { number, first, offsets: Vec::new(), end: position(at as u64) };
        while let Some((record, end)) = record::record(bytes, number, at) {
            match record {
                Record::Entry { index, .. } if index == segment.end_index() => {
                    segment.offsets.push(position(at as u64));
                    segment.end = position(end as u64);
                }
                Record::Entry { .. } => break,
                Record::Named(named) => self.named = named,
            }
            at = end;
        }
        self.segments.push_back(segment);
        Ok(())
    }
}

impl Found {
    /// Starts a new segment after the last entry, and deletes the segments that no entry is left of.
    ///
    /// # Errors
    ///
    /// If the disk refuses.
    pub(super) fn begin(self) -> Result<SegmentWriter, Error> {
        let last = self.segments.last_before(self.range.end)?;
        let Self { segments, named, range, next_number, purged, cut, .. } = self;
        // A process that ended before its sync may have left entries that a power loss would still take.
        if let Some(newest) = segments.newest() {
            segments.files.sync(newest)?;
        }
        let (file, written) = segments.start(next_number, range.end, &named)?;
        segments.remove_purged(purged)?;
        segments.remove_cut(cut)?;
        Ok(SegmentWriter {
            segments: Arc::new(segments),
            file,
            number: next_number,
            written,
            buffer: Vec::new(),
            offsets: Vec::new(),
            has_unsynced: false,
            next: range.end,
            last,
            named,
        })
    }
}

impl SegmentWriter {
    pub(super) fn segments(&self) -> Arc<Segments> {
        self.segments.clone()
    }

    /// Index and checksum of the last entry.
    pub(super) fn last(&self) -> Option<(u64, u32)> {
        self.last
    }

    /// Index of the next entry.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn named(&self) -> &Named {
        &self.named
    }

    /// Adds an entry. An empty log may go on with any index.
    pub(super) fn push_entry(&mut self, index: u64, content: &[u8]) -> Result<(), Error> {
        let bytes = self.position() + (PREFIX_BYTES + content.len()) as u64;
        if index != self.next {
            if !self.is_empty() || index < self.named.start {
                return Err(Error::corrupt(format!("entry {index} does not follow the last one, and the log")));
            }
            self.named.start = index;
            self.start_segment(index)?;
        } else if bytes > SEGMENT_BYTES && !self.is_new() {
            self.start_segment(index)?;
        }
        self.offsets.push(position(self.position()));
        let checksum = record::put_entry(&mut self.buffer, self.number, index, content);
        self.next = index + 1;
        self.last = Some((index, checksum));
        Ok(())
    }

    /// Changes the named values.
    pub(super) fn set_named(&mut self, change: impl FnOnce(&mut Named)) -> Result<(), Error> {
        change(&mut self.named);
        record::put_named(&mut self.buffer, self.number, &self.named)
    }

    /// Removes the entries from `end` on, durably.
    pub(super) fn truncate(&mut self, end: u64) -> Result<(), Error> {
        self.start_segment(end)?;
        self.next = end;
        self.last = self.segments.last_before(end)?;
        Ok(())
    }

    /// Writes everything to the file.
    pub(super) fn write(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.has_unsynced = true;
        self.file.write(self.written, &self.buffer)?;
        self.written = self.position();
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER_BYTES_MAX);
        if let Some(segment) = self.segments.index.lock().back_mut() {
            segment.offsets.append(&mut self.offsets);
            segment.end = position(self.written);
        }
        Ok(())
    }

    /// Makes everything written durable, and deletes the segments of purged entries.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        if self.has_unsynced {
            self.file.sync()?;
            self.has_unsynced = false;
        }
        self.segments.remove_purged(self.segments.purged(self.named.start))
    }

    /// Makes everything durable, and goes on in a new segment with the entry `first`.
    fn start_segment(&mut self, first: u64) -> Result<(), Error> {
        self.write()?;
        self.sync()?;
        // A log that is truncated often, or grows by large entries, would take many times its size otherwise.
        self.file.finish(self.written)?;
        self.number += 1;
        (self.file, self.written) = self.segments.start(self.number, first, &self.named)?;
        Ok(())
    }

    /// Where the next record goes.
    fn position(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn is_empty(&self) -> bool {
        self.last.is_none_or(|(last, _)| last < self.named.start)
    }

    /// Whether the segment has no entry yet.
    fn is_new(&self) -> bool {
        self.offsets.is_empty() && self.segments.index.lock().back().is_none_or(|segment| segment.offsets.is_empty())
    }
}

/// Forgets the entries from `end` on. Returns the numbers of the segments that hold no others.
fn cut(segments: &mut VecDeque<Segment>, end: u64) -> Vec<u64> {
    let mut dead = Vec::new();
    while let Some(segment) = segments.pop_back_if(|segment| segment.first >= end) {
        dead.push(segment.number);
    }
    if let Some(last) = segments.back_mut() {
        last.cut(end);
    }
    dead
}

/// A position in a segment. A segment ends with the record that exceeds [`SEGMENT_BYTES`], and no record is longer than 4 GiB.
fn position(offset: u64) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

/// The error for an entry that is damaged or missing.
pub(super) fn damaged(index: u64) -> Error {
    Error::corrupt(format!("log entry {index}"))
}

/// The description of missing entries, from the first to the last.
pub(super) fn missing(first: u64, last: u64) -> String {
    match first == last {
        true => format!("entry {first} is damaged or missing"),
        false => format!("entries {first} to {last} are damaged or missing"),
    }
}
