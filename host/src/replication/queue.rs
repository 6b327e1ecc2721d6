//! Writes that wait to be proposed, bounded in number and in bytes, and the rounds that are made of them.
//!
//! A write counts from the moment it is queued until its round has ended. On a leader, the rounds that other nodes forward
//! count too. A write that nobody waits for any more, because its deadline has passed or its client has left, is dropped as
//! long as it is certain that no node has appended it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::error::Error;
use super::gathering::{GATHER_MAX, Gathering};
use super::types::{Round, RoundWrite};
use crate::limits::{ByteBudget, HeldBytes, PROPOSE_QUEUE_BYTES_MAX, PROPOSE_QUEUE_MAX};
use crate::storage::Outcome;

/// Most writes in a proposal round.
pub(super) const ROUND_WRITES_MAX: usize = 1_024;

/// Most bytes of commands in a proposal round. A single larger write goes alone.
pub(super) const ROUND_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The outcome of a client's write, on its way to the caller.
pub(super) type Answer = oneshot::Receiver<Result<Outcome, Error>>;

/// The outcomes of a forwarded round, one per write; none if no node has appended it, and this node does not lead.
pub(super) type RoundAnswer = oneshot::Receiver<Result<Option<Vec<Outcome>>, Error>>;

/// The queue of a node.
pub(super) struct Queue {
    waiting: Mutex<Line>,
    /// Wakes the task that makes rounds.
    arrived: Notify,
    /// How many writes must wait before that task is woken.
    wanted: AtomicUsize,
    budget: ByteBudget,
}

/// Who waits, and what for.
#[derive(Default)]
struct Line {
    /// Oldest first.
    callers: VecDeque<(Writes, Caller, HeldBytes)>,
    /// How many writes they have.
    writes: usize,
}

/// What a caller proposes. It is never divided between two rounds.
enum Writes {
    One(RoundWrite),
    /// A round that another node forwarded, and the bytes of its commands.
    Round(Vec<RoundWrite>, usize),
}

/// Who waits for the outcome of writes.
pub(super) struct Caller {
    deadline: Instant,
    pub(super) queued: std::time::Instant,
    /// How many writes.
    writes: usize,
    /// `None` once the caller has been told.
    reply: Option<Reply>,
}

enum Reply {
    Client(oneshot::Sender<Result<Outcome, Error>>),
    /// The node that forwarded the round.
    Node(oneshot::Sender<Result<Option<Vec<Outcome>>, Error>>),
}

impl Queue {
    pub(super) fn new() -> Self {
        let budget = ByteBudget::new(PROPOSE_QUEUE_BYTES_MAX);
        Self { waiting: Mutex::default(), arrived: Notify::new(), wanted: AtomicUsize::new(1), budget }
    }

    /// Room for so many bytes of commands; none if too many are queued or in flight.
    pub(super) fn reserve(&self, bytes: usize) -> Option<HeldBytes> {
        self.budget.take(bytes)
    }

    /// Queues a client's write; none if too many wait.
    pub(super) fn push(&self, write: RoundWrite, held: HeldBytes, deadline: Instant) -> Option<Answer> {
        let (reply, answer) = oneshot::channel();
        self.add(Writes::One(write), Caller::new(1, deadline, Reply::Client(reply)), held).then_some(answer)
    }

    /// Queues a round that another node forwarded; none if too many wait.
    pub(super) fn push_round(&self, round: Round, held: HeldBytes, deadline: Instant) -> Option<RoundAnswer> {
        let (reply, answer) = oneshot::channel();
        let caller = Caller::new(round.writes.len(), deadline, Reply::Node(reply));
        let bytes = round.command_bytes();
        self.add(Writes::Round(round.writes, bytes), caller, held).then_some(answer)
    }

