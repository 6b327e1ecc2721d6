//! Writes that wait to be proposed, bounded in number and in bytes, and the rounds that are made of them.
//!
//! A write counts from the moment it is queued until its round has ended. On a leader, the rounds that other nodes forward
//! count too. A write that nobody waits for any more, because its deadline has passed or its client has left, is dropped as
//! long as it is certain that no node has appended it.

use std::collections::VecDeque;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::error::Error;
use super::types::{Round, RoundWrite};
use crate::limits::{
    ByteBudget, COMMAND_BYTES_MAX, HeldBytes, KEY_BYTES_MAX, PROPOSE_QUEUE_BYTES_MAX, PROPOSE_QUEUE_MAX,
    VALUE_BYTES_MAX,
};
use crate::storage::{Action, GuardedWrite, Operation, Outcome, Space};

/// Most writes in a proposal round.
pub(super) const ROUND_WRITES_MAX: usize = 1_024;

/// Most bytes of commands in a proposal round. A single larger write goes alone.
pub(super) const ROUND_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The outcome of a write, on its way to the caller.
pub(super) type Answer = oneshot::Receiver<Result<Outcome, Error>>;

/// The queue of a node.
pub(super) struct Queue {
    /// Oldest first.
    waiting: Mutex<VecDeque<Waiting>>,
    /// Wakes the task that makes rounds.
    arrived: Notify,
    budget: ByteBudget,
}

/// A write in the queue.
struct Waiting {
    write: RoundWrite,
    caller: Caller,
    held: HeldBytes,
}

/// Who waits for the outcome of a write.
pub(super) struct Caller {
    deadline: Instant,
    pub(super) queued: std::time::Instant,
    /// `None` once the caller has been told.
    reply: Option<oneshot::Sender<Result<Outcome, Error>>>,
}

impl Queue {
    pub(super) fn new() -> Self {
        let budget = ByteBudget::new(PROPOSE_QUEUE_BYTES_MAX);
        Self { waiting: Mutex::default(), arrived: Notify::new(), budget }
    }

    /// Room for so many bytes of commands; none if too many are queued or in flight.
    pub(super) fn reserve(&self, bytes: usize) -> Option<HeldBytes> {
        self.budget.take(bytes)
    }

    /// Queues a write; none if too many wait.
    pub(super) fn push(&self, write: RoundWrite, held: HeldBytes, deadline: Instant) -> Option<Answer> {
        let (reply, answer) = oneshot::channel();
        let caller = Caller { deadline, queued: std::time::Instant::now(), reply: Some(reply) };
        {
            let mut waiting = self.waiting.lock();
            if waiting.len() >= PROPOSE_QUEUE_MAX {
                return None;
            }
            waiting.push_back(Waiting { write, caller, held });
        }
        self.wake();
        Some(answer)
    }

    /// Returns once a write waits, or the queue was [woken](Self::wake).
    pub(super) async fn filled(&self) {
        if self.waiting.lock().is_empty() {
            self.arrived.notified().await;
        }
    }

    pub(super) fn wake(&self) {
        self.arrived.notify_one();
    }

    /// Drops the writes that nobody waits for. Callers whose deadline has passed are told `late`.
    pub(super) fn sweep(&self, late: impl Fn() -> Error) {
        let now = Instant::now();
        self.waiting.lock().retain_mut(|waiting| waiting.caller.waits_at(now, &late));
    }

    /// Takes the writes of the next round, oldest first; none if no write waits.
    pub(super) fn take_round(&self) -> Option<Proposal> {
        let mut waiting = self.waiting.lock();
        let Waiting { write, caller, mut held } = waiting.pop_front()?;
        let mut bytes = write.command.len();
        let (mut writes, mut callers) = (vec![write], vec![caller]);
        while writes.len() < ROUND_WRITES_MAX {
            let fits = |next: &Waiting| bytes + next.write.command.len() <= ROUND_BYTES_MAX;
            let Some(next) = waiting.front().is_some_and(fits).then(|| waiting.pop_front()).flatten() else { break };
            bytes += next.write.command.len();
            writes.push(next.write);
            callers.push(next.caller);
            held.merge(next.held);
        }
        Some(Proposal { round: Round { stamped_at_ms: None, writes }, callers, _held: held })
    }
}

