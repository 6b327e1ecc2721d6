//! The schedule of a client: when its requests are due, whatever the answers take.

use std::time::Duration;

use tokio::time::Instant;

/// The times at which one of several clients sends. They are evenly spaced, and those of different clients alternate.
pub(super) struct Pace {
    due: Instant,
    interval: Duration,
    timer: timer::Timer,
}

impl Pace {
    /// The schedule of the client `number` of `clients` that together send `rate` requests per second from `start` on.
    pub(super) fn new(rate: u64, clients: usize, number: usize, start: Instant) -> std::io::Result<Self> {
        let interval = Duration::from_secs_f64(clients as f64 / rate as f64);
        let due = start + interval.mul_f64(number as f64 / clients as f64);
        Ok(Self { due, interval, timer: timer::Timer::new()? })
    }

    /// Waits until the next request is due, and returns when that was. Returns at once if it is late.
    pub(super) async fn next(&mut self) -> std::io::Result<Instant> {
        let due = self.due;
        self.due += self.interval;
        if due > Instant::now() {
            self.timer.sleep_until(due).await?;
        }
        Ok(due)
    }

    /// The number of requests that are due before a time, from the next one on.
    pub(super) fn due_until(&self, until: Instant) -> u64 {
        let left = until.saturating_duration_since(self.due).as_secs_f64();
        (left / self.interval.as_secs_f64()).ceil() as u64
    }
}

/// A timer of the kernel, exact to about 50 µs. Those of tokio have a resolution of a millisecond, as much as a write takes.
#[cfg(target_os = "linux")]
mod timer {
    use std::os::fd::OwnedFd;

    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
    };
    use tokio::io::unix::AsyncFd;
    use tokio::time::Instant;

    pub(super) struct Timer(AsyncFd<OwnedFd>);

    impl Timer {
        #[expect(
            deprecated,
            reason = "its successor is unsafe, since a file may be closed while it is registered; an OwnedFd is not"
        )]
        pub(super) fn new() -> std::io::Result<Self> {
            let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
            Ok(Self(AsyncFd::new(timer)?))
        }

        pub(super) async fn sleep_until(&mut self, due: Instant) -> std::io::Result<()> {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Zero would disarm the timer.
                return Ok(());
            }
            let it_value = Timespec::try_from(left).map_err(std::io::Error::other)?;
            let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
            // Setting the timer also takes back that it was readable.
            timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value })?;
            self.0.readable().await?.clear_ready();
            Ok(())
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod timer {
    use tokio::time::Instant;

    pub(super) struct Timer;

    impl Timer {
        pub(super) fn new() -> std::io::Result<Self> {
            Ok(Self)
        }

        pub(super) async fn sleep_until(&mut self, due: Instant) -> std::io::Result<()> {
            tokio::time::sleep_until(due).await;
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_are_due_at_fixed_times_whatever_the_answers_take() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(1_000, 2, 1, start).unwrap();
        assert_eq!(pace.due_until(at(11)), 5);
        assert_eq!(pace.next().await.unwrap(), at(1));
        assert!(Instant::now() >= at(1));
        std::thread::sleep(Duration::from_millis(10));
        // Late ones follow each other at once, with the times at which they were due.
        for due in [3, 5, 7, 9] {
            assert_eq!(pace.next().await.unwrap(), at(due));
        }
        for due in [101, 103].map(at) {
            while pace.next().await.unwrap() < due {}
            assert!(Instant::now() >= due);
        }
        assert_eq!(pace.due_until(start), 0);
    }
}
