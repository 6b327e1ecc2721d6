//! Waiting for a state that a cluster reaches by itself.

use std::time::{Duration, Instant};

/// Pause between two checks.
const INTERVAL: Duration = Duration::from_millis(20);

/// Calls `check` until it returns a value. Panics with `what` after `limit`.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(began.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(INTERVAL).await;
    }
}