impl Caller {
    /// Whether the caller still waits. If its deadline has passed, it is told `late`.
    fn waits_at(&mut self, now: Instant, late: impl FnOnce() -> Error) -> bool {
        let has_left = self.reply.as_ref().is_none_or(oneshot::Sender::is_closed);
        if has_left {
            self.reply = None;
        } else if self.deadline <= now {
            self.tell(Err(late()));
        }
        self.reply.is_some()
    }

    fn tell(&mut self, outcome: Result<Outcome, Error>) {
        if let Some(reply) = self.reply.take() {
            // Sending fails if the caller has left.
            let _ = reply.send(outcome);
        }
    }
}

/// A round with those who wait for the outcomes of its writes.
pub(super) struct Proposal {
    pub(super) round: Round,
    /// One for each write.
    pub(super) callers: Vec<Caller>,
    _held: HeldBytes,
}

impl Proposal {
    /// Bytes of the round's commands.
    pub(super) fn bytes(&self) -> u32 {
        let bytes: usize = self.round.writes.iter().map(|write| write.command.len()).sum();
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }

    /// Drops the writes that nobody waits for. Callers whose deadline has passed are told `late`. False if no write is left.
    pub(super) fn retain_waiting(&mut self, late: impl Fn() -> Error) -> bool {
        let now = Instant::now();
        let waits: Vec<bool> = self.callers.iter_mut().map(|caller| caller.waits_at(now, &late)).collect();
        if waits.contains(&false) {
            let (mut of_writes, mut of_callers) = (waits.iter(), waits.iter());
            self.round.writes.retain(|_| of_writes.next() == Some(&true));
            self.callers.retain(|_| of_callers.next() == Some(&true));
        }
        !self.callers.is_empty()
    }

    /// Tells each caller its outcome.
    pub(super) fn conclude(self, outcomes: Vec<Outcome>) {
        for (mut caller, outcome) in self.callers.into_iter().zip(outcomes) {
            caller.tell(Ok(outcome));
        }
    }

    /// Tells the callers why the round failed.
    pub(super) fn fail(self, error: &Error) {
        for mut caller in self.callers {
            caller.tell(Err(error.clone()));
        }
    }
}

/// Tells the callers whose deadline has passed that their writes may yet appear.
pub(super) fn tell_late(callers: &mut [Caller], in_doubt: impl Fn() -> Error) {
    let now = Instant::now();
    for caller in callers {
        caller.waits_at(now, &in_doubt);
    }
}

/// The first deadline of the callers that were not told yet, if there are any.
pub(super) fn first_deadline(callers: &[Caller]) -> Option<Instant> {
    callers.iter().filter(|caller| caller.reply.is_some()).map(|caller| caller.deadline).min()
}

/// The last deadline of the callers.
pub(super) fn last_deadline(callers: &[Caller]) -> Option<Instant> {
    callers.iter().map(|caller| caller.deadline).max()
}

/// Checks a round that another node made: an entry that no follower accepts, or that cannot be applied, would stop the
/// cluster.
pub(super) fn check(round: &Round) -> Result<(), Error> {
    let refused = |what: &str| Err(Error::Refused(format!("the round {what}")));
    let bytes: usize = round.writes.iter().map(|write| write.command.len()).sum();
    match round.writes.len() {
        0 => return refused("has no writes"),
        1 if bytes > COMMAND_BYTES_MAX => return refused("has a write that is too large"),
        2.. if bytes > ROUND_BYTES_MAX => return refused("is too large"),
        ROUND_WRITES_MAX.. if round.writes.len() > ROUND_WRITES_MAX => return refused("has too many writes"),
        _ => {}
    }
    let is_sound = |write: &RoundWrite| {
        // The round gets its time when it is proposed.
        let write = GuardedWrite::decode(&write.command, Some(0));
        write.is_ok_and(|write| write.operations.iter().all(is_sound_operation))
    };
    if round.writes.iter().all(is_sound) { Ok(()) } else { refused("has a write that cannot be applied") }
}

