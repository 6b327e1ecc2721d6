//! fjall's journals, read before fjall reads them.
//!
//! # Problem
//!
//! fjall cuts a journal at the first entry that it cannot decode, silently, and goes on with the next one. For the torn end of
//! the newest journal that is right. But a flipped bit looks the same to it: the batches after the bit are lost, while tables
//! that were written to files since hold theirs. Such a state is a mixture of two moments.
//!
//! # Approach
//!
//! Journals are decoded here first, without their content, and the tables' files are compared with them. A journal that is
//! followed by another was synced whole, so it must be whole. The newest one is synced before a table is written to a file,
//! so no file may hold a batch that comes after its last one. If that holds, every table is at the moment of the last batch.
//! Sequence numbers, which fjall's checksums do not cover, must increase. And fjall must not have cut off anything that was
//! decoded here: it also decodes the content of entries.
//!
//! The format is fjall's third (`version` in its directory), which it cannot change without refusing ours.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::storage::Error;

const TRAILER: [u8; 4] = *b"FJL\x03";

// Tags of entries.
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;

/// What the journals of a database hold.
#[derive(Default)]
pub(super) struct Journals {
    /// Each journal with the position after its last whole batch. fjall may remove the files, so they are held open.
    files: Vec<(File, u64)>,
    /// The sequence number of the last batch.
    last: Option<u64>,
    /// Whether the newest journal ends within a batch.
    is_torn: bool,
}

impl Journals {
    /// Reads the journals in a database's directory. Fails if they are damaged.
    pub(super) fn read(dir: &Path) -> Result<Self, Error> {
        let mut found = Self::default();
        for path in paths(dir)? {
            let damaged = |reason| Error::corrupt(format!("{} ({reason})", path.display()));
            if found.is_torn {
                return Err(damaged("the journal before it is cut off"));
            }
            let file = File::open(&path)?;
            let mut journal = Journal { reader: BufReader::new(file.try_clone()?), at: 0 };
            let mut end = 0;
            loop {
                match journal.batch()? {
                    Batch::Whole(seqno) if found.last >= Some(seqno) => {
                        return Err(damaged("batches are out of order"));
                    }
                    Batch::Whole(seqno) => (found.last, end) = (Some(seqno), journal.at),
                    Batch::Torn => {
                        found.is_torn = true;
                        break;
                    }
                    Batch::None => break,
                }
            }
            found.files.push((file, end));
        }
        Ok(found)
    }

    /// Once fjall has read the journals: whether the tables, whose files hold batches up to these sequence numbers, are all
    /// at the moment of the last batch.
    pub(super) fn explain(&self, mut in_files: impl Iterator<Item = Option<u64>>) -> bool {
        if self.files.iter().any(|(file, end)| file.metadata().map_or(0, |metadata| metadata.len()) < *end) {
            return false;
        }
        // Without a batch, everything is in files; or the first one is torn, and nothing may be.
        (self.last.is_none() && !self.is_torn) || in_files.all(|highest| highest <= self.last)
    }
}

/// The journals of a database, from the oldest on.
fn paths(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse::<u64>().ok());
        paths.extend(number.map(|number| (number, path)));
    }
    paths.sort();
    Ok(paths.into_iter().map(|(_, path)| path).collect())
}

enum Batch {
    Whole(u64),
    /// Not a batch, nor the zeros that fill the rest of a journal.
    Torn,
    /// The journal has ended.
    None,
}

struct Journal {
    reader: BufReader<File>,
    /// Bytes taken so far.
    at: u64,
}

impl Journal {
    fn batch(&mut self) -> io::Result<Batch> {
        let tag = match self.take::<1>() {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Batch::None),
            tag => tag?,
        };
        match tag {
            [START] => match self.rest_of_batch() {
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
                batch => Ok(batch.ok().flatten().map_or(Batch::Torn, Batch::Whole)),
            },
            [0] if self.is_zero_from_here()? => Ok(Batch::None),
            _ => Ok(Batch::Torn),
        }
    }

    /// The sequence number of a batch; none if it is not one.
    fn rest_of_batch(&mut self) -> io::Result<Option<u64>> {
        let count = u32::from_le_bytes(self.take()?);
        let seqno = u64::from_le_bytes(self.take()?);
        for _ in 0..count {
            match self.take()? {
                [ITEM] => {
                    // The type of the value, its compression, and the table.
                    let _: [u8; 10] = self.take()?;
                    let key_bytes = u64::from(u16::from_le_bytes(self.take()?));
                    // The length of the value once it is decompressed.
                    let _: [u8; 4] = self.take()?;
                    let value_bytes = u64::from(u32::from_le_bytes(self.take()?));
                    self.skip(key_bytes + value_bytes)?;
                }
                [CLEAR] => drop(self.take::<8>()?),
                _ => return Ok(None),
            }
        }
        let ends = self.take()? == [END];
        // The checksum, which fjall compares itself.
        let _: [u8; 8] = self.take()?;
        Ok((ends && self.take()? == TRAILER).then_some(seqno))
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.reader.by_ref().take(bytes), &mut io::sink())?;
        self.at += skipped;
        if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn is_zero_from_here(&mut self) -> io::Result<bool> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = self.reader.read(&mut buffer)?;
            if count == 0 {
                return Ok(true);
            }
            if buffer.iter().take(count).any(|byte| *byte != 0) {
                return Ok(false);
            }
        }
    }
}
