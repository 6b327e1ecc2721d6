//! Linearizability: for every key, writes, failed preconditions and strong reads have one order that agrees with real time
//! and in which every read sees the last write before it (Herlihy and Wing 1990). Porcupine searches for it.
//!
//! Each write has the revision that the log gave it, which implies no time. A write whose client does not know its outcome
//! happened at any time after its call, if the log contains it, and never otherwise.

use std::collections::{BTreeSet, HashMap};

use porcupine_rs::{Model, Operation as Step};

use super::{Violation, replay::Replay};
use crate::replication::sim::clients::{KEYS, applied_revision};
use crate::replication::sim::history::{History, Operation, Request, Response, Seen, Unique};
use crate::storage::Outcome;

const NAME: &str = "linearizability";

/// Later than everything.
const NEVER: i64 = i64::MAX / 2;

#[derive(Clone, Debug)]
struct Register;

#[derive(Clone, Debug)]
enum Act {
    /// The key gets a value or loses its value, if it has the expected revision. `before` is the revision of the previous
    /// write, which keeps the search short: revisions order writes.
    Write {
        before: u64,
        revision: u64,
        value: Option<Unique>,
        expected: Option<Option<u64>>,
    },
    /// A write was refused, since the key did not have the expected revision.
    Refusal {
        expected: Option<u64>,
        current: Option<u64>,
    },
    Read(Seen),
}

impl Model for Register {
    /// The revision of the last write, and the state of the key.
    type State = (u64, Seen);
    type Op = Act;
    type Metadata = ();

    fn init() -> Self::State {
        (0, None)
    }

    fn step(state: &Self::State, act: &Act) -> (bool, Self::State) {
        let (last, seen) = *state;
        let current = seen.map(|(revision, _)| revision);
        match act {
            Act::Write { before, revision, value, expected } => {
                let may = *before == last && expected.is_none_or(|expected| expected == current);
                (may, (*revision, value.map(|value| (*revision, value))))
            }
            Act::Refusal { expected, current: told } => (*told == current && *expected != current, *state),
            Act::Read(read) => (*read == seen, *state),
        }
    }
}

/// `in_whole`: searches for the order, and not only for stale reads. The search takes forever if hundreds of reads wait at
/// once.
pub(super) fn conclude(history: &History, replay: &Replay, in_whole: bool) -> Result<(), Violation> {
    for key in KEYS {
        let steps = steps_of(key, history, replay);
        no_read_is_stale(key, &steps)?;
        if in_whole && !porcupine_rs::check_operations(&steps) {
            let detail = format!("no order of these explains what clients saw of {key}:\n{}", shown(&steps));
            return Err(Violation::new(NAME, detail));
        }
    }
    Ok(())
}

/// Checks that no read sees an older revision than was read or acknowledged before it began. The order implies this; but
/// it is checked at once, while the search for an order that does not exist may take forever.
fn no_read_is_stale(key: &str, steps: &[Step<Register>]) -> Result<(), Violation> {
    let shows = |step: &Step<Register>| match step.op {
        Act::Write { revision, .. } => Some(revision),
        Act::Read(seen) => seen.map(|(revision, _)| revision),
        Act::Refusal { .. } => None,
    };
    let mut known: Vec<(i64, u64)> =
        steps.iter().filter_map(|step| Some((step.return_time, shows(step)?))).filter(|(at, _)| *at != NEVER).collect();
    known.sort_unstable();
    let mut newest = 0;
    for (_, revision) in &mut known {
        newest = newest.max(*revision);
        *revision = newest;
    }
    for step in steps {
        let (Act::Read(Some((revision, _))), called) = (&step.op, step.call_time) else { continue };
        let before = known.partition_point(|(returned, _)| *returned < called);
        let newest = before.checked_sub(1).and_then(|last| known.get(last)).map_or(0, |(_, newest)| *newest);
        if *revision < newest {
            let detail =
                format!("a read of {key} that began at {called} saw revision {revision}; {newest} was known by then");
            return Err(Violation::new(NAME, detail));
        }
    }
    Ok(())
}

fn shown(steps: &[Step<Register>]) -> String {
    let mut lines: Vec<_> = steps.iter().collect();
    lines.sort_by_key(|step| step.call_time);
    let line = |step: &Step<Register>| {
        let returned = if step.return_time == NEVER { "?".to_owned() } else { step.return_time.to_string() };
        format!("  {:>4}..{returned:<4} client {:?} {:?}", step.call_time, step.client_id, step.op)
    };
    lines.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

fn steps_of(key: &str, history: &History, replay: &Replay) -> Vec<Step<Register>> {
    let mut steps = Vec::new();
    // All attempts at a named write are one step, from the first call to the first acknowledgement.
    let mut named: HashMap<&str, usize> = HashMap::new();
    for operation in &history.operations {
        let Some(act) = act_of(key, operation, history, replay) else { continue };
        let returned = operation.returned.filter(|_| operation.outcome().is_some() || !operation.is_write());
        let returned = returned.unwrap_or(NEVER);
        if let Some(name) = operation.name() {
            if let Some(step) = named.get(name).and_then(|step| steps.get_mut(*step)) {
                let step: &mut Step<Register> = step;
                step.return_time = step.return_time.min(returned);
                continue;
            }
            named.insert(name, steps.len());
        }
        steps.push(Step {
            client_id: Some(operation.client),
            call_time: operation.called,
            return_time: returned,
            op: act,
            metadata: None,
        });
    }
    let revision = |step: &Step<Register>| match step.op {
        Act::Write { revision, .. } => Some(revision),
        Act::Refusal { .. } | Act::Read(_) => None,
    };
    let revisions: BTreeSet<u64> = steps.iter().filter_map(revision).collect();
    for step in &mut steps {
        if let Act::Write { before, revision, .. } = &mut step.op {
            *before = revisions.range(..*revision).next_back().copied().unwrap_or(0);
        }
    }
    steps
}

/// The effect of an operation on a key; none if it did not touch the key.
fn act_of(key: &str, operation: &Operation, history: &History, replay: &Replay) -> Option<Act> {
    let (touches, is_first, is_put, expected) = match &operation.request {
        Request::Put { keys, expected, .. } => {
            (keys.iter().any(|put| put == key), keys.first().is_some_and(|first| first == key), true, *expected)
        }
        Request::Delete { key: deleted } => (deleted == key, false, false, None),
        Request::Judged { key: put, .. } => (put == key, false, true, None),
        Request::StrongRead { key: read } => {
            return match &operation.response {
                Some(Response::Read(seen)) if read == key => Some(Act::Read(*seen)),
                _ => None,
            };
        }
        Request::LocalRead { .. } | Request::Scan { .. } | Request::Registry(_) => return None,
    };
    if !touches {
        return None;
    }
    let id = history.value_of(operation);
    let expected = expected.filter(|_| is_first);
    let write = |revision| Act::Write { before: 0, revision, value: is_put.then_some(id), expected };
    match operation.outcome() {
        Some(Outcome::PreconditionFailed { current, .. }) => {
            expected.map(|expected| Act::Refusal { expected, current: *current })
        }
        Some(outcome) => applied_revision(outcome).map(write),
        None => replay.applied.get(&id).copied().map(write),
    }
}
