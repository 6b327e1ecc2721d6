//! Plugins that loop, allocate, trap or lie harm their own write alone (P7).

use super::*;

fn outcome(wat: &Wat, json: &str) -> Error {
    judge_key(&hook(&runtime(), "h", wat, json), "k").unwrap_err()
}

fn fails(wat: &Wat, json: &str) -> Failure {
    failure(outcome(wat, json))
}

#[test]
fn a_loop_ends_at_the_deadline() {
    let started_at = Instant::now();
    assert!(matches!(fails(&Wat::validator(LOOP), r#"{"deadline_ms":50}"#), Failure::TimedOut { deadline_ms: 50 }));
    assert!(started_at.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_deadline_holds_after_the_ticker_has_slept() {
    let runtime = runtime();
    let hook = hook(&runtime, "h", &Wat::validator(LOOP), r#"{"deadline_ms":20}"#);
    std::thread::sleep(Duration::from_millis(1_500));
    let error = judge_key(&hook, "k").unwrap_err();
    assert!(matches!(failure(error), Failure::TimedOut { .. }));
}

#[test]
fn a_loop_in_configure_is_refused_when_the_hook_is_created() {
    let wat = Wat::validator(OK).with_configure(LOOP);
    let runtime = runtime();
    let plugin = runtime.compile("p", &wat.bytes(), &CompileOptions::default()).unwrap();
    let error = runtime.bind("h", binding("{}"), &plugin).unwrap_err();
    assert!(matches!(failure(error), Failure::TimedOut { deadline_ms: 5_000 }));
}

#[test]
fn a_trap_says_what_happened() {
    let error = fails(&Wat::validator("(unreachable)"), "{}");
    assert!(matches!(&error, Failure::Trapped(message) if message == "it aborted"), "{error:?}");
    let error = fails(&Wat::validator("(i32.div_u (i32.const 1) (i32.const 0))"), "{}");
    assert!(matches!(&error, Failure::Trapped(message) if message.contains("divide by zero")), "{error:?}");
}

#[test]
fn endless_recursion_fills_only_its_own_stack() {
    let mut wat = Wat::validator("(call $deep (local.get 0))");
    wat.data = "(func $deep (param i32) (result i32) (i32.add (call $deep (local.get 0)) (i32.const 1)))".to_owned();
    let error = fails(&wat, "{}");
    assert!(matches!(&error, Failure::Trapped(message) if message == "its stack is full"), "{error:?}");
}

#[test]
fn a_refused_growth_is_the_reason_and_not_the_abort_after_it() {
    let grow = "(if (i32.eq (memory.grow (i32.const 100)) (i32.const -1)) (then (unreachable))) (i32.const 1024)";
    let error = fails(&Wat::validator(grow), r#"{"memory_bytes":1048576}"#);
    assert!(matches!(error, Failure::MemoryLimit { asked: 6_619_136, limit: 1_048_576, .. }), "{error:?}");
    // The same guest with room for it is fine.
    judge_key(&hook(&runtime(), "h", &Wat::validator(grow), "{}"), "k").unwrap();
}

#[test]
fn an_answer_that_is_too_large_costs_an_error_and_no_memory() {
    // A list of 600 replacements, all of the same 32 MiB.
    let body = "(local $i i32) (i32.store (i32.const 2052) (i32.const 65536)) \
                (i32.store (i32.const 2056) (i32.const 600)) \
                (loop $l (i32.store (i32.add (i32.const 65540) (i32.mul (local.get $i) (i32.const 12))) (i32.const 0)) \
                (i32.store (i32.add (i32.const 65544) (i32.mul (local.get $i) (i32.const 12))) (i32.const 33554432)) \
                (br_if $l (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 600)))) \
                (i32.const 2048)";
    assert!(matches!(fails(&Wat::transformer(body).with_memory("600"), "{}"), Failure::OutputLimit(16_777_216)));
    // The same of 16 bytes each is within that, and over what a hook may be given instead.
    let wat = Wat::transformer(&body.replace("33554432", "16")).with_memory("600");
    assert!(matches!(outcome(&wat, "{}"), Error::BadOutput { .. }));
    assert!(matches!(fails(&wat, r#"{"output_bytes":4096}"#), Failure::OutputLimit(4_096)));
}

#[test]
fn a_loop_at_the_start_of_an_instance_makes_no_plugin() {
    let mut wat = Wat::validator(OK);
    wat.data = "(func $start (loop $l (br $l))) (start $start)".to_owned();
    let error = runtime().compile("p", &wat.bytes(), &CompileOptions::default()).unwrap_err();
    assert!(matches!(failure(error), Failure::TimedOut { deadline_ms: 5_000 }));
}

#[test]
fn tables_have_a_limit_too() {
    let grow = "(if (i32.eq (table.grow $t (ref.null func) (i32.const 200000)) (i32.const -1)) (then (unreachable))) \
                (i32.const 1024)";
    let mut wat = Wat::validator(grow);
    wat.data = "(table $t 1 funcref)".to_owned();
    assert!(matches!(fails(&wat, "{}"), Failure::MemoryLimit { what: "table elements", .. }));
}

#[test]
fn a_text_that_is_none_ends_the_call() {
    let mut wat = Wat::rejecting(0);
    wat.data = wat.data.replace("nope", "\\ff\\fe\\ff\\fe");
    let error = fails(&wat, "{}");
    assert!(matches!(&error, Failure::Trapped(message) if message.contains("utf-8")), "{error:?}");
}

#[test]
fn pointers_out_of_bounds_are_traps() {
    assert!(matches!(fails(&Wat::transformer("(i32.const -8)"), "{}"), Failure::Trapped { .. }));
}

#[test]
fn no_call_sees_what_another_left() {
    let body = "(if (i32.load (i32.const 3000)) (then (unreachable))) (i32.store (i32.const 3000) (i32.const 1)) \
                (i32.const 1024)";
    let hook = hook(&runtime(), "h", &Wat::validator(body), "{}");
    for _ in 0..100 {
        judge_key(&hook, "k").unwrap();
    }
}

#[test]
fn a_failure_is_skipped_or_refuses_and_a_monitor_changes_nothing() {
    let (runtime, seen) = observed();
    let trap = Wat::validator("(unreachable)");
    let skip = hook(&runtime, "skip", &trap, r#"{"on_failure":"skip"}"#);
    let monitor = hook(&runtime, "monitor", &Wat::rejecting(0), r#"{"mode":"monitor"}"#);
    let rewrite = hook(&runtime, "rewrite", &Wat::replacing(0, "2"), r#"{"mode":"monitor"}"#);
    let judged = judge(vec![skip, monitor, rewrite], vec![put("k", "1")]).unwrap();
    assert_eq!(judged.operations, [put("k", "1")]);
    let mut results = seen.0.lock().clone();
    results.sort();
    let expected = [("monitor", "rejected"), ("rewrite", "accepted"), ("skip", "trapped")];
    assert_eq!(results, expected.map(|(hook, result)| (hook.to_owned(), result)));
    // A refusal is not a failure.
    let refusing = hook(&runtime, "h", &Wat::rejecting(0), r#"{"on_failure":"skip"}"#);
    assert!(matches!(judge_key(&refusing, "k"), Err(Error::Rejected(_))));
}
