//! A disk in memory that distinguishes visible from durable data.
//!
//! Each file has a visible and a durable content. A sync makes the visible content durable. Changes since the last sync
//! are kept in order, so that a power cut can drop all of them or leave a torn prefix. Directories have visible and
//! durable entries in the same way. As in POSIX, a directory's entries are durable only after a sync of the directory.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::SystemTime;

use fuser::Errno;

use super::content::{Change, Content, PAGE_BYTES};

/// The number of an inode.
pub(super) type Ino = u64;

/// The root directory.
pub(super) const ROOT: Ino = 1;

/// What a power cut leaves of unsynced data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// Nothing.
    Lost,
    /// The first bytes written to each file since its last sync.
    Torn {
        /// Number of bytes.
        bytes: usize,
    },
}

/// The disk.
pub(super) struct Disk {
    inodes: BTreeMap<Ino, Inode>,
    next: Ino,
    /// Writes beyond this capacity fail.
    pub(super) capacity_bytes: u64,
}

struct Inode {
    parent: Ino,
    name: OsString,
    /// Whether a visible directory entry names it. Without one, it is kept while it is open or durably named.
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
    visible: Content,
    durable: Content,
    unsynced: Vec<Change>,
}

#[derive(Default)]
struct Directory {
    visible: BTreeMap<OsString, Ino>,
    durable: BTreeMap<OsString, Ino>,
}

/// The attributes of a file or directory.
pub(super) struct Attributes {
    pub(super) ino: Ino,
    pub(super) is_directory: bool,
    pub(super) bytes: u64,
    pub(super) allocated_bytes: u64,
    pub(super) modified: SystemTime,
}

impl Disk {
    pub(super) fn new(capacity_bytes: u64) -> Self {
        let root = Inode::new(ROOT, OsStr::new(""), Body::Directory(Directory::default()));
        Self { inodes: BTreeMap::from([(ROOT, root)]), next: ROOT + 1, capacity_bytes }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        let taken = self.inodes.values().filter(|inode| inode.linked || inode.open > 0);
        taken.map(|inode| inode.allocated_bytes()).sum()
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.capacity_bytes.saturating_sub(self.used_bytes())
    }

    /// Number of open file handles.
    pub(super) fn open_files(&self) -> usize {
        self.inodes.values().map(|inode| inode.open).sum()
    }

