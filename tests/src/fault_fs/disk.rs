//! A disk in memory that knows which part of it is durable.
//!
//! Every file has two contents: what readers see, and what the last sync left. What was written between the two is kept
//! in order, so that a power cut can take all of it or leave a torn part. Every directory has two lists of entries in the
//! same way. A directory's entries are durable once the directory itself is synced, not before: POSIX promises no more.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::SystemTime;

use fuser::Errno;

/// The number of a file or directory.
pub(super) type Number = u64;

/// The directory that is mounted.
pub(super) const ROOT: Number = 1;

/// What is allocated at once, in bytes.
pub(super) const PAGE_BYTES: u64 = 4_096;

/// What a power cut leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    Lost,
    /// Of each file, so many of the first bytes that were written since its last sync.
    Torn {
        /// How many.
        bytes: usize,
    },
}

/// The disk.
pub(super) struct Disk {
    nodes: BTreeMap<Number, Node>,
    next: Number,
    /// Beyond it nothing can be written.
    pub(super) capacity_bytes: u64,
}

struct Node {
    parent: Number,
    name: OsString,
    /// Whether it can be found by its name. What cannot is kept while it is open, or while a power cut would bring it back.
    linked: bool,
    open: usize,
    modified: SystemTime,
    body: Body,
}

enum Body {
    File(File),
    Directory(Directory),
}

#[derive(Default)]
struct File {
    seen: Content,
    durable: Content,
    unsynced: Vec<Change>,
}

#[derive(Default)]
struct Directory {
    seen: BTreeMap<OsString, Number>,
    durable: BTreeMap<OsString, Number>,
}

enum Change {
    Write { offset: u64, data: Vec<u8> },
    Resize { bytes: u64 },
}

/// Bytes with holes.
#[derive(Clone, Default)]
struct Content {
    bytes: u64,
    pages: BTreeMap<u64, Box<[u8]>>,
}

/// What there is to know of a file or directory.
pub(super) struct About {
    pub(super) number: Number,
    pub(super) is_directory: bool,
    pub(super) bytes: u64,
    pub(super) allocated_bytes: u64,
    pub(super) modified: SystemTime,
}

impl Disk {
    pub(super) fn new(capacity_bytes: u64) -> Self {
        let root = Node::new(ROOT, OsStr::new(""), Body::Directory(Directory::default()));
        Self { nodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1, capacity_bytes }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        let taken = self.nodes.values().filter(|node| node.linked || node.open > 0);
        taken.map(|node| node.allocated_bytes()).sum()
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.capacity_bytes.saturating_sub(self.used_bytes())
    }

    /// How many files are open.
    pub(super) fn open_files(&self) -> usize {
        self.nodes.values().map(|node| node.open).sum()
    }

    pub(super) fn about(&self, number: Number) -> Result<About, Errno> {
        let node = self.node(number)?;
        let (is_directory, bytes) = match &node.body {
            Body::File(file) => (false, file.seen.bytes),
            Body::Directory(_) => (true, PAGE_BYTES),
        };
        Ok(About { number, is_directory, bytes, allocated_bytes: node.allocated_bytes(), modified: node.modified })
    }

    /// The path below the mounted directory, as it is or last was.
    pub(super) fn path(&self, number: Number) -> PathBuf {
        let mut names = Vec::new();
        let mut at = number;
        while let (true, Some(node)) = (at != ROOT, self.nodes.get(&at)) {
            names.push(&node.name);
            at = node.parent;
        }
        names.into_iter().rev().collect()
    }

