//! A range shows one revision: each batch completely or not at all, and nothing newer. The linearizability check covers
//! strong ranges; this one covers local ranges as well.

use std::collections::HashMap;
use std::sync::Arc;

use super::violation::Violation;
use crate::history::{Call, Outcome, Request, Seen};

const INVARIANT: &str = "a range shows one revision, and batches completely";

pub(super) fn check(calls: &[Arc<Call>]) -> Result<(), Violation> {
    let mut batches: HashMap<u64, Vec<(u64, &Arc<Call>)>> = HashMap::new();
    let mut deletions: HashMap<(u64, usize), Vec<&Arc<Call>>> = HashMap::new();
    for call in calls {
        if call.items().len() > 1
            && let Some(revision) = call.written_revision()
        {
            batches.entry(call.object).or_default().push((revision, call));
        }
        for item in call.items().iter().filter(|item| item.value.is_none()) {
            if matches!(call.outcome, Outcome::Done { .. } | Outcome::Unknown) {
                deletions.entry((call.object, item.key)).or_default().push(call);
            }
        }
    }
    for call in calls {
        let (Request::Range(_), Outcome::Read { entries, revision, .. }) = (&call.request, &call.outcome) else {
            continue;
        };
        if let Some((_, Some(seen))) =
            entries.iter().find(|(_, seen)| seen.is_some_and(|seen| seen.revision > *revision))
        {
            let what = format!("a range of revision {revision} shows revision {}", seen.revision);
            return Err(Violation::new(INVARIANT, what, &[call]));
        }
        let entry = |key: usize| entries.iter().find(|(found, _)| *found == key).and_then(|(_, seen)| *seen);
        for (written, batch) in batches.get(&call.object).into_iter().flatten() {
            let may_be_gone = |key: usize| {
                let deletions = deletions.get(&(call.object, key)).into_iter().flatten();
                deletions.into_iter().any(|deletion| {
                    deletion.id != batch.id && deletion.invoked < call.completed && may_follow(deletion, batch)
                })
            };
            if written <= revision && !shows(batch, *written, entry, may_be_gone) {
                let what =
                    format!("a range of revision {revision} shows only a part of the batch of revision {written}");
                return Err(Violation::new(INVARIANT, what, &[batch, call]));
            }
        }
    }
    Ok(())
}

fn may_follow(deletion: &Call, batch: &Call) -> bool {
    deletion.outcome == Outcome::Unknown || deletion.completed > batch.invoked
}

/// Whether a range shows every key of a batch as the batch left it, or newer.
fn shows(
    batch: &Call,
    written: u64,
    entry: impl Fn(usize) -> Option<Seen>,
    may_be_gone: impl Fn(usize) -> bool,
) -> bool {
    batch.items().iter().all(|item| match (item.value, entry(item.key)) {
        (Some(_), Some(seen)) => seen.revision >= written,
        (Some(_), None) => may_be_gone(item.key),
        (None, Some(seen)) => seen.revision > written,
        (None, None) => true,
    })
}

#[cfg(test)]
mod tests {
    use super::super::samples::{batch, call, delete, deleted, range, seen};
    use super::*;
    use crate::history::{Consistency, Effect};

    fn two_keys() -> Arc<Call> {
        let effects = vec![Effect::Put(1), Effect::Put(1)];
        call(1, 0..1, batch(&[(0, Some(1)), (1, Some(2))]), Outcome::Done { revision: Some(3), effects })
    }

    #[test]
    fn a_batch_may_be_seen_completely_or_not_yet() {
        let whole = range(2, 0..1, Consistency::Local, &[seen(1, 1, 3), seen(2, 1, 3)], 3);
        let before = range(3, 4..5, Consistency::Local, &[], 2);
        let deleted = call(4, 6..7, delete(0), deleted(true));
        let after = range(5, 8..9, Consistency::Local, &[None, seen(2, 1, 3)], 4);
        assert!(check(&[two_keys(), whole, before, deleted, after]).is_ok());
    }

    #[test]
    fn a_partial_batch_is_found() {
        assert!(check(&[two_keys(), range(2, 0..1, Consistency::Local, &[seen(1, 1, 3)], 3)]).is_err());
        assert!(check(&[two_keys(), range(2, 0..1, Consistency::Local, &[seen(1, 1, 3), seen(9, 1, 2)], 3)]).is_err());
    }

    #[test]
    fn a_range_that_shows_more_than_its_revision_is_found() {
        assert!(check(&[range(2, 0..1, Consistency::Local, &[seen(1, 1, 3)], 2)]).is_err());
    }
}
