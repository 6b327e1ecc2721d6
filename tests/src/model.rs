//! The sequential model of one object, for porcupine's linearizability check.
//!
//! An answer contains the version and the revision of each entry that it shows or writes. The model requires exactly the
//! versions that the preceding calls lead to, and revisions that grow with every write.
//!
//! A write with an unknown outcome may take effect at any time after its start, or never. As an operation that never
//! returns, it would make porcupine try it at every point of the history, in every combination with the others. Instead,
//! it is an operation that only becomes *pending*. The state is the set of all possible [`Case`]s. If a case cannot
//! explain an answer, its pending writes are applied in every order until it can. Applying them no earlier loses nothing:
//! answers contain versions, so a write that took effect before an answer on the same key is needed to explain that
//! answer. Only a deletion hides versions: there, and where one of an absent key may have come before, pending writes of several
//! keys are tried as well. So are all pending writes of a key that a resolved write gave a version which nobody saw.
//!
//! A write with an unknown outcome whose value was read has a known outcome (see [`operations`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use porcupine_rs::{Model, Operation};

use crate::history::{Call, Effect, Item, KEYS, Outcome, Precondition, Request, Seen};

/// Maximum number of cases. Beyond it, a history without a valid order is undecided.
const CASES_MAX: usize = 512;

/// Maximum number of orders of pending writes to try for one answer.
const ORDERS_MAX: usize = 4_096;

/// The model of one object.
#[derive(Debug, Clone)]
pub struct Object;

/// An operation on an object.
#[derive(Debug, Clone)]
pub enum Event {
    /// A call with a known outcome.
    Answered(Arc<Call>),
    /// The start of a write with an unknown outcome.
    Begun(Arc<Call>),
}

/// The set of possible cases.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct State {
    /// The cases.
    pub cases: BTreeSet<Case>,
    /// Whether cases were dropped because of `CASES_MAX`.
    pub is_truncated: bool,
}

/// One possible state of the object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Case {
    entries: [Option<Entry>; KEYS],
    /// The highest known revision.
    revision: u64,
    pending: Vec<Pending>,
}

/// An entry. After a write with an unknown outcome, only its version is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Entry {
    value: Option<u64>,
    version: u64,
    revision: Option<u64>,
}

/// A write that may still take effect.
#[derive(Debug, Clone)]
struct Pending(Arc<Call>);

impl PartialEq for Pending {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for Pending {}

impl std::hash::Hash for Pending {
    fn hash<H: std::hash::Hasher>(&self, hasher: &mut H) {
        self.0.id.hash(hasher);
    }
}

impl PartialOrd for Pending {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pending {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.id.cmp(&other.0.id)
    }
}

impl Model for Object {
    type State = State;
    type Op = Event;
    type Metadata = ();

    fn init() -> State {
        State { cases: BTreeSet::from([Case::default()]), is_truncated: false }
    }

    fn step(state: &State, event: &Event) -> (bool, State) {
        let mut next = State { cases: BTreeSet::new(), is_truncated: state.is_truncated };
        for case in &state.cases {
            match event {
                Event::Begun(call) => {
                    let mut case = case.clone();
                    case.pending.push(Pending(call.clone()));
                    // Whatever begins first, the case is the same.
                    case.pending.sort_unstable();
                    next.cases.insert(case);
                }
                Event::Answered(call) => {
                    let (cases, is_complete) = case.explain(call);
                    next.is_truncated |= !is_complete;
                    next.cases.extend(cases);
                }
            }
        }
        drop_weaker(&mut next.cases);
        while next.cases.len() > CASES_MAX {
            next.cases.pop_last();
            next.is_truncated = true;
        }
        (!next.cases.is_empty(), next)
    }

    fn describe_operation(event: &Event) -> String {
        match event {
            Event::Answered(call) => call.describe(),
            Event::Begun(call) => format!("pending from here: {}", call.describe()),
        }
    }

