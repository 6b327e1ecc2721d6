//! Reset instances that wait for the next calls of their component, one for each thread. A call for which none waits starts
//! a new one.

use parking_lot::Mutex;

use super::super::host_state::HostReads;
use super::super::ticker::PerThread;
use super::Instance;
use super::reset::Resetter;

pub(crate) struct Pool<R: 'static> {
    resetter: Resetter,
    /// Each lock protects the instance that waits for the thread, while it is taken or put.
    waiting: PerThread<Mutex<Option<Instance<R>>>>,
}

impl<R: HostReads> Pool<R> {
    pub(crate) fn new(resetter: Resetter) -> Self {
        Self { resetter, waiting: PerThread::default() }
    }

    pub(crate) fn take(&self) -> Option<Instance<R>> {
        self.waiting.mine().try_lock()?.take()
    }

    /// Resets an instance, to wait for this thread's next call. Drops it if it cannot be reset, or if another one waits.
    pub(crate) fn put(&self, mut instance: Instance<R>) {
        let Some(mut waiting) = self.waiting.mine().try_lock() else { return };
        if waiting.is_some() {
            return;
        }
        match self.resetter.reset(&mut instance) {
            Ok(true) => *waiting = Some(instance),
            Ok(false) => {}
            Err(error) => tracing::debug!(error = format!("{error:#}"), "a plugin instance was not reset"),
        }
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.iter().filter(|waiting| waiting.lock().is_some()).count()
    }
}
