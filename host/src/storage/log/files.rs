//! The files of a log, as its segments see them: on a disk (`segment_dir`), or simulated in tests.

use crate::storage::Error;

/// Where the segments of a log are kept.
///
/// What was synced stays; of what was written after that, a crash leaves any part. The caller checks what it reads.
pub(super) trait SegmentFiles: Send + Sync {
    /// The numbers of all segments, ascending.
    fn list(&self) -> Result<Vec<u64>, Error>;

    /// A part of a segment: `bytes_max` bytes from `offset`, or fewer at the end of the file.
    fn read(&self, segment: u64, offset: u64, bytes_max: u64) -> Result<Vec<u8>, Error>;

    /// Creates a segment that begins with `content`. It is durable when this returns. Whatever a crash left under that
    /// number is replaced.
    fn create(&self, segment: u64, content: &[u8]) -> Result<Box<dyn SegmentFile>, Error>;

    /// Makes a segment durable that another process has written.
    fn sync(&self, segment: u64) -> Result<(), Error>;

    /// Deletes a segment.
    fn remove(&self, segment: u64) -> Result<(), Error>;
}

/// The segment that is written to, from front to back.
pub(super) trait SegmentFile: Send {
    /// Writes at an offset.
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error>;

    /// Makes everything written durable.
    fn sync(&mut self) -> Result<(), Error>;

    /// Gives back the space that was reserved after `length` bytes, since nothing more is written. What was written is durable.
    fn finish(&mut self, length: u64) -> Result<(), Error>;
}
