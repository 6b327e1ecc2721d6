//! The calls on each object are linearizable: there is an order of them that explains every answer and in which none
//! comes before one that had ended when it began. Lost writes, stale strong reads, broken batches, conditions that were
//! not heeded and writes applied twice all break this.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use porcupine_rs::{CheckResult, LinearizationInfo, Model as _, Operation};

use super::Violation;
use crate::history::Call;
use crate::model::{self, Event, Object};

const RULE: &str = "the calls on each object are linearizable";

/// How long the search may take for one object.
const SEARCH_MAX: Duration = Duration::from_secs(60);

/// The most calls shown of what cannot be explained.
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

/// Writes the history of an object as a page for a browser.
pub fn draw(calls: &[Arc<Call>], object: u64, path: &Path) {
    let calls: Vec<Arc<Call>> = calls.iter().filter(|call| call.object == object).cloned().collect();
    let (_, info) = porcupine_rs::check_operations_info_timeout(&model::operations(&calls), SEARCH_MAX);
    porcupine_rs::visualize_path::<Object>(&info, path).unwrap();
}

/// How far the search came at best, and what could not follow.
fn explain(object: u64, operations: &[Operation<Object>]) -> Violation {
    let (verdict, info) = porcupine_rs::check_operations_info_timeout(operations, SEARCH_MAX);
    if verdict == CheckResult::Ok {
        return Violation::new(RULE, format!("object {object}: undecided at first, fine at last"), &[]);
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
        _ => "undecided: there are too many possibilities",
    };
    let what = format!(
        "object {object}: {verdict}. After {} of {} calls its state is {}, and none of these can come next, though one must:",
        explained.len(),
        operations.len(),
        Object::describe_state(&state),
    );
    let next: Vec<Arc<Call>> = next.map(|operation| call_of(operation).clone()).collect();
    Violation { rule: RULE, what, calls: next }
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
    use crate::history::{Ask, Demand, Effect, Item, Level, Outcome};

    fn conditional(key: usize, value: u64, demand: Demand) -> Ask {
        Ask::Write { items: vec![Item { key, value: Some(value), demand: Some(demand) }], named: false }
    }

    #[test]
    fn one_after_the_other_is_fine() {
        let history = [
            call(1, 0..1, put(0, 1), done(1, 1)),
            get(2, 2..3, seen(1, 1, 1), 1),
            call(3, 4..5, conditional(0, 2, Demand::Revision(1)), done(2, 2)),
            call(4, 6..7, conditional(0, 3, Demand::Revision(1)), Outcome::Refused(0, Some(2))),
            call(5, 8..9, delete(0), deleted(true)),
            call(6, 10..11, delete(0), deleted(false)),
            call(7, 12..13, conditional(0, 4, Demand::Absent), done(1, 4)),
            range(8, 14..15, Level::Strong, &[seen(4, 1, 4)], 4),
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
    fn a_condition_that_was_not_heeded_is_found() {
        let one = call(1, 0..1, put(0, 1), done(1, 1));
        let two = call(2, 2..3, put(0, 2), done(2, 2));
        let wrong = call(3, 4..5, conditional(0, 3, Demand::Revision(1)), done(3, 3));
        assert!(check(&[one.clone(), two.clone(), wrong]).is_err());
        let wrong = call(3, 4..5, conditional(0, 3, Demand::Revision(2)), Outcome::Refused(0, Some(2)));
        assert!(check(&[one.clone(), two, wrong]).is_err());
        assert!(check(&[one, call(2, 2..3, conditional(0, 2, Demand::Absent), done(2, 2))]).is_err());
    }

    #[test]
    fn a_write_that_was_applied_twice_is_found() {
        let one = call(1, 0..1, put(0, 1), done(1, 1));
        assert!(check(&[one.clone(), call(2, 2..3, put(0, 2), done(3, 3))]).is_err());
        assert!(check(&[one, call(2, 2..3, put(0, 2), done(2, 1))]).is_err());
    }

    #[test]
    fn half_a_batch_is_found() {
        let effects = vec![Effect::Put(1), Effect::Put(1)];
        let written = call(1, 0..1, batch(&[(0, Some(1)), (1, Some(2))]), Outcome::Done { revision: Some(1), effects });
        let whole = range(2, 2..3, Level::Strong, &[seen(1, 1, 1), seen(2, 1, 1)], 1);
        assert!(check(&[written.clone(), whole]).is_ok());
        assert!(check(&[written, range(2, 2..3, Level::Strong, &[seen(1, 1, 1)], 1)]).is_err());
    }

    #[test]
    fn an_unknown_write_may_have_happened_may_happen_late_and_may_never_happen() {
        let one = call(1, 0..1, put(0, 1), done(1, 1));
        let unknown = call(2, 2..3, put(0, 2), Outcome::Unknown);
        assert!(check(&[one.clone(), unknown.clone(), get(3, 4..5, seen(1, 1, 1), 1)]).is_ok());
        assert!(check(&[one.clone(), unknown.clone(), get(3, 4..5, seen(2, 2, 2), 2)]).is_ok());
        let late = [get(3, 4..5, seen(1, 1, 1), 1), get(4, 6..7, seen(2, 2, 2), 2)];
        assert!(check(&[one.clone(), unknown.clone(), late[0].clone(), late[1].clone()]).is_ok());
        let overwritten = call(3, 4..5, put(0, 3), done(3, 3));
        assert!(check(&[one.clone(), unknown.clone(), overwritten]).is_ok());
        // But not twice, and it does not go away again.
        assert!(check(&[one.clone(), unknown.clone(), call(3, 4..5, put(0, 3), done(4, 4))]).is_err());
        let gone = [get(3, 4..5, seen(2, 2, 2), 2), get(4, 6..7, seen(1, 1, 1), 2)];
        assert!(check(&[one, unknown, gone[0].clone(), gone[1].clone()]).is_err());
    }

    #[test]
    fn a_refusal_may_show_an_unknown_write_that_nobody_else_saw() {
        let unknown = call(1, 0..1, put(0, 1), Outcome::Unknown);
        let other = call(2, 2..3, put(1, 2), done(1, 5));
        let refused = |current| call(3, 4..5, conditional(0, 3, Demand::Absent), Outcome::Refused(0, Some(current)));
        let next = |demanded| call(4, 6..7, conditional(0, 4, Demand::Revision(demanded)), done(2, 6));
        assert!(check(&[unknown.clone(), other.clone(), refused(4), next(4)]).is_ok());
        assert!(check(&[unknown, other, refused(4), next(3)]).is_err());
    }

    #[test]
    fn an_unknown_write_does_not_happen_before_it_began() {
        let early = call(1, 0..1, put(0, 1), done(2, 2));
        assert!(check(&[early, call(2, 2..3, put(0, 2), Outcome::Unknown)]).is_err());
    }

    #[test]
    fn unknown_writes_of_several_keys_are_one_write() {
        let unknown = call(1, 0..9, batch(&[(0, Some(1)), (1, Some(2))]), Outcome::Unknown);
        let next = |id, key, version, revision| call(id, 10..11, put(key, id), done(version, revision));
        assert!(check(&[unknown.clone(), next(2, 0, 2, 2), next(3, 1, 2, 3)]).is_ok());
        assert!(check(&[unknown.clone(), next(2, 0, 1, 2), next(3, 1, 1, 3)]).is_ok());
        let half = [next(2, 0, 2, 2), call(3, 12..13, put(1, 3), done(1, 3))];
        assert!(check(&[unknown, half[0].clone(), half[1].clone()]).is_err());
    }

    #[test]
    fn a_deletion_may_hide_an_unknown_write_of_several_keys() {
        let one = call(1, 0..1, put(0, 1), done(1, 1));
        let unknown = call(2, 2..3, batch(&[(0, Some(2)), (1, Some(3))]), Outcome::Unknown);
        let deletion = call(3, 4..5, delete(0), deleted(true));
        let absent = get(4, 6..7, None, 3);
        let other = call(5, 8..9, put(1, 5), done(2, 4));
        let still_absent = get(6, 10..11, None, 4);
        assert!(check(&[one, unknown, deletion, absent, other, still_absent]).is_ok());
    }

    #[test]
    fn many_unknown_writes_do_not_make_the_search_long() {
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
}