    fn add(&self, writes: Writes, caller: Caller, held: HeldBytes) -> bool {
        let waiting = {
            let mut waiting = self.waiting.lock();
            if waiting.callers.len() >= PROPOSE_QUEUE_MAX {
                return false;
            }
            waiting.writes += caller.writes;
            waiting.callers.push_back((writes, caller, held));
            waiting.writes
        };
        if waiting >= self.wanted.load(Ordering::Relaxed) {
            self.wake();
        }
        true
    }

    /// Returns once a write waits, or the queue was [woken](Self::wake).
    pub(super) async fn filled(&self) {
        if self.len() == 0 {
            self.arrived.notified().await;
        }
    }

    /// Waits for the writers of the round that has just ended, if that pays.
    pub(super) async fn gather(&self, gathering: &mut Gathering) {
        let Some(wanted) = gathering.wanted(self.len()) else { return };
        let wanted = wanted.min(ROUND_WRITES_MAX);
        self.wanted.store(wanted, Ordering::Relaxed);
        let have_come = async {
            while self.len() < wanted {
                self.arrived.notified().await;
            }
        };
        gathering.note(tokio::time::timeout(GATHER_MAX, have_come).await.is_ok());
        self.wanted.store(1, Ordering::Relaxed);
    }

    pub(super) fn wake(&self) {
        self.arrived.notify_one();
    }

    /// How many writes wait.
    fn len(&self) -> usize {
        self.waiting.lock().writes
    }

    /// Drops the writes that nobody waits for. Callers whose deadline has passed are told `late`.
    pub(super) fn sweep(&self, late: impl Fn() -> Error) {
        let now = Instant::now();
        let mut waiting = self.waiting.lock();
        waiting.callers.retain_mut(|(_, caller, _)| caller.waits_at(now, &late));
        waiting.writes = waiting.callers.iter().map(|(_, caller, _)| caller.writes).sum();
    }

    /// Takes the writes of the next round, oldest first; none if no write waits.
    pub(super) fn take_round(&self) -> Option<Proposal> {
        let mut waiting = self.waiting.lock();
        let (writes, caller, mut held) = waiting.callers.pop_front()?;
        let mut bytes = writes.bytes();
        let mut writes = writes.into_round();
        let mut callers = vec![caller];
        let fits = |(next, caller, _): &(Writes, Caller, _), writes: usize, bytes: usize| {
            writes + caller.writes <= ROUND_WRITES_MAX && bytes + next.bytes() <= ROUND_BYTES_MAX
        };
        while waiting.callers.front().is_some_and(|next| fits(next, writes.len(), bytes))
            && let Some((more, caller, more_held)) = waiting.callers.pop_front()
        {
            bytes += more.bytes();
            match more {
                Writes::One(write) => writes.push(write),
                Writes::Round(more, _) => writes.extend(more),
            }
            callers.push(caller);
            held.merge(more_held);
        }
        waiting.writes -= writes.len();
        Some(Proposal { round: Round { stamped_at_ms: None, raises_to: None, writes }, callers, _held: held })
    }
}

impl Writes {
    fn bytes(&self) -> usize {
        match self {
            Self::One(write) => write.command.len(),
            Self::Round(_, bytes) => *bytes,
        }
    }

    fn into_round(self) -> Vec<RoundWrite> {
        match self {
            Self::One(write) => vec![write],
            Self::Round(writes, _) => writes,
        }
    }
}

impl Caller {
    fn new(writes: usize, deadline: Instant, reply: Reply) -> Self {
        Self { deadline, queued: std::time::Instant::now(), writes, reply: Some(reply) }
    }

    /// Whether the caller still waits. If its deadline has passed, it is told `late`.
    fn waits_at(&mut self, now: Instant, late: impl FnOnce() -> Error) -> bool {
        let has_left = match &self.reply {
            Some(Reply::Client(reply)) => reply.is_closed(),
            Some(Reply::Node(reply)) => reply.is_closed(),
            None => true,
        };
        if has_left {
            self.reply = None;
        } else if self.deadline <= now {
            self.fail(late());
        }
        self.reply.is_some()
    }

