//! Which pages of a range of memory are not what was mapped there.
//!
//! The system is asked (`PAGEMAP_SCAN`, Linux 6.7): it copies a page of a private mapping when it is first written to, and knows
//! which are such copies. Where it cannot be asked there is no [`PageMap`].
//!
//! To ask takes longer the larger the range is. That no page has become such a copy since is told by less: each is made in a page
//! fault of the thread that writes, and [`Faults`] are counted.

use std::fs::File;
use std::io;
use std::ops::Range;

/// Runs of neighbouring pages that are told at once.
pub(super) const RUNS_MAX: usize = 64;

/// The page map of this process.
pub(super) struct PageMap(File);

/// Neighbouring pages, by address.
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

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;

impl PageMap {
    /// Opens the page map, if the system can be asked.
    pub(super) fn open() -> io::Result<Self> {
        let map = Self(File::open("/proc/self/pagemap")?);
        map.written(0..0, &mut [Pages::default(); RUNS_MAX])?;
        Ok(map)
    }

    /// The pages of `range`, which begins and ends with one, that were written to since they were mapped, and how far it was
    /// looked at: at [`RUNS_MAX`] that is not to its end. Pages that were only read are not among them, but for those of zeros.
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
            // Of a file (an image is one): as it was mapped.
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_FILE,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PFNZERO,
            ..Scan::default()
        };
        self.ask(&mut scan)?;
        let count = found.iter().take_while(|pages| pages.end > 0).count();
        Ok((found.get(..count).unwrap_or_default(), scan.walk_end as usize))
    }

    #[cfg(target_os = "linux")]
    #[allow(unsafe_code, reason = "the system has no other way to tell")]
    fn ask(&self, scan: &mut Scan) -> io::Result<()> {
        const PAGEMAP_SCAN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<Scan>(b'f', 16);
        // SAFETY: the argument is the one of this request, and `vec` and `vec_len` are of an array that is borrowed meanwhile.
        // The system reads its own tables of pages, and writes to nothing else.
        unsafe {
            let request = rustix::ioctl::Updater::<PAGEMAP_SCAN, Scan>::new(scan);
            rustix::ioctl::ioctl(&self.0, request)?;
        }
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn ask(&self, _: &mut Scan) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// How many page faults a thread has had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Faults(i64);

impl Faults {
    /// Those of the thread that asks, since it started.
    #[cfg(target_os = "linux")]
    pub(super) fn of_this_thread() -> io::Result<Self> {
        use nix::sys::resource::{UsageWho, getrusage};

        let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
        Ok(Self(usage.minor_page_faults().wrapping_add(usage.major_page_faults())))
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn of_this_thread() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Has the system make no huge pages of the pages of a mapping: it does so in a thread of its own, and a page that nobody has
/// written to can then be written to without a fault.
pub(super) fn stay_small(range: Range<*const u8>) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    #[allow(unsafe_code, reason = "the system has no other way to be told")]
    // SAFETY: this changes nothing of what is in memory, only of how the system keeps it.
    let told = unsafe {
        let advice = rustix::mm::Advice::LinuxNoHugepage;
        rustix::mm::madvise(range.start.cast_mut().cast(), range.end.addr() - range.start.addr(), advice)
    };
    #[cfg(target_os = "linux")]
    match told {
        // It has no huge pages at all.
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = range;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Has the system forget that pages of a mapping were read or written to. A scan looks at each that was, so a memory that was
/// read as a whole would make all scans of its place take three times as long.
///
/// # Safety
///
/// The range is of a private mapping, which has what was mapped from then on and nothing else. Nobody refers to what is in it.
#[allow(unsafe_code, reason = "the system has no other way to be told")]
pub(super) unsafe fn forget(range: Range<*const u8>) {
    #[cfg(target_os = "linux")]
    // SAFETY: as the caller says.
    let told = unsafe {
        let advice = rustix::mm::Advice::LinuxDontNeed;
        rustix::mm::madvise(range.start.cast_mut().cast(), range.end.addr() - range.start.addr(), advice)
    };
    #[cfg(target_os = "linux")]
    if let Err(error) = told {
        tracing::debug!(%error, "scans of pages take longer");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = range;
}

impl Pages {
    /// Whether they hold zeros: they were read, or the system has seen that what was written is no more.
    pub(super) fn are_zero(self) -> bool {
        self.categories & PAGE_IS_PFNZERO != 0
    }

    /// Where they are.
    pub(super) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "memory is asked for as the engine does")]
mod tests {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    use super::*;

    const BYTES: usize = 1 << 20;

    /// No page of any system is larger, so that bytes so far apart are in two.
    const APART: usize = 1 << 16;

    /// A mapping, and where it is.
    fn mapped<T>(ask: impl FnOnce(*mut u8, Range<usize>) -> T) -> T {
        let flags = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the system chooses a place where nothing is, and it is given back when nobody refers to it any more.
        unsafe {
            let start = mmap_anonymous(std::ptr::null_mut(), BYTES, flags, MapFlags::PRIVATE).unwrap();
            let memory = start.cast::<u8>().cast_const();
            stay_small(memory..memory.add(BYTES)).unwrap();
            let answer = ask(start.cast(), start.addr()..start.addr() + BYTES);
            munmap(start, BYTES).unwrap();
            answer
        }
    }

    #[test]
    fn a_page_is_first_written_to_in_a_fault_and_told_of() {
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
                before != Faults::of_this_thread().unwrap()
            };
            assert!(is_counted(3));
            told(&[3], &mut found);
            // The system may take a page away for a moment, which is a fault more.
            assert!((0..10).any(|_| !is_counted(3)));
            told(&[3], &mut found);
            assert!(is_counted(7));
            told(&[3, 7], &mut found);
        });
    }

    #[test]
    fn a_mapping_that_is_to_stay_small_is_marked_so() {
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
