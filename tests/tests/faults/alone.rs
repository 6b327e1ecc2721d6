//! Mutual exclusion of the tests in this crate: they measure time, so that they must not run at the same time.

use tokio::sync::{Mutex, MutexGuard};

static ALONE: Mutex<()> = Mutex::const_new(());

/// Waits until no other test of this crate runs. The test must keep the guard until its end.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}
