//! Which pages of a range of memory were written to since they were mapped.
//!
//! Linux copies a page of a private mapping at the first write to it, and lists such copies on request (`PAGEMAP_SCAN`,
//! Linux 6.7). Where it does not, there is no [`PageMap`].

use std::fs::File;
use std::io;
use std::ops::Range;

/// Runs of neighbouring pages that one request lists.
pub(super) const RUNS_MAX: usize = 64;

/// The page map of this process.
pub(super) struct PageMap(File);

/// A run of neighbouring pages.
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
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PFNZERO,
            ..Scan::default()
        };
        self.ask(&mut scan)?;
        let count = found.iter().take_while(|pages| pages.end > 0).count();
        Ok((found.get(..count).unwrap_or_default(), scan.walk_end as usize))
    }

    #[cfg(target_os = "linux")]
    #[allow(unsafe_code, reason = "Linux offers no other way to ask")]
    fn ask(&self, scan: &mut Scan) -> io::Result<()> {
        const PAGEMAP_SCAN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<Scan>(b'f', 16);
        // SAFETY: `Scan` is the argument type of this request; `vec` and `vec_len` describe an array that stays borrowed.
        // Linux reads its page tables, and writes to nothing else.
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

impl Pages {
    /// Whether the pages hold zeros: they were read only, or Linux has noticed that they are zero again.
    pub(super) fn are_zero(self) -> bool {
        self.categories & PAGE_IS_PFNZERO != 0
    }

    /// The addresses of the pages.
    pub(super) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
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
    #[cfg(target_os = "linux")]
    // SAFETY: as the caller guarantees.
    let dropped = unsafe {
        let advice = rustix::mm::Advice::LinuxDontNeed;
        rustix::mm::madvise(range.start.cast_mut().cast(), range.end.addr() - range.start.addr(), advice)
    };
    #[cfg(target_os = "linux")]
    if let Err(error) = dropped {
        tracing::debug!(%error, "scans of pages take longer");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = range;
}
