//! A shortcut: while a thread had no page fault, it wrote to no new page, and the page map need not be scanned.
//!
//! A scan takes longer the larger the memory is, 3.5 µs for that of a small plugin. Counting faults takes 0.6 µs.
//!
//! The first write to a page always faults, with one exception: Linux may merge small pages into a huge page, in a thread of
//! its own, and a page that was never written to is then writable without a fault. [`forbid_huge_pages`] excludes that.

use std::io;
use std::ops::Range;

/// The number of page faults of a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Faults(i64);

impl Faults {
    /// The faults of the calling thread since it started; `None` if the system does not count them.
    #[cfg(target_os = "linux")]
    pub(super) fn of_this_thread() -> Option<Self> {
        use nix::sys::resource::{UsageWho, getrusage};

        let usage = getrusage(UsageWho::RUSAGE_THREAD).ok()?;
        Some(Self(usage.minor_page_faults().wrapping_add(usage.major_page_faults())))
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn of_this_thread() -> Option<Self> {
        None
    }
}

/// Forbids huge pages in a mapping.
pub(super) fn forbid_huge_pages(range: Range<*const u8>) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    #[allow(unsafe_code, reason = "Linux offers no other way")]
    // SAFETY: this changes how Linux keeps the memory, and nothing in it.
    let forbidden = unsafe {
        let advice = rustix::mm::Advice::LinuxNoHugepage;
        rustix::mm::madvise(range.start.cast_mut().cast(), range.end.addr() - range.start.addr(), advice)
    };
    #[cfg(target_os = "linux")]
    match forbidden {
        // `INVAL`: this Linux has no huge pages.
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = range;
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "memory is mapped as wasmtime maps it")]
mod tests {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

    use super::super::pages::{PageMap, Pages, RUNS_MAX};
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
                before != Faults::of_this_thread().unwrap()
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
