//! What Linux says about the pages of a memory: which of them were written to since they were mapped.
//!
//! Linux copies a page of a private mapping at the first write to it, and lists such copies on request (`PAGEMAP_SCAN`,
//! Linux 6.7). Where it does not, there is no [`PageMap`], and no instance is reset.
//!
//! A scan takes longer the larger the memory is, 3.5 µs for that of a small plugin. Counting page faults takes 0.6 µs. The
//! first write to a page always faults, so an unchanged fault count lets us skip the scan. The one exception is excluded by
//! [`forbid_huge_pages`]: Linux may merge small pages into a huge page, in a thread of its own, and a page that was never
//! written to is then writable without a fault.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::thread::{self, ThreadId};

use nix::sys::resource::getrusage;
use rustix::{ioctl, mm};

/// Runs of neighbouring pages that one request lists.
pub(super) const RUNS_MAX: usize = 64;

pub(super) struct PageMap(File);

/// The page faults of a thread since it started. Equal counts of one thread mean that it had none between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Faults {
    thread: ThreadId,
    count: i64,
}

/// A run of neighbouring pages: `struct page_region`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Pages {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of `linux/fs.h`.
#[derive(Default)]
#[repr(C)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const PAGEMAP_SCAN: ioctl::Opcode = ioctl::opcode::read_write::<Scan>(b'f', 16);
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

impl PageMap {
    /// Opens the page map, if the system can list pages.
    pub(super) fn open() -> io::Result<Self> {
        let map = Self(File::open("/proc/self/pagemap")?);
        map.written(0..0, &mut [Pages::default(); RUNS_MAX])?;
        Ok(map)
    }

    /// The pages of `range` (whole pages) that were written to since they were mapped, and the address up to which they are
    /// listed, which is before the end of `range` if there are more than [`RUNS_MAX`] runs. Pages of zeros are listed even if
    /// they were only read.
    pub(super) fn written<'a>(
        &self,
        range: Range<usize>,
        found: &'a mut [Pages; RUNS_MAX],
    ) -> io::Result<(&'a [Pages], usize)> {
        found.fill(Pages::default());
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            start: range.start as u64,
            end: range.end as u64,
            vec: found.as_mut_ptr().expose_provenance() as u64,
            vec_len: RUNS_MAX as u64,
            // Pages of a file, such as an initial memory, are as they were mapped.
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_FILE,
            // A page is swapped, to Linux, while it is moved in memory too.
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PFNZERO,
            ..Scan::default()
        };
        #[allow(unsafe_code, reason = "Linux offers no other way to ask")]
        // SAFETY: `Scan` is the argument type of this request; `vec` and `vec_len` describe an array that stays borrowed.
        // Linux reads its page tables, and writes to nothing else.
        unsafe {
            ioctl::ioctl(&self.0, ioctl::Updater::<PAGEMAP_SCAN, _>::new(&mut scan))?;
        }
        let count = found.iter().take_while(|pages| pages.end > 0).count();
        Ok((found.get(..count).unwrap_or_default(), scan.walk_end as usize))
    }
}

impl Pages {
    /// Whether the pages hold zeros: they were read only, or Linux has noticed that they are zero again.
    pub(super) fn are_zero(self) -> bool {
        self.categories & PAGE_IS_PFNZERO != 0
    }