    pub(super) fn lookup(&self, parent: Number, name: &OsStr) -> Result<Number, Errno> {
        self.directory(parent)?.seen.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// The entries of a directory: names, numbers, and whether they are directories.
    pub(super) fn entries(&self, number: Number) -> Result<Vec<(OsString, Number, bool)>, Errno> {
        let entries = self.directory(number)?.seen.iter();
        let is_directory = |number: &Number| matches!(self.nodes.get(number), Some(node) if node.is_directory());
        Ok(entries.map(|(name, number)| (name.clone(), *number, is_directory(number))).collect())
    }

    pub(super) fn create(&mut self, parent: Number, name: &OsStr, is_directory: bool) -> Result<Number, Errno> {
        if self.directory(parent)?.seen.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let number = self.next;
        self.next += 1;
        let body = if is_directory { Body::Directory(Directory::default()) } else { Body::File(File::default()) };
        self.nodes.insert(number, Node::new(parent, name, body));
        self.directory_mut(parent)?.seen.insert(name.to_owned(), number);
        Ok(number)
    }

    pub(super) fn remove(&mut self, parent: Number, name: &OsStr, is_directory: bool) -> Result<(), Errno> {
        let number = self.lookup(parent, name)?;
        let node = self.node(number)?;
        match &node.body {
            Body::Directory(_) if !is_directory => return Err(Errno::EISDIR),
            Body::File(_) if is_directory => return Err(Errno::ENOTDIR),
            Body::Directory(directory) if !directory.seen.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.directory_mut(parent)?.seen.remove(name);
        self.node_mut(number)?.linked = false;
        self.collect();
        Ok(())
    }

    pub(super) fn rename(
        &mut self,
        (parent, name): (Number, &OsStr),
        (new_parent, new_name): (Number, &OsStr),
        may_replace: bool,
    ) -> Result<(), Errno> {
        let number = self.lookup(parent, name)?;
        match self.lookup(new_parent, new_name) {
            Ok(_) if !may_replace => return Err(Errno::EEXIST),
            Ok(replaced) if replaced == number => return Ok(()),
            Ok(replaced) => {
                let is_directory = self.node(replaced)?.is_directory();
                self.remove(new_parent, new_name, is_directory)?;
            }
            Err(_) => {}
        }
        self.directory_mut(parent)?.seen.remove(name);
        self.directory_mut(new_parent)?.seen.insert(new_name.to_owned(), number);
        let node = self.node_mut(number)?;
        (node.parent, node.name) = (new_parent, new_name.to_owned());
        Ok(())
    }

    pub(super) fn open(&mut self, number: Number) -> Result<(), Errno> {
        self.node_mut(number)?.open += 1;
        Ok(())
    }

    pub(super) fn close(&mut self, number: Number) {
        if let Ok(node) = self.node_mut(number) {
            node.open = node.open.saturating_sub(1);
        }
        self.collect();
    }

    pub(super) fn read(&self, number: Number, offset: u64, bytes: usize) -> Result<Vec<u8>, Errno> {
        Ok(self.file(number)?.seen.read(offset, bytes))
    }

    /// Writes all of it, or nothing if there is no space.
    pub(super) fn write(&mut self, number: Number, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let free = self.free_bytes();
        let file = self.file_mut(number)?;
        if file.seen.more_for(offset, data.len()) > free {
            return Err(Errno::ENOSPC);
        }
        file.seen.write(offset, data);
        file.unsynced.push(Change::Write { offset, data: data.to_vec() });
        self.node_mut(number)?.modified = SystemTime::now();
        Ok(())
    }

    pub(super) fn resize(&mut self, number: Number, bytes: u64) -> Result<(), Errno> {
        let file = self.file_mut(number)?;
        file.seen.resize(bytes);
        file.unsynced.push(Change::Resize { bytes });
        Ok(())
    }

    /// Makes what a file or directory holds durable. Its name is another matter: that is the directory's.
    pub(super) fn sync(&mut self, number: Number) -> Result<(), Errno> {
        match &mut self.node_mut(number)?.body {
            Body::File(file) => {
                for change in file.unsynced.drain(..) {
                    file.durable.apply(&change);
                }
            }
            Body::Directory(directory) => directory.durable = directory.seen.clone(),
        }
        self.collect();
        Ok(())
    }

    /// Cuts the power: what is durable is all there is.
    pub(super) fn cut(&mut self, tail: Tail) {
        let mut links = Vec::new();
        for (number, node) in &mut self.nodes {
            (node.linked, node.open) = (*number == ROOT, 0);
            match &mut node.body {
                Body::File(file) => file.cut(tail),
                Body::Directory(directory) => {
                    directory.seen = directory.durable.clone();
                    links.extend(directory.seen.iter().map(|(name, entry)| (*entry, *number, name.clone())));
                }
            }
        }
        for (entry, parent, name) in links {
            if let Some(node) = self.nodes.get_mut(&entry) {
                (node.linked, node.parent, node.name) = (true, parent, name);
            }
        }
        self.collect();
    }

    /// Forgets what nobody can reach any more, not even after a power cut.
    fn collect(&mut self) {
        let directories = self.nodes.values().filter_map(|node| match &node.body {
            Body::Directory(directory) => Some(directory),
            Body::File(_) => None,
        });
        let named: BTreeSet<Number> = directories
            .flat_map(|directory| directory.seen.values().chain(directory.durable.values()))
            .copied()
            .collect();
        self.nodes.retain(|number, node| *number == ROOT || node.open > 0 || named.contains(number));
    }

    fn node(&self, number: Number) -> Result<&Node, Errno> {
        self.nodes.get(&number).ok_or(Errno::ENOENT)
    }

    fn node_mut(&mut self, number: Number) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&number).ok_or(Errno::ENOENT)
    }

