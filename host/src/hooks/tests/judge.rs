//! What hooks see of a request, and what becomes of their answers.

use super::*;
use crate::storage::command::{AskedBy, Fact, Precondition};

#[test]
fn writes_that_no_hook_matches_pass_unseen() {
    let trap = Wat::validator("(unreachable)");
    let hook = hook(&runtime(), "h", &trap, r#"{"prefix":"a/"}"#);
    let system = Operation { space: Space::System, ..put("a/1", "1") };
    let operations = vec![put("b/1", "1"), delete("a/1"), system];
    let judged = judge(vec![hook], operations.clone()).unwrap();
    assert_eq!(judged, Judged { operations, reads: Vec::new(), epoch: 7 });
}

#[test]
fn a_rejection_names_the_item_as_the_client_counts_it() {
    let hook = hook(&runtime(), "h", &Wat::rejecting(1), r#"{"prefix":"a/"}"#);
    let operations = vec![put("b", "0"), put("a/1", "1"), put("c", "0"), put("a/2", "2")];
    let Err(Error::Rejected(rejection)) = judge(vec![hook], operations) else { panic!() };
    assert_eq!((rejection.code.as_str(), rejection.message.as_str()), ("no", "nope"));
    assert_eq!(rejection.violations.len(), 1);
    assert_eq!(rejection.violations[0].item, Some(3));
    assert!(!rejection.has_read);
}

#[test]
fn a_rejection_of_an_item_that_is_not_there_still_rejects() {
    let hook = hook(&runtime(), "h", &Wat::rejecting(9), "{}");
    let Err(Error::Rejected(rejection)) = judge_key(&hook, "k") else { panic!() };
    assert_eq!(rejection.violations[0].item, None);
}

#[test]
fn transformers_run_in_order_and_json_stays_compact() {
    let runtime = runtime();
    let first = hook(&runtime, "z", &Wat::replacing(0, "{ \"a\" : 1 }"), r#"{"order":-1}"#);
    let second = hook(&runtime, "a", &Wat::replacing(1, "[ 2 ]"), "{}");
    let operations = vec![put("k", "0"), put("l", "0")];
    let judged = judge(vec![second.clone(), first], operations.clone()).unwrap();
    assert_eq!(judged.operations, [put("k", "{\"a\":1}"), put("l", "[2]")]);
    let last = hook(&runtime, "b", &Wat::replacing(1, "3"), "{}");
    let judged = judge(vec![last, second], operations).unwrap();
    assert_eq!(judged.operations, [put("k", "0"), put("l", "3")]);
}

#[test]
fn validators_see_what_transformers_made() {
    let runtime = runtime();
    // Rejects unless the value of the first write is the one byte `2`.
    let mut sees_two = Wat::rejecting(0);
    sees_two.validate = Some(
        "(if (result i32) (i32.eq (i32.load8_u (i32.load (i32.add (local.get 0) (i32.const 20)))) (i32.const 50)) \
         (then (i32.const 1024)) (else (i32.const 2048)))"
            .to_owned(),
    );
    let validator = hook(&runtime, "a", &sees_two, r#"{"order":-5}"#);
    let transformer = hook(&runtime, "z", &Wat::replacing(0, "2"), "{}");
    assert!(matches!(judge(vec![validator.clone()], vec![put("k", "1")]), Err(Error::Rejected(_))));
    judge(vec![validator, transformer], vec![put("k", "1")]).unwrap();
}

fn typed(content_type: &str) -> Operation {
    let value = Value::of_type(content_type, "1".into());
    Operation { space: Space::Kv, key: "k".to_owned(), action: Action::Put(value) }
}

#[test]
fn answers_that_make_no_sense_are_refused() {
    let runtime = runtime();
    for (wat, operation, says) in [
        (Wat::replacing(0, "{"), put("k", "1"), "not JSON"),
        (Wat::replacing(0, "{"), typed("application/geo+json"), "not JSON"),
        (Wat::replacing(4, "1"), put("k", "1"), "write 4 of 1"),
        (Wat::replacing(0, "1"), delete("k"), "deletion"),
    ] {
        let hook = hook(&runtime, "h", &wat, r#"{"operations":["put","delete"]}"#);
        let Err(Error::BadOutput { what, .. }) = judge(vec![hook], vec![operation]) else { panic!() };
        assert!(what.contains(says), "{what}");
    }
}

/// Reads whether `nope` exists, and accepts.
fn reading() -> Wat {
    let mut wat = Wat::rejecting(0);
    wat.validate = Some("(call $exists (i32.const 2100) (i32.const 4) (i32.const 3000)) (i32.const 1024)".to_owned());
    wat
}

#[test]
fn what_a_plugin_reads_becomes_a_precondition_once() {
    let runtime = runtime();
    let hooks = || vec![hook(&runtime, "a", &reading(), "{}"), hook(&runtime, "b", &reading(), "{}")];
    let reads = |kept: Kept| judge_with(kept, hooks(), vec![put("k", "1")]).unwrap().reads;
    let precondition = |fact| Precondition { asked_by: AskedBy::Plugin, space: Space::Kv, fact };
    let absent = Fact::Revision { key: "nope".to_owned(), revision: None };
    assert_eq!(reads(Kept::default()), [precondition(absent)]);
    let kept = Kept { revisions: BTreeMap::from([("nope".to_owned(), 3)]), is_broken: false };
    assert_eq!(reads(kept), [precondition(Fact::Exists { key: "nope".to_owned() })]);
}

#[test]
fn a_verdict_reached_while_the_storage_fails_does_not_count() {
    let hook = hook(&runtime(), "h", &reading(), r#"{"on_failure":"skip"}"#);
    let view = Kept { is_broken: true, ..Kept::default() };
    assert!(matches!(judge_with(view, vec![hook], vec![put("k", "1")]), Err(Error::Store(_))));
}

#[test]
fn reads_of_monitors_are_no_preconditions() {
    let hook = hook(&runtime(), "h", &reading(), r#"{"mode":"monitor"}"#);
    assert_eq!(judge(vec![hook], vec![put("k", "1")]).unwrap().reads, []);
}

#[test]
fn reads_are_refused_during_configure() {
    // Traps unless the read is answered with an error.
    let read = "(call $exists (i32.const 2100) (i32.const 4) (i32.const 3000)) \
                (if (i32.eqz (i32.load8_u (i32.const 3000))) (then (unreachable))) (i32.const 1024)";
    hook(&runtime(), "h", &reading().with_configure(read), "{}");
}
