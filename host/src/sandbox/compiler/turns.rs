//! Whose turn it is to compile.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::super::error::Error;
use super::options::{CompileOptions, Priority};
use crate::limits;

/// Interval at which one that waits looks whether it was cancelled.
const CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// The compilers of a node that run, and those that wait.
#[derive(Default)]
pub(in crate::sandbox) struct Turns {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Default)]
struct State {
    /// What is being compiled for a deployment, by its key in the cache.
    running: HashSet<String>,
    waiting: usize,
}

/// A turn, which ends when it is dropped.
pub(in crate::sandbox) struct Turn<'a> {
    turns: &'a Turns,
    /// `None` for the compilers that writes wait for, which take no slot. Only one task of a node starts those.
    key: Option<String>,
}

impl Turns {
    /// Waits until few compile, and nobody compiles the same.
    pub(in crate::sandbox) fn take(
        &self,
        key: &str,
        options: &CompileOptions,
        deadline: Instant,
    ) -> Result<Turn<'_>, Error> {
        if options.priority == Priority::Serving {
            return Ok(Turn { turns: self, key: None });
        }
        let mut state = self.state.lock();
        if state.waiting >= limits::COMPILES_WAITING_MAX {
            return Err(Error::Busy);
        }
        state.waiting += 1;
        let waited = loop {
            if let Err(error) = options.check() {
                break Err(error);
            }
            if state.running.len() < limits::COMPILERS_MAX && !state.running.contains(key) {
                state.running.insert(key.to_owned());
                break Ok(Turn { turns: self, key: Some(key.to_owned()) });
            }
            if Instant::now() >= deadline {
                break Err(Error::CompileDeadline);
            }
            self.ended.wait_for(&mut state, CHECK_INTERVAL);
        };
        state.waiting -= 1;
        waited
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.turns.state.lock().running.remove(key);
            self.turns.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    #[test]
    fn few_compile_at_once_and_never_the_same() {
        let (turns, options) = (Turns::default(), CompileOptions::default());
        let first = turns.take("a", &options, soon()).unwrap_or_else(|error| panic!("{error}"));
        assert!(matches!(turns.take("a", &options, soon()), Err(Error::CompileDeadline)));
        let others: Vec<_> =
            (1..limits::COMPILERS_MAX).map(|key| turns.take(&key.to_string(), &options, soon())).collect();
        assert!(others.iter().all(Result::is_ok));
        assert!(matches!(turns.take("z", &options, soon()), Err(Error::CompileDeadline)));
        // One that writes wait for does not wait.
        let serving = CompileOptions { priority: Priority::Serving, ..CompileOptions::default() };
        assert!(turns.take("a", &serving, soon()).is_ok());
        drop(first);
        assert!(turns.take("a", &options, soon()).is_ok());
    }

    #[test]
    fn one_that_waits_can_be_cancelled_and_few_wait() {
        let turns = Turns::default();
        let options = CompileOptions::default();
        let running: Vec<_> =
            (0..limits::COMPILERS_MAX).map(|key| turns.take(&key.to_string(), &options, soon())).collect();
        let far = Instant::now() + Duration::from_secs(60);
        std::thread::scope(|scope| {
            let wait = || matches!(turns.take("a", &options, far), Err(Error::CompileCancelled));
            let waiting: Vec<_> = (0..limits::COMPILES_WAITING_MAX).map(|_| scope.spawn(wait)).collect();
            while turns.state.lock().waiting < limits::COMPILES_WAITING_MAX {
                std::thread::yield_now();
            }
            assert!(matches!(turns.take("b", &CompileOptions::default(), far), Err(Error::Busy)));
            options.cancelled.cancel();
            assert!(waiting.into_iter().all(|waiting| waiting.join().unwrap()));
        });
        drop(running);
    }
}
