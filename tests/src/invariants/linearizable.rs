//! The calls on each object are linearizable: some order explains every answer and keeps the real-time order of calls that
//! do not overlap. Lost writes, stale strong reads, partial batches, ignored preconditions and writes applied twice violate
//! this.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use porcupine_rs::{CheckResult, LinearizationInfo, Model as _, Operation};

use super::violation::Violation;
use crate::history::Call;
use crate::model::{self, Event, Object};

const INVARIANT: &str = "the calls on each object are linearizable";

/// Time limit of the search for one object.
const SEARCH_MAX: Duration = Duration::from_secs(60);

/// Maximum number of unexplained calls to show.
const SHOWN_MAX: usize = 8;

pub(super) fn check(calls: &[Arc<Call>]) -> Result<(), Violation> {
    let mut objects: BTreeMap<u64, Vec<Arc<Call>>> = BTreeMap::new();
    for call in calls {
        objects.entry(call.object).or_default().push(call.clone());
    }
    for (object, calls) in objects {
        let operations = model::operations(&calls);
        if porcupine_rs::check_operations_timeout(&operations, SEARCH_MAX) != CheckResult::Ok {
            return Err(explain(object, &operations));
        }
    }
    Ok(())
}

/// Draws the history of an object as an HTML page.
pub fn draw(calls: &[Arc<Call>], object: u64, path: &Path) {
    let calls: Vec<Arc<Call>> = calls.iter().filter(|call| call.object == object).cloned().collect();
    let (_, info) = porcupine_rs::check_operations_info_timeout(&model::operations(&calls), SEARCH_MAX);
    porcupine_rs::visualize_path::<Object>(&info, path).unwrap();
}

/// Describes the longest explained prefix, and the calls that cannot follow it.
fn explain(object: u64, operations: &[Operation<Object>]) -> Violation {
    let (verdict, info) = porcupine_rs::check_operations_info_timeout(operations, SEARCH_MAX);
    if verdict == CheckResult::Ok {
        return Violation::new(
            INVARIANT,
            format!("object {object}: undecided at first, linearizable at the second attempt"),
            &[],
        );
    }
    let explained = longest(&info);
    let mut state = Object::init();
    for index in &explained {
        state = Object::step(&state, &operations[*index].op).1;
    }
    let done: BTreeSet<usize> = explained.iter().copied().collect();
    let left: Vec<&Operation<Object>> =
        (0..operations.len()).filter(|index| !done.contains(index)).map(|index| &operations[index]).collect();
    let first_end = left.iter().map(|operation| operation.return_time).min().unwrap_or(i64::MAX);
    let next = left.into_iter().filter(|operation| operation.call_time <= first_end).take(SHOWN_MAX);
    let verdict = match (verdict, state.is_truncated) {
        (CheckResult::Illegal, false) => "not linearizable",
        _ => "undecided: too many possible orders",
    };
    let what = format!(
        "object {object}: {verdict}. After {} of {} calls the state is {}. One of these calls must come next, and none can:",
        explained.len(),
        operations.len(),
        Object::describe_state(&state),
    );
    let next: Vec<Arc<Call>> = next.map(|operation| call_of(operation).clone()).collect();
    Violation { invariant: INVARIANT, what, calls: next }
}

fn longest(info: &LinearizationInfo<Object>) -> Vec<usize> {
    let found = info.partial_linearizations.iter().flatten();
    found.max_by_key(|sequence| sequence.len()).cloned().unwrap_or_default()
}

