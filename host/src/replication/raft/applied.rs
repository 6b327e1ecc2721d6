//! The index of the last applied log entry, as a value to wait for.

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

/// The index of the last log entry that this node has applied.
pub(crate) struct Applied {
    index: watch::Sender<u64>,
    /// Wakes readers that wait for an index.
    ///
    /// IMPORTANT: readers do not wait on `index`: tokio's watch channel wakes its receivers in random order, and a
    /// simulation must take the same course each time. `Notify` wakes them in the order in which they began to wait.
    advanced: Notify,
}

impl Applied {
    pub(crate) fn new(index: u64) -> Self {
        Self { index: watch::Sender::new(index), advanced: Notify::new() }
    }

    /// The index as of now.
    pub(crate) fn index(&self) -> u64 {
        *self.index.borrow()
    }

    /// The index as it changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.index.subscribe()
    }

    /// Sets the index and wakes everyone who waits.
    pub(crate) fn advance(&self, index: u64) {
        self.index.send_replace(index);
        self.advanced.notify_waiters();
    }

    /// Waits until the index is at least `index`; false if the deadline comes first.
    pub(crate) async fn wait_for(&self, index: u64, deadline: Instant) -> bool {
        let reached = async {
            loop {
                // A change after this line is noticed, since the future was created before the index is read.
                let advanced = self.advanced.notified();
                if self.index() >= index {
                    return;
                }
                advanced.await;
            }
        };
        tokio::time::timeout_at(deadline, reached).await.is_ok()
    }
}