    fn describe_state(state: &State) -> String {
        state.cases.iter().map(Case::describe).collect::<Vec<_>>().join(" or ")
    }
}

/// Drops the cases that differ from another one only by fewer pending writes. The other one explains every answer that they
/// explain, since a pending write may never take effect.
fn drop_weaker(cases: &mut BTreeSet<Case>) {
    let mut kept: BTreeMap<_, Vec<BTreeSet<u64>>> = BTreeMap::new();
    let mut all: Vec<Case> = std::mem::take(cases).into_iter().collect();
    all.sort_by_key(|case| std::cmp::Reverse(case.pending.len()));
    for case in all {
        let pending: BTreeSet<u64> = case.pending.iter().map(|write| write.0.id).collect();
        let of_same = kept.entry((case.entries, case.revision)).or_default();
        if !of_same.iter().any(|stronger| stronger.is_superset(&pending)) {
            of_same.push(pending);
            cases.insert(case);
        }
    }
}

impl Case {
    /// All cases after a call, and whether the search was complete.
    fn explain(&self, call: &Call) -> (Vec<Self>, bool) {
        let mut explained = Vec::new();
        let mut tried = BTreeSet::from([self.clone()]);
        let mut queue = VecDeque::from([self.clone()]);
        while let Some(case) = queue.pop_front() {
            let after = case.accept(call);
            let is_explained = after.is_some();
            explained.extend(after);
            if is_explained && case.pending.is_empty() {
                continue;
            }
            for (position, write) in case.candidates(call).into_iter().enumerate() {
                let Some(write) = write else { continue };
                let may_be_hidden = hides_write(call, &write)
                    || write.items().len() > 1 && (hides_versions(call) || case.hides(&write, call));
                if is_explained && !may_be_hidden {
                    continue;
                }
                if let Some(case) = case.apply_pending(position, &write)
                    && tried.insert(case.clone())
                {
                    queue.push_back(case);
                }
            }
            if tried.len() > ORDERS_MAX {
                return (explained, false);
            }
        }
        (explained, true)
    }

    /// Whether a pending write that deletes an absent key may have come before a call that writes it, unnoticed.
    fn hides(&self, pending: &Call, call: &Call) -> bool {
        let is_deleted = |key: usize| pending.items().iter().any(|item| item.key == key && item.value.is_none());
        call.items().iter().any(|item| self.entries[item.key].is_none() && is_deleted(item.key))
    }

    /// The pending writes, each at its position, that can affect the answer to a call. Of plain writes that differ only in
    /// their values, which nobody read, the first one is enough.
    fn candidates(&self, call: &Call) -> Vec<Option<Arc<Call>>> {
        let mut keys: BTreeSet<usize> = match &call.request {
            Request::Get(key, _) => BTreeSet::from([*key]),
            Request::Range(_) => (0..KEYS).collect(),
            Request::Write { items, .. } => items.iter().map(|item| item.key).collect(),
        };
        for _ in 0..KEYS {
            let touching = self.pending.iter().filter(|write| touches(&write.0, &keys));
            let more: Vec<usize> = touching.flat_map(|write| write.0.items()).map(|item| item.key).collect();
            keys.extend(more);
        }
        let mut plain = BTreeSet::new();
        let candidate = |write: &Pending| {
            let items = write.0.items();
            let is_plain = items.iter().all(|item| item.precondition.is_none());
            let shape: Vec<_> = items.iter().map(|item| (item.key, item.value.is_some())).collect();
            let is_new = !is_plain || plain.insert(shape);
            (is_new && touches(&write.0, &keys)).then(|| write.0.clone())
        };
        self.pending.iter().map(candidate).collect()
    }

