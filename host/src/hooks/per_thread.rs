//! A few copies of something, which threads take in turn: those that call at the same time hardly ever meet at one, and
//! passing a line of memory from core to core costs more than most of what is done with it.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

/// Copies. Beyond so many threads some share one.
pub(super) const COPIES: usize = 16;

/// One of these for each thread, or for a few of them.
#[derive(Default)]
pub(super) struct PerThread<T>([CachePadded<T>; COPIES]);

thread_local! {
    /// Which copy is this thread's.
    static MINE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % COPIES
    };
}

impl<T> PerThread<T> {
    /// The copy of this thread.
    pub(super) fn mine(&self) -> &T {
        let [first, ..] = &self.0;
        MINE.with(|mine| self.0.get(*mine).unwrap_or(first))
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|copy| &**copy)
    }
}