fn is_sound_operation(operation: &Operation) -> bool {
    let has_value_in_bounds = match &operation.action {
        Action::Put(value) => value.bytes.len() <= VALUE_BYTES_MAX,
        Action::Delete => true,
    };
    has_value_in_bounds && (operation.space == Space::System || (1..=KEY_BYTES_MAX).contains(&operation.key.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{AskedBy, Fact, FeatureLevel, Precondition, Value};

    fn round_write(bytes: usize) -> RoundWrite {
        RoundWrite { trace: None, command: vec![0; bytes].into() }
    }

    fn in_a_second() -> Instant {
        Instant::now() + std::time::Duration::from_secs(1)
    }

    /// Queues a write of so many bytes.
    fn push(queue: &Queue, bytes: usize) -> Option<Answer> {
        queue.push(round_write(bytes), queue.reserve(bytes)?, in_a_second())
    }

    #[tokio::test]
    async fn a_round_has_at_most_4_mib_unless_one_write_has_more() {
        let queue = Queue::new();
        let sizes = [1, ROUND_BYTES_MAX - 1, 1, ROUND_BYTES_MAX + 1, 1];
        let _answers: Vec<_> = sizes.map(|bytes| push(&queue, bytes).unwrap()).into();
        let rounds = std::iter::from_fn(|| queue.take_round());
        let sizes: Vec<Vec<usize>> =
            rounds.map(|taken| taken.round.writes.iter().map(|write| write.command.len()).collect()).collect();
        assert_eq!(sizes, [vec![1, ROUND_BYTES_MAX - 1], vec![1], vec![ROUND_BYTES_MAX + 1], vec![1]]);
    }

    #[tokio::test]
    async fn writes_are_refused_over_a_number_and_over_bytes() {
        let queue = Queue::new();
        let mut answers: Vec<_> = std::iter::from_fn(|| push(&queue, 1)).collect();
        assert_eq!(answers.len(), PROPOSE_QUEUE_MAX);
        answers.clear();
        queue.sweep(|| unreachable!("nobody waits"));
        let large = ROUND_BYTES_MAX;
        answers.extend(std::iter::from_fn(|| push(&queue, large)));
        assert!(
            answers.len() * large <= PROPOSE_QUEUE_BYTES_MAX && answers.len() * large > PROPOSE_QUEUE_BYTES_MAX / 2
        );
        let in_flight = queue.take_round().unwrap();
        assert!(push(&queue, large).is_none(), "what is in flight counts too");
        drop(in_flight);
        assert!(push(&queue, large).is_some());
    }

    #[tokio::test]
    async fn an_item_of_a_batch_has_at_most_64_bytes_beside_its_key_twice_and_its_value() {
        let key = "k".repeat(KEY_BYTES_MAX);
        let value = Value::json(vec![b'1'; VALUE_BYTES_MAX]);
        let fact = Fact::Revision { key: key.clone(), revision: Some(u64::MAX) };
        let item = GuardedWrite {
            operations: vec![Operation { space: Space::Kv, key, action: Action::Put(value) }],
            preconditions: vec![Precondition { asked_by: AskedBy::Client, space: Space::Kv, fact }],
            ..GuardedWrite::default()
        };
        let bytes = item.encode(FeatureLevel::FIRST).unwrap().len();
        assert!(bytes <= 2 * KEY_BYTES_MAX + VALUE_BYTES_MAX + 64, "{bytes} bytes");
    }
}