    /// The case after a pending write takes effect; `None` if a precondition fails.
    fn apply_pending(&self, position: usize, write: &Call) -> Option<Self> {
        let mut after = self.clone();
        after.pending.remove(position);
        for item in write.items() {
            let entry = &self.entries[item.key];
            match item.precondition {
                Some(Precondition::Absent) if entry.is_some() => return None,
                Some(Precondition::Revision(revision))
                    if entry.is_none_or(|entry| entry.revision != Some(revision)) =>
                {
                    return None;
                }
                _ => {}
            }
            after.entries[item.key] = item.value.map(|_| Entry {
                value: None,
                version: entry.map_or(1, |entry| entry.version + 1),
                revision: None,
            });
        }
        Some(after)
    }

    /// The case after a call; `None` if this case does not lead to its answer.
    fn accept(&self, call: &Call) -> Option<Self> {
        match &call.outcome {
            Outcome::Read { entries, revision, .. } => {
                if matches!(call.request, Request::Range(_)) && self.revision > *revision {
                    return None;
                }
                let is_same = |key: usize, seen: Option<Seen>| match (self.entries[key], seen) {
                    (None, None) => true,
                    (Some(entry), Some(seen)) => entry.is(seen),
                    _ => false,
                };
                let all = entries.iter().all(|(key, seen)| is_same(*key, *seen));
                all.then(|| Self { revision: self.revision.max(*revision), ..self.clone() })
            }
            Outcome::Done { revision, effects } => self.written(call.items(), *revision, effects),
            Outcome::PreconditionFailed(key, current) => self.refused(call.items(), *key, *current),
            Outcome::NotWritten | Outcome::Unknown | Outcome::Failed | Outcome::Invalid(_) => None,
        }
    }

    fn written(&self, items: &[Item], revision: Option<u64>, effects: &[Effect]) -> Option<Self> {
        let mut after = self.clone();
        if let Some(revision) = revision {
            if revision <= self.revision {
                return None;
            }
            after.revision = revision;
        }
        for (item, effect) in items.iter().zip(effects) {
            let entry = self.entries[item.key];
            let is_met = match item.precondition {
                None => true,
                Some(Precondition::Absent) => entry.is_none(),
                Some(Precondition::Revision(expected)) => entry.is_some_and(|entry| entry.revision == Some(expected)),
            };
            let version = entry.map_or(1, |entry| entry.version + 1);
            let is_allowed = match effect {
                Effect::Put(seen) => version == *seen,
                Effect::Deleted(existed) => entry.is_some() == *existed,
                Effect::Unseen => true,
            };
            if !is_met || !is_allowed {
                return None;
            }
            after.entries[item.key] = item.value.map(|value| Entry { value: Some(value), version, revision });
        }
        Some(after)
    }

    fn refused(&self, items: &[Item], key: usize, current: Option<u64>) -> Option<Self> {
        let mut after = self.clone();
        match (&mut after.entries[key], current) {
            (None, None) => {}
            (Some(entry), Some(current)) if entry.revision == Some(current) => {}
            // The answer reveals the revision of a write with an unknown outcome.
            (Some(entry), Some(current)) if entry.revision.is_none() => entry.revision = Some(current),
            _ => return None,
        }
        let precondition = items.iter().find(|item| item.key == key)?.precondition?;
        let is_met = match precondition {
            Precondition::Absent => current.is_none(),
            Precondition::Revision(expected) => current == Some(expected),
        };
        (!is_met).then_some(after)
    }

