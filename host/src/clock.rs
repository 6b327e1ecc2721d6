//! Wall time: the only file that reads it.
//!
//! Wall time is for people and for the time that a leader gives to a round. It may step in either direction; waits, deadlines and
//! leases use monotonic time (`std::time::Instant`, `tokio::time::Instant`).

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// The wall time that decides something: a leader's, for the rounds that it proposes. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Clock {
    /// The system's clock.
    pub fn system() -> Self {
        Self::new(unix_ms)
    }

    /// A clock that shows this time, in milliseconds since the Unix epoch.
    pub fn new(unix_ms: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(unix_ms))
    }

    /// The time in milliseconds since the Unix epoch.
    pub fn unix_ms(&self) -> u64 {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.unix_ms())
    }
}

/// The system's wall time.
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// The system's wall time as milliseconds since the Unix epoch; 0 if it is set to a time before it.
pub fn unix_ms() -> u64 {
    let since_epoch = now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}