    /// Hands a forwarded round back; false if it is a client's write.
    fn is_handed_back(&mut self) -> bool {
        match self.reply.take_if(|reply| matches!(reply, Reply::Node(_))) {
            Some(Reply::Node(reply)) => {
                // Sending fails if the caller has left. The same goes for the answers below.
                let _ = reply.send(Ok(None));
                true
            }
            _ => false,
        }
    }

    /// Tells the caller its part of the outcomes.
    fn conclude(&mut self, outcomes: &mut impl Iterator<Item = Outcome>) {
        let mut own = outcomes.take(self.writes);
        match self.reply.take() {
            Some(Reply::Client(reply)) => drop(own.next().map(|outcome| reply.send(Ok(outcome)))),
            Some(Reply::Node(reply)) => drop(reply.send(Ok(Some(own.collect())))),
            None => own.for_each(drop),
        }
    }

    fn fail(&mut self, error: Error) {
        match self.reply.take() {
            Some(Reply::Client(reply)) => drop(reply.send(Err(error))),
            Some(Reply::Node(reply)) => drop(reply.send(Err(error))),
            None => {}
        }
    }
}

/// A round with those who wait for the outcomes of its writes.
pub(super) struct Proposal {
    pub(super) round: Round,
    /// In the order of their writes.
    pub(super) callers: Vec<Caller>,
    _held: HeldBytes,
}

impl Proposal {
    /// Drops the writes that nobody waits for. Callers whose deadline has passed are told `late`. False if no write is left.
    pub(super) fn retain_waiting(&mut self, late: impl Fn() -> Error) -> bool {
        let now = Instant::now();
        self.retain(|caller| caller.waits_at(now, &late))
    }

    /// Hands back the rounds that other nodes forwarded, since this node does not lead. False if no write is left.
    pub(super) fn hand_back(&mut self) -> bool {
        self.retain(|caller| !caller.is_handed_back())
    }

    /// Keeps the writes of some callers; false if none is left.
    fn retain(&mut self, keep: impl FnMut(&mut Caller) -> bool) -> bool {
        let kept: Vec<bool> = self.callers.iter_mut().map(keep).collect();
        if kept.contains(&false) {
            let of_callers = kept.iter().zip(&self.callers);
            let mut of_writes = of_callers.flat_map(|(kept, caller)| std::iter::repeat_n(*kept, caller.writes));
            self.round.writes.retain(|_| of_writes.next() == Some(true));
            let mut of_callers = kept.iter();
            self.callers.retain(|_| of_callers.next() == Some(&true));
        }
        !self.callers.is_empty()
    }

    /// Tells each caller its outcomes.
    pub(super) fn conclude(mut self, outcomes: Vec<Outcome>) {
        let mut outcomes = outcomes.into_iter();
        for caller in &mut self.callers {
            caller.conclude(&mut outcomes);
        }
    }

