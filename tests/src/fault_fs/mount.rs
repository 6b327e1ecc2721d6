//! The FUSE file system. Each call applies the matching fault, then acts on the disk.
//!
//! The kernel caches nothing: attributes and names expire at once, and files are opened for direct I/O. So processes see
//! the disk as it is, also after a power cut.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::content::PAGE_BYTES;
use super::disk::{Attributes, Disk, Ino};
use super::faults::{Effect, Faults, Operation};

/// Lifetime of names and attributes in the kernel's caches.
const NO_TIME: Duration = Duration::ZERO;

/// A disk and its faults.
pub(super) struct State {
    pub(super) disk: Disk,
    pub(super) faults: Faults,
}

impl State {
    fn effect(&mut self, operation: Operation, ino: Ino) -> Option<Effect> {
        let path = self.disk.path(ino);
        self.faults.effect_on(operation, &path)
    }

    /// Fails with EIO if a fault says so.
    fn check(&mut self, operation: Operation, ino: Ino) -> Result<(), Errno> {
        if self.effect(operation, ino) == Some(Effect::Fail) { Err(Errno::EIO) } else { Ok(()) }
    }
}

/// The file system. Clones share the disk.
#[derive(Clone)]
pub(super) struct Mounted(pub(super) Arc<Mutex<State>>);

impl Mounted {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Syncs an inode as the faults allow, and replies. A delayed sync meets the faults that there are at its end.
    fn sync(&self, ino: Ino, reply: ReplyEmpty) {
        let effect = self.state().effect(Operation::Sync, ino);
        let Some(Effect::Delay(delay)) = effect else { return self.end_sync(effect, ino, reply) };
        let this = self.clone();
        std::thread::spawn(move || {
            std::thread::sleep(delay);
            let effect = this.state().effect(Operation::Sync, ino);
            this.end_sync(effect, ino, reply);
        });
    }

    fn end_sync(&self, effect: Option<Effect>, ino: Ino, reply: ReplyEmpty) {
        match effect {
            Some(Effect::Fail) => reply.error(Errno::EIO),
            Some(Effect::Lie) => reply.ok(),
            Some(Effect::Delay(_)) | None => answer(self.state().disk.sync(ino), reply),
        }
    }
}

fn answer(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn file_attr(of: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(of.ino),
        size: of.bytes,
        blocks: of.allocated_bytes / 512,
        atime: of.modified,
        mtime: of.modified,
        ctime: of.modified,
        crtime: of.modified,
        kind: if of.is_directory { FileType::Directory } else { FileType::RegularFile },
        perm: if of.is_directory { 0o755 } else { 0o644 },
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: u32::try_from(PAGE_BYTES).unwrap(),
        flags: 0,
    }
}

fn entry(found: Result<Attributes, Errno>, reply: ReplyEntry) {
    match found {
        Ok(found) => reply.entry(&NO_TIME, &file_attr(&found), Generation(0)),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.state();
        entry(state.disk.lookup(parent.0, name).and_then(|ino| state.disk.attributes(ino)), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.state().disk.attributes(ino.0) {
            Ok(found) => reply.attr(&NO_TIME, &file_attr(&found)),
            Err(error) => reply.error(error),
        }
    }

    /// Sets the length. Owners, modes and times are accepted and ignored.
    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.state();
        let resized = match size {
            Some(bytes) => state.check(Operation::Write, ino.0).and_then(|()| state.disk.resize(ino.0, bytes)),
            None => Ok(()),
        };
        match resized.and_then(|()| state.disk.attributes(ino.0)) {
            Ok(found) => reply.attr(&NO_TIME, &file_attr(&found)),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let mut state = self.state();
        let made = state.disk.create(parent.0, name, true);
        entry(made.and_then(|ino| state.disk.attributes(ino)), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(self.state().disk.remove(parent.0, name, false), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(self.state().disk.remove(parent.0, name, true), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let may_replace = flags.is_empty();
        if !may_replace && flags != RenameFlags::RENAME_NOREPLACE {
            return reply.error(Errno::EINVAL);
        }
        answer(self.state().disk.rename((parent.0, name), (new_parent.0, new_name), may_replace), reply);
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let mut state = self.state();
        let made = state.disk.create(parent.0, name, false).and_then(|ino| {
            state.disk.open(ino)?;
            state.disk.attributes(ino)
        });
        match made {
            Ok(found) => {
                let flags = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&NO_TIME, &file_attr(&found), Generation(0), FileHandle(found.ino), flags);
            }
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.state().disk.open(ino.0) {
            Ok(()) => reply.opened(FileHandle(ino.0), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = self.state();
        let checked = state.check(Operation::Read, ino.0);
        match checked.and_then(|()| state.disk.read(ino.0, offset, usize::try_from(bytes).unwrap())) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.state();
        let checked = state.check(Operation::Write, ino.0);
        match checked.and_then(|()| state.disk.write(ino.0, offset, data)) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap()),
            Err(error) => reply.error(error),
        }
    }

    /// Called when a descriptor is closed. This makes nothing durable.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.state().disk.close(ino.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(ino.0, reply);
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(ino.0, reply);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = match self.state().disk.entries(ino.0) {
            Ok(entries) => entries,
            Err(error) => return reply.error(error),
        };
        for (index, (name, entry, is_directory)) in (1..).zip(entries) {
            let kind = if is_directory { FileType::Directory } else { FileType::RegularFile };
            if index > offset && reply.add(INodeNo(entry), index, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let state = self.state();
        let (all, free) = (state.disk.capacity_bytes / PAGE_BYTES, state.disk.free_bytes() / PAGE_BYTES);
        let page_bytes = u32::try_from(PAGE_BYTES).unwrap();
        reply.statfs(all, free, free, 0, 0, page_bytes, 255, page_bytes);
    }
}
