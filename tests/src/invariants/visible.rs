//! Every value that a read shows was written: to that key, by a write that had started and was not refused, once.
//!
//! An idempotent write that is applied twice shows one value at two revisions.

use std::collections::HashMap;
use std::sync::Arc;

use super::violation::Violation;
use crate::history::{Call, Effect, Item, Outcome, Seen};

const INVARIANT: &str = "every visible value was written, once";

pub(super) fn check(calls: &[Arc<Call>]) -> Result<(), Violation> {
    let mut writers: HashMap<u64, (&Arc<Call>, &Item)> = HashMap::new();
    // The first sight of each value. An acknowledged write sees its own value.
    let mut sights: HashMap<u64, (Seen, &Arc<Call>)> = HashMap::new();
    for call in calls {
        for (position, item) in call.items().iter().enumerate() {
            let Some(value) = item.value else { continue };
            writers.insert(value, (call, item));
            if let Outcome::Done { revision: Some(revision), effects } = &call.outcome
                && let Some(Effect::Put(version)) = effects.get(position)
            {
                sights.insert(value, (Seen { value, version: *version, revision: *revision }, call));
            }
        }
    }
    for call in calls {
        for (key, entry) in call.entries() {
            let Some(seen) = entry else { continue };
            let Some((writer, item)) = writers.get(&seen.value) else {
                return Err(Violation::new(INVARIANT, format!("no call wrote {}", seen.value), &[call]));
            };
            let wrong = |what: &str| Err(Violation::new(INVARIANT, format!("{}: {what}", seen.value), &[writer, call]));
            if item.key != *key || writer.object != call.object {
                return wrong("it was written to another key");
            }
            if matches!(writer.outcome, Outcome::NotWritten | Outcome::PreconditionFailed(..)) {
                return wrong("its write was refused and is visible");
            }
            if writer.invoked > call.completed {
                return wrong("it is visible before its write started");
            }
            let (first, witness) = sights.entry(seen.value).or_insert((*seen, call));
            if first != seen {
                return Err(Violation::new(
                    INVARIANT,
                    "one write is visible at two revisions",
                    &[writer, witness, call],
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::samples::{call, done, get, put, seen};
    use super::*;

    #[test]
    fn a_written_value_may_be_seen() {
        let unknown = call(1, 0..9, put(0, 5), Outcome::Unknown);
        assert!(check(&[unknown, get(2, 1..2, seen(5, 1, 1), 1), get(3, 3..4, seen(5, 1, 1), 1)]).is_ok());
    }

    #[test]
    fn a_value_without_a_write_is_found() {
        assert!(check(&[get(2, 1..2, seen(5, 1, 1), 1)]).is_err());
    }

    #[test]
    fn a_refused_write_that_is_visible_is_found() {
        for outcome in [Outcome::NotWritten, Outcome::PreconditionFailed(0, None)] {
            let refused = call(1, 0..1, put(0, 5), outcome);
            assert!(check(&[refused, get(2, 2..3, seen(5, 1, 1), 1)]).is_err());
        }
    }

    #[test]
    fn a_value_seen_too_early_or_under_another_key_is_found() {
        let late = call(1, 5..6, put(0, 5), done(1, 1));
        assert!(check(&[get(2, 1..2, seen(5, 1, 1), 1), late]).is_err());
        let elsewhere = call(1, 0..1, put(1, 5), done(1, 1));
        assert!(check(&[elsewhere, get(2, 2..3, seen(5, 1, 1), 1)]).is_err());
    }

    #[test]
    fn a_write_applied_twice_is_found() {
        let written = call(1, 0..1, put(0, 5), done(1, 1));
        assert!(check(&[written, get(2, 2..3, seen(5, 2, 3), 3)]).is_err());
    }
}