    fn file(&self, number: Number) -> Result<&File, Errno> {
        match &self.node(number)?.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Errno::EISDIR),
        }
    }

    fn file_mut(&mut self, number: Number) -> Result<&mut File, Errno> {
        match &mut self.node_mut(number)?.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Errno::EISDIR),
        }
    }

    fn directory(&self, number: Number) -> Result<&Directory, Errno> {
        match &self.node(number)?.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn directory_mut(&mut self, number: Number) -> Result<&mut Directory, Errno> {
        match &mut self.node_mut(number)?.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) => Err(Errno::ENOTDIR),
        }
    }
}

impl Node {
    fn new(parent: Number, name: &OsStr, body: Body) -> Self {
        Self { parent, name: name.to_owned(), linked: true, open: 0, modified: SystemTime::now(), body }
    }

    fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    fn allocated_bytes(&self) -> u64 {
        match &self.body {
            Body::File(file) => file.seen.allocated_bytes(),
            Body::Directory(_) => 0,
        }
    }
}

impl File {
    fn cut(&mut self, tail: Tail) {
        let mut left = match tail {
            Tail::Lost => 0,
            Tail::Torn { bytes } => bytes,
        };
        for change in std::mem::take(&mut self.unsynced) {
            if left == 0 {
                break;
            }
            if let Change::Write { offset, data } = &change
                && data.len() > left
            {
                self.durable.write(*offset, &data[..left]);
                break;
            }
            self.durable.apply(&change);
            left -= change.written_bytes();
        }
        self.seen = self.durable.clone();
    }
}

impl Change {
    fn written_bytes(&self) -> usize {
        match self {
            Self::Write { data, .. } => data.len(),
            Self::Resize { .. } => 0,
        }
    }
}