    fn describe(&self) -> String {
        let entry = |entry: &Option<Entry>| match entry {
            None => "–".to_owned(),
            Some(Entry { value, version, revision }) => {
                let text = |number: Option<u64>| number.map_or("?".to_owned(), |number| number.to_string());
                format!("{} v{version} r{}", text(*value), text(*revision))
            }
        };
        let entries: Vec<String> = self.entries.iter().map(entry).collect();
        let pending: Vec<u64> = self.pending.iter().map(|write| write.0.id).collect();
        format!("{{{}; revision {}; pending {pending:?}}}", entries.join(", "), self.revision)
    }
}

impl Entry {
    fn is(self, seen: Seen) -> bool {
        self.value == Some(seen.value)
            && self.version == seen.version
            && self.revision.is_none_or(|revision| revision == seen.revision)
    }
}

fn touches(write: &Call, keys: &BTreeSet<usize>) -> bool {
    write.items().iter().any(|item| keys.contains(&item.key))
}

/// Whether a call wrote a key of a pending write, and nobody saw which version that gave it.
fn hides_write(call: &Call, pending: &Call) -> bool {
    let Outcome::Done { effects, .. } = &call.outcome else { return false };
    let unseen = call.items().iter().zip(effects).filter(|(_, effect)| **effect == Effect::Unseen);
    touches(pending, &unseen.map(|(item, _)| item.key).collect())
}

/// Whether the answer to a write does not show the versions that it replaced.
fn hides_versions(call: &Call) -> bool {
    let hides = |effect: &Effect| matches!(effect, Effect::Deleted(true) | Effect::Unseen);
    matches!(&call.outcome, Outcome::Done { effects, .. } if effects.iter().any(hides))
}

/// The history of one object as operations for porcupine, without local reads.
pub fn operations(calls: &[Arc<Call>]) -> Vec<Operation<Object>> {
    let mut seen: BTreeMap<u64, (Seen, i64)> = BTreeMap::new();
    for call in calls {
        for (_, entry) in call.entries() {
            if let Some(entry) = entry {
                let known = seen.entry(entry.value).or_insert((*entry, call.completed));
                known.1 = known.1.min(call.completed);
            }
        }
    }
    let operation = |call: &Arc<Call>| {
        let answered = |completed| Some((Event::Answered(call.clone()), completed));
        let (op, return_time) = match &call.outcome {
            Outcome::Read { linearizable: true, .. } | Outcome::Done { .. } | Outcome::PreconditionFailed(..) => {
                answered(call.completed)
            }
            Outcome::Unknown => Some(match resolve(call, &seen) {
                Some((resolved, completed)) => (Event::Answered(Arc::new(resolved)), completed),
                None => (Event::Begun(call.clone()), call.invoked),
            }),
            Outcome::Read { .. } | Outcome::NotWritten | Outcome::Failed | Outcome::Invalid(_) => None,
        }?;
        let return_time = return_time.max(call.invoked);
        Some(Operation { client_id: Some(call.client), call_time: call.invoked, return_time, op, metadata: None })
    };
    calls.iter().filter_map(operation).collect()
}

/// A write with an unknown outcome whose value was read: the write with its outcome, and the time by which it was read.
fn resolve(call: &Call, seen: &BTreeMap<u64, (Seen, i64)>) -> Option<(Call, i64)> {
    let of_item = |item: &Item| item.value.and_then(|value| seen.get(&value));
    let sights: Vec<&(Seen, i64)> = call.items().iter().filter_map(of_item).collect();
    let (first, _) = sights.first()?;
    let effect = |item: &Item| of_item(item).map_or(Effect::Unseen, |(seen, _)| Effect::Put(seen.version));
    let effects = call.items().iter().map(effect).collect();
    let outcome = Outcome::Done { revision: Some(first.revision), effects };
    let completed = sights.iter().map(|(_, completed)| *completed).min()?;
    Some((Call { outcome, completed, ..call.clone() }, completed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::samples::{call, put};

    #[test]
    fn a_case_that_can_do_less_than_another_is_dropped() {
        let write = |id| Pending(call(id, 0..1, put(0, id), Outcome::Unknown));
        let entry = Some(Entry { value: None, version: 1, revision: None });
        let case = |first, pending: &[u64]| Case {
            entries: [first, None, None, None],
            revision: 0,
            pending: pending.iter().map(|id| write(*id)).collect(),
        };
        let mut cases: BTreeSet<Case> =
            [case(None, &[1, 2]), case(None, &[1]), case(None, &[]), case(None, &[3]), case(entry, &[1])].into();
        drop_weaker(&mut cases);
        assert_eq!(cases, [case(None, &[1, 2]), case(None, &[3]), case(entry, &[1])].into());
    }
}