    pub(super) fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        let inode = self.inode(ino)?;
        let (is_directory, bytes) = match &inode.body {
            Body::File(file) => (false, file.visible.bytes),
            Body::Directory(_) => (true, PAGE_BYTES),
        };
        Ok(Attributes { ino, is_directory, bytes, allocated_bytes: inode.allocated_bytes(), modified: inode.modified })
    }

    /// The path relative to the root; for a removed file, its last one.
    pub(super) fn path(&self, ino: Ino) -> PathBuf {
        let mut names = Vec::new();
        let mut at = ino;
        while let (true, Some(inode)) = (at != ROOT, self.inodes.get(&at)) {
            names.push(&inode.name);
            at = inode.parent;
        }
        names.into_iter().rev().collect()
    }

    pub(super) fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Ino, Errno> {
        self.directory(parent)?.visible.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// The entries of a directory: names, inode numbers, and whether they are directories.
    pub(super) fn entries(&self, ino: Ino) -> Result<Vec<(OsString, Ino, bool)>, Errno> {
        let entries = self.directory(ino)?.visible.iter();
        let is_directory = |ino: &Ino| matches!(self.inodes.get(ino), Some(inode) if inode.is_directory());
        Ok(entries.map(|(name, ino)| (name.clone(), *ino, is_directory(ino))).collect())
    }

    pub(super) fn create(&mut self, parent: Ino, name: &OsStr, is_directory: bool) -> Result<Ino, Errno> {
        if self.directory(parent)?.visible.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let ino = self.next;
        self.next += 1;
        let body = if is_directory { Body::Directory(Directory::default()) } else { Body::File(File::default()) };
        self.inodes.insert(ino, Inode::new(parent, name, body));
        self.directory_mut(parent)?.visible.insert(name.to_owned(), ino);
        Ok(ino)
    }

    pub(super) fn remove(&mut self, parent: Ino, name: &OsStr, is_directory: bool) -> Result<(), Errno> {
        let ino = self.lookup(parent, name)?;
        let inode = self.inode(ino)?;
        match &inode.body {
            Body::Directory(_) if !is_directory => return Err(Errno::EISDIR),
            Body::File(_) if is_directory => return Err(Errno::ENOTDIR),
            Body::Directory(directory) if !directory.visible.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.directory_mut(parent)?.visible.remove(name);
        self.inode_mut(ino)?.linked = false;
        self.collect_garbage();
        Ok(())
    }

    pub(super) fn rename(
        &mut self,
        (parent, name): (Ino, &OsStr),
        (new_parent, new_name): (Ino, &OsStr),
        may_replace: bool,
    ) -> Result<(), Errno> {
        let ino = self.lookup(parent, name)?;
        match self.lookup(new_parent, new_name) {
            Ok(_) if !may_replace => return Err(Errno::EEXIST),
            Ok(replaced) if replaced == ino => return Ok(()),
            Ok(replaced) => {
                let is_directory = self.inode(replaced)?.is_directory();
                self.remove(new_parent, new_name, is_directory)?;
            }
            Err(_) => {}
        }
        self.directory_mut(parent)?.visible.remove(name);
        self.directory_mut(new_parent)?.visible.insert(new_name.to_owned(), ino);
        let inode = self.inode_mut(ino)?;
        (inode.parent, inode.name) = (new_parent, new_name.to_owned());
        Ok(())
    }

    pub(super) fn open(&mut self, ino: Ino) -> Result<(), Errno> {
        self.inode_mut(ino)?.open += 1;
        Ok(())
    }

    pub(super) fn close(&mut self, ino: Ino) {
        if let Ok(inode) = self.inode_mut(ino) {
            inode.open = inode.open.saturating_sub(1);
        }
        self.collect_garbage();
    }

    pub(super) fn read(&self, ino: Ino, offset: u64, bytes: usize) -> Result<Vec<u8>, Errno> {
        Ok(self.file(ino)?.visible.read(offset, bytes))
    }

    /// Writes all of the data, or nothing if there is no space.
    pub(super) fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let free = self.free_bytes();
        let file = self.file_mut(ino)?;
        if file.visible.missing_bytes(offset, data.len()) > free {
            return Err(Errno::ENOSPC);
        }
        file.visible.write(offset, data);
        file.unsynced.push(Change::Write { offset, data: data.to_vec() });
        self.inode_mut(ino)?.modified = SystemTime::now();
        Ok(())
    }

    pub(super) fn resize(&mut self, ino: Ino, bytes: u64) -> Result<(), Errno> {
        let file = self.file_mut(ino)?;
        file.visible.resize(bytes);
        file.unsynced.push(Change::Resize { bytes });
        Ok(())
    }

    /// Makes the content of a file, or the entries of a directory, durable. A file's name is an entry of its directory.
    pub(super) fn sync(&mut self, ino: Ino) -> Result<(), Errno> {
        match &mut self.inode_mut(ino)?.body {
            Body::File(file) => {
                for change in file.unsynced.drain(..) {
                    file.durable.apply(&change);
                }
            }
            Body::Directory(directory) => directory.durable = directory.visible.clone(),
        }
        self.collect_garbage();
        Ok(())
    }

    /// Cuts the power: only durable data is left.
    pub(super) fn cut(&mut self, tail: Tail) {
        let mut links = Vec::new();
        for (ino, inode) in &mut self.inodes {
            (inode.linked, inode.open) = (*ino == ROOT, 0);
            match &mut inode.body {
                Body::File(file) => file.cut(tail),
                Body::Directory(directory) => {
                    directory.visible = directory.durable.clone();
                    links.extend(directory.visible.iter().map(|(name, entry)| (*entry, *ino, name.clone())));
                }
            }
        }
        for (entry, parent, name) in links {
            if let Some(inode) = self.inodes.get_mut(&entry) {
                (inode.linked, inode.parent, inode.name) = (true, parent, name);
            }
        }
        self.collect_garbage();
    }

    /// Drops inodes that are not open and not named, neither visibly nor durably.
    fn collect_garbage(&mut self) {
        let directories = self.inodes.values().filter_map(|inode| match &inode.body {
            Body::Directory(directory) => Some(directory),
            Body::File(_) => None,
        });
        let named: BTreeSet<Ino> = directories
            .flat_map(|directory| directory.visible.values().chain(directory.durable.values()))
            .copied()
            .collect();
        self.inodes.retain(|ino, inode| *ino == ROOT || inode.open > 0 || named.contains(ino));
    }

    fn inode(&self, ino: Ino) -> Result<&Inode, Errno> {
        self.inodes.get(&ino).ok_or(Errno::ENOENT)
    }

    fn inode_mut(&mut self, ino: Ino) -> Result<&mut Inode, Errno> {
        self.inodes.get_mut(&ino).ok_or(Errno::ENOENT)
    }

    fn file(&self, ino: Ino) -> Result<&File, Errno> {
        match &self.inode(ino)?.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Errno::EISDIR),
        }
    }

    fn file_mut(&mut self, ino: Ino) -> Result<&mut File, Errno> {
        match &mut self.inode_mut(ino)?.body {
            Body::File(file) => Ok(file),
            Body::Directory(_) => Err(Errno::EISDIR),
        }
    }

    fn directory(&self, ino: Ino) -> Result<&Directory, Errno> {
        match &self.inode(ino)?.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn directory_mut(&mut self, ino: Ino) -> Result<&mut Directory, Errno> {
        match &mut self.inode_mut(ino)?.body {
            Body::Directory(directory) => Ok(directory),
            Body::File(_) => Err(Errno::ENOTDIR),
        }
    }
}