fn call_of(operation: &Operation<Object>) -> &Arc<Call> {
    match &operation.op {
        Event::Answered(call) | Event::Begun(call) => call,
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{batch, call, delete, deleted, done, get, put, range, seen};
    use super::*;
    use crate::history::{Consistency, Effect, Item, Outcome, Precondition, Request};

    fn conditional(key: usize, value: u64, precondition: Precondition) -> Request {
        Request::Write {
            items: vec![Item { key, value: Some(value), precondition: Some(precondition) }],
            idempotent: false,
        }
    }

    #[test]
    fn a_sequential_history_is_linearizable() {
        let history = [
            call(1, 0..1, put(0, 1), done(1, 1)),
            get(2, 2..3, seen(1, 1, 1), 1),
            call(3, 4..5, conditional(0, 2, Precondition::Revision(1)), done(2, 2)),
            call(4, 6..7, conditional(0, 3, Precondition::Revision(1)), Outcome::PreconditionFailed(0, Some(2))),
            call(5, 8..9, delete(0), deleted(true)),
            call(6, 10..11, delete(0), deleted(false)),
            call(7, 12..13, conditional(0, 4, Precondition::Absent), done(1, 4)),
            range(8, 14..15, Consistency::Strong, &[seen(4, 1, 4)], 4),
        ];
        assert!(check(&history).is_ok());
    }

    #[test]
    fn a_lost_write_is_found() {
        assert!(check(&[call(1, 0..1, put(0, 1), done(1, 1)), get(2, 2..3, None, 1)]).is_err());
    }

    #[test]
    fn a_stale_strong_read_is_found() {
        let one = call(1, 0..1, put(0, 1), done(1, 1));
        let two = call(2, 2..3, put(0, 2), done(2, 2));
        let violation = check(&[one, two, get(3, 4..5, seen(1, 1, 1), 2)]).unwrap_err();
        assert!(violation.what.contains("not linearizable"), "{violation}");
        assert_eq!(violation.calls.len(), 1, "{violation}");
    }

    #[test]
    fn an_ignored_precondition_is_found() {
        let one = call(1, 0..1, put(0, 1), done(1, 1));
        let two = call(2, 2..3, put(0, 2), done(2, 2));
        let wrong = call(3, 4..5, conditional(0, 3, Precondition::Revision(1)), done(3, 3));
        assert!(check(&[one.clone(), two.clone(), wrong]).is_err());
        let wrong =
            call(3, 4..5, conditional(0, 3, Precondition::Revision(2)), Outcome::PreconditionFailed(0, Some(2)));
        assert!(check(&[one.clone(), two, wrong]).is_err());
        assert!(check(&[one, call(2, 2..3, conditional(0, 2, Precondition::Absent), done(2, 2))]).is_err());
    }

    #[test]
    fn a_write_applied_twice_is_found() {
        let one = call(1, 0..1, put(0, 1), done(1, 1));
        assert!(check(&[one.clone(), call(2, 2..3, put(0, 2), done(3, 3))]).is_err());
        assert!(check(&[one, call(2, 2..3, put(0, 2), done(2, 1))]).is_err());
    }

    #[test]
    fn a_partial_batch_is_found() {
        let effects = vec![Effect::Put(1), Effect::Put(1)];
        let written = call(1, 0..1, batch(&[(0, Some(1)), (1, Some(2))]), Outcome::Done { revision: Some(1), effects });
        let whole = range(2, 2..3, Consistency::Strong, &[seen(1, 1, 1), seen(2, 1, 1)], 1);
        assert!(check(&[written.clone(), whole]).is_ok());
        assert!(check(&[written, range(2, 2..3, Consistency::Strong, &[seen(1, 1, 1)], 1)]).is_err());
    }

    #[test]
    fn an_unknown_write_may_happen_early_late_or_never() {
        let one = call(1, 0..1, put(0, 1), done(1, 1));
        let unknown = call(2, 2..3, put(0, 2), Outcome::Unknown);
        assert!(check(&[one.clone(), unknown.clone(), get(3, 4..5, seen(1, 1, 1), 1)]).is_ok());
        assert!(check(&[one.clone(), unknown.clone(), get(3, 4..5, seen(2, 2, 2), 2)]).is_ok());
        let late = [get(3, 4..5, seen(1, 1, 1), 1), get(4, 6..7, seen(2, 2, 2), 2)];
        assert!(check(&[one.clone(), unknown.clone(), late[0].clone(), late[1].clone()]).is_ok());
        let overwritten = call(3, 4..5, put(0, 3), done(3, 3));
        assert!(check(&[one.clone(), unknown.clone(), overwritten]).is_ok());
        // It does not happen twice, and does not disappear again.
        assert!(check(&[one.clone(), unknown.clone(), call(3, 4..5, put(0, 3), done(4, 4))]).is_err());
        let gone = [get(3, 4..5, seen(2, 2, 2), 2), get(4, 6..7, seen(1, 1, 1), 2)];
        assert!(check(&[one, unknown, gone[0].clone(), gone[1].clone()]).is_err());
    }

    #[test]
    fn a_failed_precondition_may_reveal_an_unknown_write() {
        let unknown = call(1, 0..1, put(0, 1), Outcome::Unknown);
        let other = call(2, 2..3, put(1, 2), done(1, 5));
        let refused = |current| {
            call(3, 4..5, conditional(0, 3, Precondition::Absent), Outcome::PreconditionFailed(0, Some(current)))
        };
        let next = |expected| call(4, 6..7, conditional(0, 4, Precondition::Revision(expected)), done(2, 6));
        assert!(check(&[unknown.clone(), other.clone(), refused(4), next(4)]).is_ok());
        assert!(check(&[unknown, other, refused(4), next(3)]).is_err());
    }

    #[test]
    fn an_unknown_write_does_not_happen_before_its_start() {
        let early = call(1, 0..1, put(0, 1), done(2, 2));
        assert!(check(&[early, call(2, 2..3, put(0, 2), Outcome::Unknown)]).is_err());
    }

    #[test]
    fn an_unknown_batch_is_atomic() {
        let unknown = call(1, 0..9, batch(&[(0, Some(1)), (1, Some(2))]), Outcome::Unknown);
        let next = |id, key, version, revision| call(id, 10..11, put(key, id), done(version, revision));
        assert!(check(&[unknown.clone(), next(2, 0, 2, 2), next(3, 1, 2, 3)]).is_ok());
        assert!(check(&[unknown.clone(), next(2, 0, 1, 2), next(3, 1, 1, 3)]).is_ok());
        let half = [next(2, 0, 2, 2), call(3, 12..13, put(1, 3), done(1, 3))];
        assert!(check(&[unknown, half[0].clone(), half[1].clone()]).is_err());
    }

    #[test]
    fn a_deletion_may_hide_an_unknown_batch() {
        let one = call(1, 0..1, put(0, 1), done(1, 1));
        let unknown = call(2, 2..3, batch(&[(0, Some(2)), (1, Some(3))]), Outcome::Unknown);
        let deletion = call(3, 4..5, delete(0), deleted(true));
        let absent = get(4, 6..7, None, 3);
        let other = call(5, 8..9, put(1, 5), done(2, 4));
        let still_absent = get(6, 10..11, None, 4);
        assert!(check(&[one, unknown, deletion, absent, other, still_absent]).is_ok());
    }

    #[test]
    fn an_unknown_batch_may_delete_an_absent_key_before_another_write_creates_it() {
        let one = call(1, 0..1, put(0, 1), done(1, 1));
        let unknown = call(2, 2..3, batch(&[(0, None), (1, None)]), Outcome::Unknown);
        let created = call(3, 4..5, put(1, 3), done(1, 3));
        let created_again = call(4, 6..7, put(0, 4), done(1, 4));
        let both = range(5, 8..9, Consistency::Strong, &[seen(4, 1, 4), seen(3, 1, 3)], 4);
        let history = [one, unknown, created, created_again, both];
        assert!(check(&history).is_ok());
        // Without the batch, nothing explains the second creation.
        assert!(check(&[history[0].clone(), history[2].clone(), history[3].clone(), history[4].clone()]).is_err());
    }

    #[test]
    fn an_unknown_deletion_may_come_before_a_batch_of_which_only_another_key_was_seen() {
        let history = [
            call(1, 0..1, put(0, 1), done(1, 1)),
            call(2, 2..3, delete(0), Outcome::Unknown),
            call(3, 4..5, batch(&[(0, Some(2)), (1, Some(3))]), Outcome::Unknown),
            call(4, 6..7, put(0, 4), done(2, 4)),
            range(5, 8..9, Consistency::Strong, &[seen(4, 2, 4), seen(3, 1, 3)], 4),
        ];
        assert!(check(&history).is_ok());
        // Without the deletion, the version would be the third.
        assert!(check(&[history[0].clone(), history[2].clone(), history[3].clone(), history[4].clone()]).is_err());
    }

    #[test]
    fn many_unknown_writes_do_not_slow_down_the_search() {
        let mut history: Vec<Arc<Call>> = Vec::new();
        for number in 0..40 {
            let time = i64::try_from(number).unwrap() * 10;
            let key = usize::try_from(number).unwrap() % 4;
            history.push(call(100 + number, time..time + 1, put(key, 100 + number), Outcome::Unknown));
            history.push(call(
                200 + number,
                time + 2..time + 3,
                put(key, 200 + number),
                done(number / 4 + 1, number + 1),
            ));
        }
        assert!(check(&history).is_ok());
        history.push(get(900, 1_000..1_001, None, 40));
        assert!(check(&history).is_err());
    }

    #[test]
    fn unknown_batches_that_deletions_may_hide_leave_nothing_undecided() {
        let mut history: Vec<Arc<Call>> = Vec::new();
        for number in 0..12 {
            let items = [(0, Some(100 + number)), (1, Some(200 + number))];
            history.push(call(1 + number, 0..1, batch(&items), Outcome::Unknown));
        }
        history.push(call(20, 2..3, put(0, 1), done(1, 1)));
        history.push(call(21, 4..5, put(1, 2), done(1, 2)));
        // Any of the batches may have come before both deletions, which makes 4,096 cases.
        history.push(call(22, 6..7, delete(0), deleted(true)));
        history.push(call(23, 8..9, delete(1), deleted(true)));
        for number in 0..12 {
            let time = 10 + 10 * i64::try_from(number).unwrap();
            history.push(call(30 + number, time..time + 1, put(0, 30 + number), done(2 * number + 2, 10 + 3 * number)));
        }
        assert!(check(&history).is_ok());
        history.push(call(50, 200..201, put(0, 50), done(26, 100)));
        let violation = check(&history).unwrap_err();
        assert!(violation.what.contains("not linearizable"), "{violation}");
    }
}
