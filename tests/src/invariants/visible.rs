//! Whatever is seen was written: by a write that had begun and was not refused, to that key, once.
//!
//! A named write that was applied twice shows as one value in two revisions.

use std::collections::HashMap;
use std::sync::Arc;

use super::Violation;
use crate::history::{Call, Effect, Item, Outcome, Seen};

const RULE: &str = "whatever is seen was written, once";

pub(super) fn check(calls: &[Arc<Call>]) -> Result<(), Violation> {
    let mut writers: HashMap<u64, (&Arc<Call>, &Item)> = HashMap::new();
    // Where each value was seen first, and how; an acknowledged write sees its own.
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
                return Err(Violation::new(RULE, format!("nobody wrote {}", seen.value), &[call]));
            };
            let wrong = |what: &str| Err(Violation::new(RULE, format!("{}: {what}", seen.value), &[writer, call]));
            if item.key != *key || writer.object != call.object {
                return wrong("was written to another key");
            }
            if matches!(writer.outcome, Outcome::NotWritten | Outcome::Refused(..)) {
                return wrong("its write was refused, and appears all the same");
            }
            if writer.invoked > call.completed {
                return wrong("is seen before it was written");
            }
            let (first, witness) = sights.entry(seen.value).or_insert((*seen, call));
            if first != seen {
                return Err(Violation::new(RULE, "one write shows as two", &[writer, witness, call]));
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
    fn what_was_written_may_be_seen() {
        let unknown = call(1, 0..9, put(0, 5), Outcome::Unknown);
        assert!(check(&[unknown, get(2, 1..2, seen(5, 1, 1), 1), get(3, 3..4, seen(5, 1, 1), 1)]).is_ok());
    }

    #[test]
    fn what_nobody_wrote_is_found() {
        assert!(check(&[get(2, 1..2, seen(5, 1, 1), 1)]).is_err());
    }

    #[test]
    fn a_write_that_was_refused_must_not_appear() {
        for outcome in [Outcome::NotWritten, Outcome::Refused(0, None)] {
            let refused = call(1, 0..1, put(0, 5), outcome);
            assert!(check(&[refused, get(2, 2..3, seen(5, 1, 1), 1)]).is_err());
        }
    }

    #[test]
    fn a_value_is_not_seen_before_it_is_written_nor_under_another_key() {
        let late = call(1, 5..6, put(0, 5), done(1, 1));
        assert!(check(&[get(2, 1..2, seen(5, 1, 1), 1), late]).is_err());
        let elsewhere = call(1, 0..1, put(1, 5), done(1, 1));
        assert!(check(&[elsewhere, get(2, 2..3, seen(5, 1, 1), 1)]).is_err());
    }

    #[test]
    fn a_write_that_is_applied_twice_is_found() {
        let written = call(1, 0..1, put(0, 5), done(1, 1));
        assert!(check(&[written, get(2, 2..3, seen(5, 2, 3), 3)]).is_err());
    }
}