impl Content {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write { offset, data } => self.write(*offset, data),
            Change::Resize { bytes } => self.resize(*bytes),
        }
    }

    fn allocated_bytes(&self) -> u64 {
        u64::try_from(self.pages.len()).unwrap() * PAGE_BYTES
    }

    /// What writing there would allocate.
    fn more_for(&self, offset: u64, bytes: usize) -> u64 {
        let missing = pages(offset, bytes).filter(|(page, ..)| !self.pages.contains_key(page)).count();
        u64::try_from(missing).unwrap() * PAGE_BYTES
    }

    fn read(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let there = usize::try_from(self.bytes.saturating_sub(offset)).unwrap().min(bytes);
        let mut found = vec![0; there];
        for (page, at, range) in pages(offset, there) {
            if let Some(page) = self.pages.get(&page) {
                let length = range.len();
                found[range].copy_from_slice(&page[at..at + length]);
            }
        }
        found
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (page, at, range) in pages(offset, data.len()) {
            let page = self.pages.entry(page).or_insert_with(|| vec![0; page_bytes()].into_boxed_slice());
            page[at..at + range.len()].copy_from_slice(&data[range]);
        }
        self.bytes = self.bytes.max(offset + u64::try_from(data.len()).unwrap());
    }

    fn resize(&mut self, bytes: u64) {
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

/// The pages of a range: each page's number, where in it the range begins, and which part of the range it holds.
fn pages(offset: u64, bytes: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(disk: &mut Disk, name: &str) -> Number {
        disk.create(ROOT, OsStr::new(name), false).unwrap()
    }

    fn read(disk: &Disk, number: Number) -> Vec<u8> {
        disk.read(number, 0, 100_000).unwrap()
    }

    #[test]
    fn what_was_not_synced_is_lost_with_the_power() {
        let mut disk = Disk::new(1 << 20);
        let number = file(&mut disk, "f");
        disk.sync(ROOT).unwrap();
        disk.write(number, 0, b"kept").unwrap();
        disk.sync(number).unwrap();
        disk.write(number, 2, b"xx lost").unwrap();
        assert_eq!(read(&disk, number), b"kexx lost");
        disk.cut(Tail::Lost);
        assert_eq!(read(&disk, number), b"kept");
    }

    #[test]
    fn a_torn_tail_is_the_beginning_of_what_was_written() {
        let mut disk = Disk::new(1 << 20);
        let number = file(&mut disk, "f");
        disk.sync(ROOT).unwrap();
        disk.resize(number, 10_000).unwrap();
        disk.sync(number).unwrap();
        disk.write(number, 0, b"first").unwrap();
        disk.write(number, 5_000, b"second").unwrap();
        disk.cut(Tail::Torn { bytes: 8 });
        let found = read(&disk, number);
        assert_eq!((found.len(), &found[..5], &found[5_000..5_006]), (10_000, &b"first"[..], &b"sec\0\0\0"[..]));
    }

    #[test]
    fn names_are_durable_once_their_directory_is_synced() {
        let mut disk = Disk::new(1 << 20);
        let number = file(&mut disk, "old");
        disk.write(number, 0, b"old").unwrap();
        disk.sync(number).unwrap();
        disk.sync(ROOT).unwrap();
        let new = file(&mut disk, "new");
        disk.write(new, 0, b"new").unwrap();
        disk.sync(new).unwrap();
        disk.rename((ROOT, OsStr::new("new")), (ROOT, OsStr::new("old")), true).unwrap();
        assert_eq!(read(&disk, disk.lookup(ROOT, OsStr::new("old")).unwrap()), b"new");
        disk.cut(Tail::Lost);
        assert_eq!(read(&disk, disk.lookup(ROOT, OsStr::new("old")).unwrap()), b"old");
        assert!(disk.lookup(ROOT, OsStr::new("new")).is_err());
        assert!(disk.about(new).is_err(), "what nobody can reach is gone");
    }

    #[test]
    fn space_is_counted_by_pages_and_given_back() {
        let mut disk = Disk::new(2 * PAGE_BYTES);
        let number = file(&mut disk, "f");
        disk.resize(number, 1 << 30).unwrap();
        assert_eq!(disk.used_bytes(), 0);
        disk.write(number, PAGE_BYTES - 1, b"ab").unwrap();
        assert_eq!(disk.free_bytes(), 0);
        assert!(disk.write(number, 9 * PAGE_BYTES, b"c").is_err());
        disk.write(number, 0, b"c").unwrap();
        disk.resize(number, 0).unwrap();
        assert_eq!(disk.free_bytes(), 2 * PAGE_BYTES);
    }

    #[test]
    fn a_removed_file_stays_while_it_is_open() {
        let mut disk = Disk::new(1 << 20);
        let number = file(&mut disk, "f");
        disk.open(number).unwrap();
        disk.write(number, 0, b"x").unwrap();
        disk.remove(ROOT, OsStr::new("f"), false).unwrap();
        assert_eq!((read(&disk, number), disk.used_bytes()), (b"x".to_vec(), PAGE_BYTES));
        disk.close(number);
        assert!(disk.about(number).is_err());
        assert_eq!(disk.used_bytes(), 0);
    }
}