    /// Tells the callers why the round failed.
    pub(super) fn fail(mut self, error: &Error) {
        for caller in &mut self.callers {
            caller.fail(error.clone());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};
    use crate::replication::error::Limit;
    use crate::storage::{Action, AskedBy, Fact, FeatureLevel, GuardedWrite, Operation, Precondition, Space, Value};

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
    async fn a_forwarded_round_shares_a_round_with_others_and_is_never_divided() {
        let queue = Queue::new();
        let forward = |sizes: &[usize]| {
            let round = Round {
                stamped_at_ms: None,
                raises_to: None,
                writes: sizes.iter().map(|bytes| round_write(*bytes)).collect(),
            };
            queue.push_round(round, queue.reserve(8).unwrap(), in_a_second()).unwrap()
        };
        let mut own = push(&queue, 1).unwrap();
        let mut both = forward(&[2, 3]);
        let mut large = forward(&[4, ROUND_BYTES_MAX - 8]);
        let mut many = forward(&vec![1; ROUND_WRITES_MAX - 1]);
        let _rest = forward(&[1]);
        let mut first = queue.take_round().unwrap();
        let sizes: Vec<_> = first.round.writes.iter().map(|write| write.command.len()).collect();
        assert_eq!(sizes, [1, 2, 3]);
        let counts: Vec<_> = std::iter::from_fn(|| queue.take_round()).map(|taken| taken.round.writes.len()).collect();
        assert_eq!(counts, [2, ROUND_WRITES_MAX]);
        // Dropped without an answer.
        assert!(large.try_recv().is_err() && many.try_recv().is_err());

        let outcome = |revision| Outcome::Applied { revision, effects: Vec::new() };
        assert!(first.retain_waiting(|| unreachable!("nobody is late")));
        first.conclude((7..10).map(outcome).collect());
        assert_eq!(own.try_recv().unwrap().unwrap(), outcome(7));
        assert_eq!(both.try_recv().unwrap().unwrap(), Some(vec![outcome(8), outcome(9)]));
    }

    #[tokio::test]
    async fn a_node_that_does_not_lead_hands_forwarded_rounds_back() {
        let queue = Queue::new();
        let _own = [push(&queue, 1).unwrap(), push(&queue, 4).unwrap()];
        let writes = vec![round_write(2), round_write(3)];
        let round = Round { stamped_at_ms: None, raises_to: None, writes };
        let mut forwarded = queue.push_round(round, queue.reserve(5).unwrap(), in_a_second()).unwrap();
        let mut proposal = queue.take_round().unwrap();
        assert!(proposal.hand_back());
        assert!(matches!(forwarded.try_recv(), Ok(Ok(None))));
        let sizes: Vec<_> = proposal.round.writes.iter().map(|write| write.command.len()).collect();
        assert_eq!(sizes, [1, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn each_write_of_a_round_has_its_own_deadline() {
        let queue = Queue::new();
        let push = |bytes, seconds| {
            let deadline = Instant::now() + std::time::Duration::from_secs(seconds);
            queue.push(round_write(bytes), queue.reserve(bytes).unwrap(), deadline).unwrap()
        };
        let late = || Error::Busy { limit: Limit::Deadline };
        let in_doubt = || Error::LeaderLost;
        let (mut queued, mut first, mut second, mut last) = (push(1, 1), push(2, 2), push(3, 3), push(4, 4));
        drop(push(5, 4));
        let pass_a_second = || tokio::time::advance(std::time::Duration::from_secs(1));

        pass_a_second().await;
        queue.sweep(late);
        assert!(matches!(queued.try_recv(), Ok(Err(Error::Busy { .. }))));
        let mut proposal = queue.take_round().unwrap();
        let sizes =
            |proposal: &Proposal| proposal.round.writes.iter().map(|write| write.command.len()).collect::<Vec<_>>();
        assert_eq!(sizes(&proposal), [2, 3, 4]);

        // Before the round is appended, it loses a write that is late; after that, only the caller is told.
        pass_a_second().await;
        assert!(proposal.retain_waiting(late));
        assert!(matches!(first.try_recv(), Ok(Err(Error::Busy { .. }))));
        assert_eq!(sizes(&proposal), [3, 4]);
        assert_eq!(first_deadline(&proposal.callers), Some(Instant::now() + std::time::Duration::from_secs(1)));
        pass_a_second().await;
        tell_late(&mut proposal.callers, in_doubt);
        assert!(matches!(second.try_recv(), Ok(Err(Error::LeaderLost))));
        assert_eq!(sizes(&proposal), [3, 4]);
        assert!(last.try_recv().is_err(), "it was told of another's deadline");
        let outcome = |revision| Outcome::Applied { revision, effects: Vec::new() };
        proposal.conclude(vec![outcome(7), outcome(8)]);
        assert_eq!(last.try_recv().unwrap().unwrap(), outcome(8));
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
