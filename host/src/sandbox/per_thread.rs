//! One copy of a value per thread, so that threads rarely write to the same cache line. Moving a cache line between
//! cores costs more than most updates of what is in it.

use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

/// Number of copies. With more threads than that, some threads share a copy.
const COPIES: usize = 16;

/// One `T` for each thread, or for a few threads.
#[derive(Default)]
pub(super) struct PerThread<T>([CachePadded<T>; COPIES]);

thread_local! {
    /// Index of this thread's copy.
    static INDEX: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % COPIES
    };
}

impl<T> PerThread<T> {
    /// The copy of this thread.
    pub(super) fn mine(&self) -> &T {
        let [first, ..] = &self.0;
        INDEX.with(|index| self.0.get(*index).unwrap_or(first))
    }

    /// All copies.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|copy| &**copy)
    }
}
