//! The file of the newest segment, written so that a sync costs little.
//!
//! A sync of blocks that were never written makes the file system record that they belong to the file now, and costs half as
//! much again. So zeros are written ahead of the records, and records go over them. They go past the page cache
//! (`O_DIRECT`), which saves a copy and the search for changed pages, and are padded to whole blocks; the last block is written
//! again with the records that follow. Sectors that are written again do not change, so a torn block harms no older record.
//!
//! Measured with 4 KiB a sync on ext4, processor time of the writing thread: 75 µs for reserved blocks, 52 µs for blocks of
//! zeros, 47 µs past the page cache.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::files::SegmentFile;
use crate::storage::Error;

/// Zeros that are written ahead of the records.
const AHEAD_BYTES: usize = 512 * 1024;

/// Records from this length on are written without zeros: the zeros would cost the disk more than they save.
const LARGE_BYTES: usize = AHEAD_BYTES / 4;

/// Unit of writes past the page cache: a multiple of what disks ask for.
const BLOCK_BYTES: usize = 4_096;

/// A segment of a directory that is written to.
pub(super) struct OpenSegment {
    pub(super) file: File,
    /// Where the zeros end that were written ahead.
    zeros_end: u64,
    /// What was written of the last, incomplete block.
    last_block: Vec<u8>,
    /// Memory for writes; the part that starts at a multiple of [`BLOCK_BYTES`] is used.
    buffer: Vec<u8>,
}

impl OpenSegment {
    /// Creates a file, or empties it, and reserves space for it.
    pub(super) fn create(path: &Path, reserve_bytes: u64) -> Result<Self, Error> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).write(true);
        // Not every file system can write past the page cache.
        let file = options.clone().custom_flags(DIRECT).open(path).or_else(|_| options.open(path))?;
        reserve(&file, reserve_bytes)?;
        Ok(Self { file, zeros_end: 0, last_block: Vec::new(), buffer: Vec::new() })
    }

    /// Writes `self.last_block`, the bytes, and zeros up to a whole block and at least `zeros` of them.
    fn write_blocks(&mut self, offset: u64, bytes: &[u8], zeros: usize) -> Result<(), Error> {
        let used = self.last_block.len() + bytes.len();
        let length = (used + zeros).next_multiple_of(BLOCK_BYTES);
        // What comes before the first whole block in memory stays as it is, unless the buffer moves.
        let padding = |buffer: &[u8]| buffer.as_ptr().align_offset(BLOCK_BYTES).min(BLOCK_BYTES);
        self.buffer.truncate(padding(&self.buffer));
        self.buffer.reserve(length + BLOCK_BYTES);
        let padding = padding(&self.buffer);
        self.buffer.resize(padding, 0);
        self.buffer.extend_from_slice(&self.last_block);
        self.buffer.extend_from_slice(bytes);
        self.buffer.resize(padding + length, 0);
        let start = offset - self.last_block.len() as u64;
        let blocks = self.buffer.get(padding..).unwrap_or_default();
        self.file.write_all_at(blocks, start)?;
        self.zeros_end = self.zeros_end.max(start + length as u64);
        let incomplete = used - used % BLOCK_BYTES..used;
        self.last_block = blocks.get(incomplete).unwrap_or_default().to_vec();
        self.buffer.shrink_to(2 * AHEAD_BYTES);
        Ok(())
    }
}

impl SegmentFile for OpenSegment {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let is_over_zeros = offset + bytes.len() as u64 <= self.zeros_end;
        let zeros = if is_over_zeros || bytes.len() >= LARGE_BYTES { 0 } else { AHEAD_BYTES };
        self.write_blocks(offset, bytes, zeros)
    }

    fn sync(&mut self) -> Result<(), Error> {
        Ok(self.file.sync_data()?)
    }

    fn finish(&mut self, length: u64) -> Result<(), Error> {
        Ok(self.file.set_len(length)?)
    }
}

#[cfg(target_os = "linux")]
const DIRECT: i32 = rustix::fs::OFlags::DIRECT.bits() as i32;

#[cfg(not(target_os = "linux"))]
const DIRECT: i32 = 0;

/// Reserves space for a file, so that a write to it does not meet a full disk.
#[cfg(target_os = "linux")]
fn reserve(file: &File, bytes: u64) -> Result<(), Error> {
    use rustix::io::Errno;
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        // Not every file system can. The file then grows as it is written.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        Err(error) => Err(std::io::Error::from(error).into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn reserve(_file: &File, _bytes: u64) -> Result<(), Error> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_of_any_length_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("segment");
        let mut segment = OpenSegment::create(&path, 1 << 20).unwrap();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut expected = Vec::new();
        for number in 0..200 {
            let lengths = if number % 20 == 19 { LARGE_BYTES..3 * LARGE_BYTES } else { 1..20_000 };
            let mut bytes = vec![0; rng.usize(lengths)];
            rng.fill(&mut bytes);
            segment.write(expected.len() as u64, &bytes).unwrap();
            segment.sync().unwrap();
            expected.extend(bytes);
            let found = std::fs::read(&path).unwrap();
            assert_eq!(found[..expected.len()], expected);
            assert!(found[expected.len()..].iter().all(|byte| *byte == 0));
        }
    }
}
