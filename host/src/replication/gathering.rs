//! When the next round of writes is made: at once, or after the writers of the last one have come back.
//!
//! Without it, the writers of a busy node fall into two halves: one half waits in the queue while the other is in flight. Each
//! round then has half the writes that it could have, and each write waits for two rounds. So when a round ends, the next one
//! waits a moment for the writers that were just answered: most clients send the next write at once. Fewer and larger rounds
//! cost less, since a round costs the same entry in the log, syncs and messages however many writes it has. A writer that was
//! alone in the last round does not wait.
//!
//! Writers that do not come back must cost the others little. Each time in vain doubles the number of rounds that are made
//! without waiting.

use std::time::Duration;

/// Longest wait for the writers of the last round.
pub(super) const GATHER_MAX: Duration = Duration::from_millis(2);

/// Most rounds that are made without waiting, once waiting was in vain.
const SKIPPED_MAX: u32 = 64;

/// Whether waiting has paid so far.
pub(super) struct Gathering {
    /// Writes of the last round.
    last: usize,
    /// Rounds to make before the next attempt.
    skip: u32,
    /// Rounds to skip after the next wait in vain.
    next_skip: u32,
}

impl Gathering {
    pub(super) fn new() -> Self {
        Self { last: 0, skip: 0, next_skip: 1 }
    }

    /// The number of writes to wait for, after a round has ended while `waiting` writes are queued; none if the next round should
    /// be made at once. Not all writers of a round need to come back.
    pub(super) fn wanted(&mut self, waiting: usize) -> Option<usize> {
        if waiting == 0 && self.last <= 1 {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        Some(waiting + self.last - self.last / 4)
    }

    /// Records whether the writers came.
    pub(super) fn note(&mut self, have_come: bool) {
        match have_come {
            true => self.next_skip = 1,
            false => {
                self.skip = self.next_skip;
                self.next_skip = (2 * self.next_skip).min(SKIPPED_MAX);
            }
        }
    }

    /// Records the number of writes of the round that is made.
    pub(super) fn made(&mut self, writes: usize) {
        self.last = writes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_round_waits_for_most_writers_of_the_last_one() {
        let mut gathering = Gathering::new();
        gathering.made(20);
        assert_eq!(gathering.wanted(7), Some(7 + 15));
    }

    #[test]
    fn rounds_that_waited_in_vain_are_followed_by_more_and_more_that_do_not_wait() {
        let mut gathering = Gathering::new();
        let mut skipped = Vec::new();
        for _ in 0..9 {
            gathering.note(false);
            skipped.push(std::iter::repeat_with(|| gathering.wanted(1)).take_while(Option::is_none).count());
        }
        assert_eq!(skipped, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
        gathering.note(true);
        assert!(gathering.wanted(1).is_some());
        gathering.note(false);
        assert_eq!([gathering.wanted(1), gathering.wanted(1)], [None, Some(1)]);
    }
}
