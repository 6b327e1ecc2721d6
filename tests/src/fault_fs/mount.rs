//! The disk as the kernel sees it: every call is looked up among the faults and then done on the disk.
//!
//! Nothing is cached by the kernel (attributes and names live for no time, files are read and written directly), so that
//! what a process sees is what is on this disk, also after a power cut.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use super::disk::{About, Disk, Number, PAGE_BYTES};
use super::faults::{Effect, Faults, Operation};

const NO_TIME: Duration = Duration::ZERO;

/// A disk and its faults.
pub(super) struct State {
    pub(super) disk: Disk,
    pub(super) faults: Faults,
}

impl State {
    fn effect(&mut self, operation: Operation, number: Number) -> Option<Effect> {
        let path = self.disk.path(number);
        self.faults.on(operation, &path)
    }

    /// Fails if the operation is to fail now.
    fn check(&mut self, operation: Operation, number: Number) -> Result<(), Errno> {
        if self.effect(operation, number) == Some(Effect::Fail) { Err(Errno::EIO) } else { Ok(()) }
    }
}

/// The file system. All clones are the same disk.
#[derive(Clone)]
pub(super) struct Mounted(pub(super) Arc<Mutex<State>>);

impl Mounted {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Syncs, now or after a while, and answers.
    fn sync(&self, number: Number, reply: ReplyEmpty) {
        let effect = self.state().effect(Operation::Sync, number);
        match effect {
            Some(Effect::Fail) => reply.error(Errno::EIO),
            Some(Effect::Lie) => reply.ok(),
            Some(Effect::Delay(delay)) => {
                let this = self.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(delay);
                    answer(this.state().disk.sync(number), reply);
                });
            }
            None => answer(self.state().disk.sync(number), reply),
        }
    }
}

fn answer(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn attributes(about: &About) -> FileAttr {
    FileAttr {
        ino: INodeNo(about.number),
        size: about.bytes,
        blocks: about.allocated_bytes / 512,
        atime: about.modified,
        mtime: about.modified,
        ctime: about.modified,
        crtime: about.modified,
        kind: if about.is_directory { FileType::Directory } else { FileType::RegularFile },
        perm: if about.is_directory { 0o755 } else { 0o644 },
        nlink: 1,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        rdev: 0,
        blksize: u32::try_from(PAGE_BYTES).unwrap(),
        flags: 0,
    }
}

fn entry(about: Result<About, Errno>, reply: ReplyEntry) {
    match about {
        Ok(about) => reply.entry(&NO_TIME, &attributes(&about), Generation(0)),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Mounted {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.state();
        entry(state.disk.lookup(parent.0, name).and_then(|number| state.disk.about(number)), reply);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.state().disk.about(number.0) {
            Ok(about) => reply.attr(&NO_TIME, &attributes(&about)),
            Err(error) => reply.error(error),
        }
    }

    /// Only the length can be set; owners, modes and times are accepted and forgotten.
    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
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
            Some(bytes) => state.check(Operation::Write, number.0).and_then(|()| state.disk.resize(number.0, bytes)),
            None => Ok(()),
        };
        match resized.and_then(|()| state.disk.about(number.0)) {
            Ok(about) => reply.attr(&NO_TIME, &attributes(&about)),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        let mut state = self.state();
        let made = state.disk.create(parent.0, name, true);
        entry(made.and_then(|number| state.disk.about(number)), reply);
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
        let made = state.disk.create(parent.0, name, false).and_then(|number| {
            state.disk.open(number)?;
            state.disk.about(number)
        });
        match made {
            Ok(about) => {
                let flags = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&NO_TIME, &attributes(&about), Generation(0), FileHandle(about.number), flags);
            }
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.state().disk.open(number.0) {
            Ok(()) => reply.opened(FileHandle(number.0), FopenFlags::FOPEN_DIRECT_IO),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut state = self.state();
        let checked = state.check(Operation::Read, number.0);
        match checked.and_then(|()| state.disk.read(number.0, offset, usize::try_from(bytes).unwrap())) {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut state = self.state();
        let checked = state.check(Operation::Write, number.0);
        match checked.and_then(|()| state.disk.write(number.0, offset, data)) {
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap()),
            Err(error) => reply.error(error),
        }
    }

    /// Called when a descriptor is closed. Closing makes nothing durable.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.state().disk.close(number.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(number.0, reply);
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.sync(number.0, reply);
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let entries = match self.state().disk.entries(number.0) {
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