impl Inode {
    fn new(parent: Ino, name: &OsStr, body: Body) -> Self {
        Self { parent, name: name.to_owned(), linked: true, open: 0, modified: SystemTime::now(), body }
    }

    fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }

    fn allocated_bytes(&self) -> u64 {
        match &self.body {
            Body::File(file) => file.visible.allocated_bytes(),
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
        self.visible = self.durable.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(disk: &mut Disk, name: &str) -> Ino {
        disk.create(ROOT, OsStr::new(name), false).unwrap()
    }

    fn read(disk: &Disk, ino: Ino) -> Vec<u8> {
        disk.read(ino, 0, 100_000).unwrap()
    }

    #[test]
    fn unsynced_data_is_lost_in_a_power_cut() {
        let mut disk = Disk::new(1 << 20);
        let ino = file(&mut disk, "f");
        disk.sync(ROOT).unwrap();
        disk.write(ino, 0, b"kept").unwrap();
        disk.sync(ino).unwrap();
        disk.write(ino, 2, b"xx lost").unwrap();
        assert_eq!(read(&disk, ino), b"kexx lost");
        disk.cut(Tail::Lost);
        assert_eq!(read(&disk, ino), b"kept");
    }

    #[test]
    fn a_torn_tail_is_a_prefix_of_the_unsynced_writes() {
        let mut disk = Disk::new(1 << 20);
        let ino = file(&mut disk, "f");
        disk.sync(ROOT).unwrap();
        disk.resize(ino, 10_000).unwrap();
        disk.sync(ino).unwrap();
        disk.write(ino, 0, b"first").unwrap();
        disk.write(ino, 5_000, b"second").unwrap();
        disk.cut(Tail::Torn { bytes: 8 });
        let found = read(&disk, ino);
        assert_eq!((found.len(), &found[..5], &found[5_000..5_006]), (10_000, &b"first"[..], &b"sec\0\0\0"[..]));
    }

    #[test]
    fn names_are_durable_once_their_directory_is_synced() {
        let mut disk = Disk::new(1 << 20);
        let ino = file(&mut disk, "old");
        disk.write(ino, 0, b"old").unwrap();
        disk.sync(ino).unwrap();
        disk.sync(ROOT).unwrap();
        let new = file(&mut disk, "new");
        disk.write(new, 0, b"new").unwrap();
        disk.sync(new).unwrap();
        disk.rename((ROOT, OsStr::new("new")), (ROOT, OsStr::new("old")), true).unwrap();
        assert_eq!(read(&disk, disk.lookup(ROOT, OsStr::new("old")).unwrap()), b"new");
        disk.cut(Tail::Lost);
        assert_eq!(read(&disk, disk.lookup(ROOT, OsStr::new("old")).unwrap()), b"old");
        assert!(disk.lookup(ROOT, OsStr::new("new")).is_err());
        assert!(disk.attributes(new).is_err(), "an unreachable inode is dropped");
    }

    #[test]
    fn space_is_counted_in_pages_and_released() {
        let mut disk = Disk::new(2 * PAGE_BYTES);
        let ino = file(&mut disk, "f");
        disk.resize(ino, 1 << 30).unwrap();
        assert_eq!(disk.used_bytes(), 0);
        disk.write(ino, PAGE_BYTES - 1, b"ab").unwrap();
        assert_eq!(disk.free_bytes(), 0);
        assert!(disk.write(ino, 9 * PAGE_BYTES, b"c").is_err());
        disk.write(ino, 0, b"c").unwrap();
        disk.resize(ino, 0).unwrap();
        assert_eq!(disk.free_bytes(), 2 * PAGE_BYTES);
    }

    #[test]
    fn a_removed_file_stays_while_it_is_open() {
        let mut disk = Disk::new(1 << 20);
        let ino = file(&mut disk, "f");
        disk.open(ino).unwrap();
        disk.write(ino, 0, b"x").unwrap();
        disk.remove(ROOT, OsStr::new("f"), false).unwrap();
        assert_eq!((read(&disk, ino), disk.used_bytes()), (b"x".to_vec(), PAGE_BYTES));
        disk.close(ino);
        assert!(disk.attributes(ino).is_err());
        assert_eq!(disk.used_bytes(), 0);
    }
}