    pub(super) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

pub(super) fn forbid_huge_pages(range: Range<*const u8>) -> io::Result<()> {
    #[allow(unsafe_code, reason = "Linux offers no other way")]
    // SAFETY: this changes how Linux keeps the memory, and nothing in it.
    match unsafe { advise(range, system::NO_HUGE_PAGES) } {
        // This Linux has no huge pages.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

/// Drops the pages of a mapping, so that Linux maps them anew when they are touched. A scan visits every page that was
/// touched: after a memory was read as a whole, all scans of its slot would take three times as long.
///
/// # Safety
///
/// The range is a private mapping, whose initial contents are all that is needed from now on. Nobody refers to its contents.
#[allow(unsafe_code, reason = "Linux offers no other way")]
pub(super) unsafe fn drop_pages(range: Range<*const u8>) {
    // SAFETY: as the caller guarantees.
    if let Err(error) = unsafe { advise(range, system::DROP) } {
        tracing::debug!(%error, "scans of pages take longer");
    }
}

impl Faults {
    /// `None` if the system does not count them.
    pub(super) fn of_this_thread() -> Option<Self> {
        let usage = getrusage(system::THREAD).ok()?;
        let count = usage.minor_page_faults().wrapping_add(usage.major_page_faults());
        Some(Self { thread: thread::current().id(), count })
    }
}

/// # Safety
///
/// Nobody relies on what the advice changes in the range.
#[allow(unsafe_code, reason = "Linux offers no other way")]
unsafe fn advise(range: Range<*const u8>, advice: mm::Advice) -> io::Result<()> {
    // SAFETY: as the caller guarantees.
    unsafe { Ok(mm::madvise(range.start.cast_mut().cast(), range.end.addr() - range.start.addr(), advice)?) }
}

#[cfg(target_os = "linux")]
mod system {
    pub(super) use nix::sys::resource::UsageWho::RUSAGE_THREAD as THREAD;
    pub(super) use rustix::mm::Advice::{LinuxDontNeed as DROP, LinuxNoHugepage as NO_HUGE_PAGES};
}

/// Stand-ins, which are never used: without Linux there is no [`PageMap`].
#[cfg(not(target_os = "linux"))]
mod system {
    pub(super) use nix::sys::resource::UsageWho::RUSAGE_SELF as THREAD;
    pub(super) use rustix::mm::Advice::{DontNeed as DROP, Normal as NO_HUGE_PAGES};
}

#[cfg(test)]
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "memory is mapped as wasmtime maps it")]
mod tests {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    use super::*;

    const BYTES: usize = 1 << 20;

    /// No system has larger pages, so bytes this far apart are in different pages.
    const APART: usize = 1 << 16;

    /// Calls `ask` with a mapping and its addresses.
    fn mapped<T>(ask: impl FnOnce(*mut u8, Range<usize>) -> T) -> T {
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: Linux chooses an unused address range, which is unmapped when nobody refers to it any more.
        unsafe {
            let start = mmap_anonymous(std::ptr::null_mut(), BYTES, flags, MapFlags::PRIVATE).unwrap();
            let memory = start.cast::<u8>().cast_const();
            forbid_huge_pages(memory..memory.add(BYTES)).unwrap();
            let answer = ask(start.cast(), start.addr()..start.addr() + BYTES);
            munmap(start, BYTES).unwrap();
            answer
        }
    }

    #[test]
    fn the_first_write_to_a_page_faults_and_is_listed() {
        let map = PageMap::open().unwrap();
        mapped(|memory, range| {
            let mut found = [Pages::default(); RUNS_MAX];
            assert_eq!(map.written(range.clone(), &mut found).unwrap(), (&[][..], range.end));
            // SAFETY: this is in the mapping.
            let write = |number: usize| unsafe { memory.add(number * APART).write_volatile(1) };
            let told = |numbers: &[usize], found: &mut _| {
                let (written, _) = map.written(range.clone(), found).unwrap();
                let starts: Vec<usize> = written.iter().map(|run| (run.range().start - range.start) / APART).collect();
                assert_eq!(starts, numbers);
            };
            let is_counted = |number: usize| {
                let before = Faults::of_this_thread().unwrap();
                write(number);
                Faults::of_this_thread() != Some(before)
            };
            assert!(is_counted(3));
            told(&[3], &mut found);
            // Linux may take a page away for a moment, which causes a fault more.
            assert!((0..10).any(|_| !is_counted(3)));
            told(&[3], &mut found);
            assert!(is_counted(7));
            told(&[3, 7], &mut found);
        });
    }

    #[test]
    fn a_mapping_without_huge_pages_is_marked_so() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return;
        }
        mapped(|_, range| {
            let mappings = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let ours = mappings.split_once(&format!("{:x}-", range.start)).unwrap().1;
            let flags = ours.lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
            assert!(flags.split_whitespace().any(|flag| flag == "nh"), "{flags}");
        });
    }
}
