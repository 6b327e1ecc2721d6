//! An instance that was reset after its call cannot be told from a new one; an instance that cannot be reset is dropped.

use super::*;

#[test]
fn an_instance_that_was_reset_is_like_a_new_one() {
    let hook = pre_initialized(&runtime(), &suspicious(), "{}");
    for number in 0..100 {
        judge_key(&hook, &format!("key-{number}")).unwrap();
        assert_eq!(hook.waiting(), Ok(1));
    }
}

#[test]
fn each_thread_has_its_own() {
    let hook = pre_initialized(&runtime(), &suspicious(), "{}");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..200).for_each(|_| drop(judge_key(&hook, "k").unwrap())));
        }
    });
    assert!((1..=4).contains(&hook.waiting().unwrap()));
}

#[test]
fn after_a_trap_or_a_missed_deadline_nobody_gets_the_instance() {
    let runtime = runtime();
    for (body, word) in [("unreachable", "trapped"), ("(loop $l (br $l))", "timed_out")] {
        let wat = Wat::validator(&format!(
            "(i32.store (i32.const 20000) (i32.const 1)) \
             (if (i32.eq (i32.load8_u (i32.load (local.get 0))) (i32.const 0x74)) (then {body})) (i32.const 1024)"
        ));
        let hook = pre_initialized(&runtime, &wat, r#"{"deadline_ms": 20}"#);
        judge_key(&hook, "a").unwrap();
        assert_eq!(hook.waiting(), Ok(1));
        assert_eq!(judge_key(&hook, "t").unwrap_err().word(), word);
        assert_eq!(hook.waiting(), Ok(0));
        judge_key(&hook, "a").unwrap();
    }
}

#[test]
fn an_instance_that_has_grown_or_written_to_much_is_dropped() {
    let runtime = runtime();
    let grow = "(if (i32.ne (memory.size) (i32.const 80)) (then unreachable)) \
                (drop (memory.grow (i32.const 1))) (i32.const 1024)";
    // A page more than is restored.
    let fill = "(if (i32.load (i32.const 66000)) (then unreachable)) \
                (memory.fill (i32.const 65536) (i32.const 7) (i32.const 4194305)) (i32.const 1024)";
    // A growth that is refused leaves no trace but that.
    let refused = "(drop (memory.grow (i32.const 10000))) (i32.const 1024)";
    for body in [grow, fill, refused] {
        let hook = pre_initialized(&runtime, &Wat::validator(body).with_memory("80"), "{}");
        for _ in 0..3 {
            judge_key(&hook, "k").unwrap();
            assert_eq!(hook.waiting(), Ok(0), "{body}");
        }
    }
}

#[test]
fn an_instance_that_was_given_handles_is_dropped() {
    // Its table of handles would tell: the first handle of an instance is 1.
    let wat = Wat::validator("(if (i32.ne (call $stderr) (i32.const 1)) (then unreachable)) (i32.const 1024)");
    let imports = r#"(component
        (import "wasi:io/streams@0.2.0" (instance $streams (export "output-stream" (type (sub resource)))))
        (alias export $streams "output-stream" (type $stream))
        (import "wasi:cli/stderr@0.2.0" (instance $cli
            (alias outer 1 $stream (type $outer)) (export "output-stream" (type $inner (eq $outer)))
            (export "get-stderr" (func (result (own $inner))))))
        (alias export $cli "get-stderr" (func $stderr))
        (core func $stderr (canon lower (func $stderr))) "#;
    let text = wat
        .text()
        .replacen("(component ", imports, 1)
        .replacen("(core module $m ", r#"(core module $m (import "host" "stderr" (func $stderr (result i32))) "#, 1)
        .replacen(r#"(export "exists" (func $e"#, r#"(export "stderr" (func $stderr)) (export "exists" (func $e"#, 1);
    let hook = pre_initialized_from(&runtime(), &wat::parse_str(&text).unwrap(), "{}");
    for _ in 0..3 {
        judge_key(&hook, "k").unwrap();
        assert_eq!(hook.waiting(), Ok(0));
    }
}

#[test]
fn a_plugins_exports_under_our_names_are_not_called() {
    let runtime = runtime();
    let mut wat = suspicious();
    wat.data += "(func (export \"nothing\")) (func (export \"all\") (result i32) (i32.const 1024))";
    let text = wat.text();
    let text = text.trim_end().strip_suffix(')').unwrap();
    let restore = r#"(func $b (canon lift (core func $i "nothing"))) (export "brink-put-back" (func $b))"#;
    let memory = r#"(type $l (list u8)) (func $a (result $l) (canon lift (core func $i "all") (memory (core memory $mem "memory"))))
                    (export "brink-memory" (func $a))"#;
    for added in [restore.to_owned(), memory.to_owned(), format!("{restore} {memory}")] {
        let hook = pre_initialized_from(&runtime, &wat::parse_str(format!("{text} {added})")).unwrap(), "{}");
        assert!(hook.waiting().unwrap_err().contains("named like ours"));
        judge_key(&hook, "k").unwrap();
        judge_key(&hook, "k").unwrap();
    }
}

#[test]
fn pages_that_lie_apart_are_restored_too() {
    // Every other page of 4 MiB: more runs than one request lists.
    let wat = Wat::validator(
        "(local $at i32) \
         (loop $next \
           (if (i32.load (i32.add (local.get $at) (i32.const 65536))) (then unreachable)) \
           (i32.store (i32.add (local.get $at) (i32.const 65536)) (i32.const 7)) \
           (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 8192))) (i32.const 4194304)))) \
         (i32.const 1024)",
    );
    let hook = pre_initialized(&runtime(), &wat.with_memory("80"), "{}");
    for _ in 0..3 {
        judge_key(&hook, "k").unwrap();
        assert_eq!(hook.waiting(), Ok(1));
    }
}

#[test]
fn a_page_that_is_first_written_to_by_a_later_call_is_restored_too() {
    // Each key has a page of its own.
    let wat = Wat::validator(
        "(local $at i32) \
         (local.set $at (i32.mul (i32.load8_u (i32.load (local.get 0))) (i32.const 4096))) \
         (if (i32.load (i32.add (local.get $at) (i32.const 65536))) (then unreachable)) \
         (i32.store (i32.add (local.get $at) (i32.const 65536)) (i32.const 7)) \
         (i32.const 1024)",
    );
    let hook = pre_initialized(&runtime(), &wat.with_memory("80"), "{}");
    for round in 0..4 {
        for key in ["a", "b", "a", "c", "b", "z"] {
            judge_key(&hook, key).unwrap();
            assert_eq!(hook.waiting(), Ok(1), "{round} {key}");
        }
    }
}

#[test]
fn a_node_keeps_only_so_much_memory() {
    let runtime = runtime();
    let wat = Wat::validator(OK).with_memory("800");
    let next = || {
        let hook = pre_initialized(&runtime, &wat, r#"{"memory_bytes": 67108864}"#);
        judge_key(&hook, "k").unwrap();
        judge_key(&hook, "k").unwrap();
        hook
    };
    // 50 MiB each, and as much for the copy: two with an instance, one without room for it, one without room for the copy.
    let hooks = [next(), next(), next(), next()];
    let waiting = hooks.each_ref().map(|hook| hook.waiting());
    assert!(matches!(waiting, [Ok(1), Ok(1), Ok(0), Err(_)]), "{waiting:?}");
    drop(hooks);
    assert_eq!(next().waiting(), Ok(1));
}

#[test]
fn a_call_that_may_have_less_memory_than_there_is_meets_its_limit() {
    let wat = Wat::validator(OK).with_memory("4");
    let hook = pre_initialized(&runtime(), &wat, "{}");
    judge_key(&hook, "k").unwrap();
    assert_eq!(hook.waiting(), Ok(1));
    let limits = crate::sandbox::CallLimits { memory_bytes: 65_536, ..hook.limits };
    assert!(matches!(hook.provide_instance(limits), Err(Failure::MemoryLimit { .. })));
}
