//! Configured once, and reset after each call; and compiled code that outlives the process.

use super::*;

/// Keeps the first byte of its configuration, and can do so only once.
const CONFIGURE_ONCE: &str = "(if (i32.load8_u (i32.const 3001)) (then unreachable)) \
    (i32.store8 (i32.const 3001) (i32.const 1)) \
    (i32.store8 (i32.const 3000) (i32.load8_u (local.get 0))) (i32.const 1024)";

/// Accepts if the configuration is there, and overwrites it. Traps for keys that start with `t`, after that.
const SPOIL: &str = "(if (i32.ne (i32.load8_u (i32.const 3000)) (i32.const 0x37)) (then unreachable)) \
    (i32.store8 (i32.const 3000) (i32.const 0)) \
    (if (i32.eq (i32.load8_u (i32.load (local.get 0))) (i32.const 0x74)) (then unreachable)) (i32.const 1024)";

#[test]
fn calls_start_configured_and_see_nothing_of_each_other() {
    let wat = Wat::validator(SPOIL).with_configure(CONFIGURE_ONCE);
    let hook = hook(&runtime(), "h", &wat, r#"{"config": 7}"#);
    judge_key(&hook, "before").unwrap();
    assert_eq!(hook.pre_initialized(), None);

    hook.pre_initialize(&wat.bytes(), &CompileOptions::default()).unwrap();
    assert_eq!(hook.pre_initialized(), Some(Ok(())));
    // Were it configured once more, or started where another call ended, it would trap.
    for key in ["a", "b", "trap", "c", "trap", "d"] {
        let failure = judge_key(&hook, key).err().map(|error| error.word());
        assert_eq!(failure, (key == "trap").then_some("trapped"), "{key}");
    }
}

#[test]
fn a_hook_is_pre_initialized_with_its_own_configuration() {
    let wat = Wat::validator(SPOIL).with_configure(CONFIGURE_ONCE);
    let other = pre_initialized(&runtime(), &wat, r#"{"config": 8}"#);
    assert!(matches!(failure(judge_key(&other, "a").unwrap_err()), Failure::Trapped { .. }));
}

#[test]
fn the_limits_hold_for_pre_initialized_hooks() {
    let runtime = runtime();
    let grow = "(drop (memory.grow (i32.const 100))) (if (i32.lt_u (memory.size) (i32.const 100)) (then unreachable)) \
                (i32.const 1024)";
    let wat = Wat::validator(grow).with_memory("1");
    let hook = pre_initialized(&runtime, &wat, r#"{"memory_bytes": 131072}"#);
    assert!(matches!(failure(judge_key(&hook, "a").unwrap_err()), Failure::MemoryLimit { .. }));

    let hook = pre_initialized(&runtime, &Wat::validator(LOOP), r#"{"deadline_ms": 20}"#);
    assert!(matches!(failure(judge_key(&hook, "a").unwrap_err()), Failure::TimedOut { .. }));
}

#[test]
fn a_plugin_that_changes_its_tables_is_configured_before_each_call() {
    let mut wat = Wat::validator(SPOIL).with_configure(CONFIGURE_ONCE);
    wat.data = "(table $t 1 funcref) \
                (func (export \"grow\") (drop (table.grow $t (ref.null func) (i32.const 1))))"
        .to_owned();
    let hook = hook(&runtime(), "h", &wat, r#"{"config": 7}"#);
    hook.pre_initialize(&wat.bytes(), &CompileOptions::default()).unwrap();
    let reason = hook.pre_initialized().unwrap().unwrap_err();
    assert!(reason.contains("table"), "{reason}");
    judge_key(&hook, "a").unwrap();
    judge_key(&hook, "b").unwrap();
}

#[test]
fn the_next_process_compiles_nothing_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("compiled");
    let start = || Runtime::new(Arc::new(()), Compilers::Here, Some(&dir)).unwrap();
    let wat = Wat::validator(SPOIL).with_configure(CONFIGURE_ONCE);
    let first = start();
    let hook = hook(&first, "h", &wat, r#"{"config": 7}"#);
    hook.pre_initialize(&wat.bytes(), &CompileOptions::default()).unwrap();
    let digest = hook.plugin().digest().to_owned();

    let second = start();
    let plugin = second.compiled_before("p", &digest).unwrap();
    assert_eq!((plugin.digest(), plugin.roles()), (digest.as_str(), vec!["validator"]));
    let again = second.load("h", binding(r#"{"config": 7}"#), &plugin).unwrap();
    // From what is on disk alone: there are no bytes to make it of.
    again.pre_initialize(b"", &CompileOptions::default()).unwrap();
    assert_eq!(again.pre_initialized(), Some(Ok(())));
    judge_key(&again, "a").unwrap();
    assert!(second.compiled_before("p", &super::digest(b"other")).is_none());

    // What is not needed goes, and what is damaged is not used.
    second.keep_compiled([digest.clone()], []);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 1);
    let entry = std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&entry).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&entry, bytes).unwrap();
    assert!(start().compiled_before("p", &digest).is_none());
}
