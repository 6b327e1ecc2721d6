//! The machine's clocks: the only file that reads wall time.
//!
//! Wall time is for people and for the time that a leader gives to a round. It may step in either direction; waits, deadlines and
//! leases use monotonic time (`std::time::Instant`, `tokio::time::Instant`). Monotonic time stands still while the machine is
//! suspended, and [`Clock::uptime`] goes on.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// The clocks of a node that decide something. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Clocks>);

/// The clocks of a machine.
pub trait Clocks: Send + Sync {
    /// Wall time, in milliseconds since the Unix epoch. It may step.
    fn unix_ms(&self) -> u64;

    /// Time since an arbitrary moment before the node started. Nobody sets it, and it goes on while the machine is suspended.
    fn uptime(&self) -> Duration;
}

impl Clock {
    /// The system's clocks.
    pub fn system() -> Self {
        Self::new(Arc::new(System))
    }

    /// A machine's clocks.
    pub fn new(clocks: Arc<dyn Clocks>) -> Self {
        Self(clocks)
    }

    /// Wall time, in milliseconds since the Unix epoch. It may step.
    pub fn unix_ms(&self) -> u64 {
        self.0.unix_ms()
    }

    /// Time since an arbitrary moment before the node started. Nobody sets it, and it goes on while the machine is suspended.
    pub fn uptime(&self) -> Duration {
        self.0.uptime()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.unix_ms())
    }
}

struct System;

impl Clocks for System {
    fn unix_ms(&self) -> u64 {
        unix_ms()
    }

    fn uptime(&self) -> Duration {
        // It fails on no kernel that the other parts run on; a clock that stands still would show no suspension.
        clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptime_advances_as_monotonic_time_does() {
        let (clock, began) = (Clock::system(), std::time::Instant::now());
        let uptime = clock.uptime();
        std::thread::sleep(Duration::from_millis(20));
        let (passed, elapsed) = (clock.uptime() - uptime, began.elapsed());
        assert!(passed >= Duration::from_millis(20) && passed <= elapsed, "{passed:?} of {elapsed:?}");
    }
}
