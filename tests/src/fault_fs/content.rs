//! The bytes of one file: a sparse array of pages, and the changes made to it.

use std::collections::BTreeMap;
use std::ops::Range;

/// Unit of allocation, in bytes.
pub(super) const PAGE_BYTES: u64 = 4_096;

/// Sparse file content.
#[derive(Clone, Default)]
pub(super) struct Content {
    pub(super) bytes: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

/// A change of a file's content.
pub(super) enum Change {
    Write { offset: u64, data: Vec<u8> },
    Resize { bytes: u64 },
}

impl Change {
    pub(super) fn written_bytes(&self) -> usize {
        match self {
            Self::Write { data, .. } => data.len(),
            Self::Resize { .. } => 0,
        }
    }
}

impl Content {
    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, data } => self.write(*offset, data),
            Change::Resize { bytes } => self.resize(*bytes),
        }
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        u64::try_from(self.pages.len()).unwrap() * PAGE_BYTES
    }

    /// Bytes that a write to this range would allocate.
    pub(super) fn missing_bytes(&self, offset: u64, bytes: usize) -> u64 {
        let missing = pages(offset, bytes).filter(|(page, ..)| !self.pages.contains_key(page)).count();
        u64::try_from(missing).unwrap() * PAGE_BYTES
    }

    pub(super) fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let available = usize::try_from(self.bytes.saturating_sub(offset)).unwrap().min(bytes);
        let mut found = vec![0; available];
        for (page, at, range) in pages(offset, available) {
            if let Some(page) = self.pages.get(&page) {
                let length = range.len();
                found[range].copy_from_slice(&page[at..at + length]);
            }
        }
        found
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        for (page, at, range) in pages(offset, data.len()) {
            let page = self.pages.entry(page).or_insert_with(|| vec![0; page_bytes()].into_boxed_slice());
            page[at..at + range.len()].copy_from_slice(&data[range]);
        }
        self.bytes = self.bytes.max(offset + u64::try_from(data.len()).unwrap());
    }

    pub(super) fn resize(&mut self, bytes: u64) {
        if bytes < self.bytes {
            drop(self.pages.split_off(&bytes.div_ceil(PAGE_BYTES)));
            if let Some(last) = self.pages.get_mut(&(bytes / PAGE_BYTES)) {
                last[usize::try_from(bytes % PAGE_BYTES).unwrap()..].fill(0);
            }
        }
        self.bytes = bytes;
    }
}

fn page_bytes() -> usize {
    usize::try_from(PAGE_BYTES).unwrap()
}

/// The pages of a range. For each: its number, the offset in it, and the part of the range that it holds.
fn pages(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, usize, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        (done < bytes).then(|| {
            let position = offset + u64::try_from(done).unwrap();
            let at = usize::try_from(position % PAGE_BYTES).unwrap();
            let range = done..bytes.min(done + page_bytes() - at);
            done = range.end;
            (position / PAGE_BYTES, at, range)
        })
    })
}
