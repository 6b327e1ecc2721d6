//! Wall time: the only file that reads it.
//!
//! Wall time is for people and for the timestamps of a proposal. It may step in either direction; waits, deadlines and
//! leases use monotonic time (`std::time::Instant`, `tokio::time::Instant`).

use std::time::{SystemTime, UNIX_EPOCH};

/// The system's wall time.
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// The system's wall time as milliseconds since the Unix epoch; 0 if it is set to a time before it.
pub fn unix_ms() -> u64 {
    let since_epoch = now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
