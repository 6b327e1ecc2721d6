//! Guests of random code, and components with random damage: whatever they are, what a node says of them is one of the errors
//! of plugins, and hooks beside them go on to judge.
//!
//! Each case follows from its seed. `BRINK_FUZZ_CASES` says how many are tried, from the seed `BRINK_FUZZ_FROM`.

use arbitrary::Unstructured;
use fastrand::Rng;
use wasm_smith::{Config, Module};

use super::*;

/// Cases of each kind unless the environment says otherwise.
const CASES: u64 = 120;

/// Random bytes from which one guest is made.
const ENTROPY_BYTES: usize = 8 * 1024;

/// What random code is to import and export: the shape of the core module of [`Wat`].
const SHAPE: &str = r#"(module
    (import "host" "exists" (func (param i32 i32 i32)))
    (import "host" "memory" (memory 1))
    (func (export "configure") (param i32 i32) (result i32) unreachable)
    (func (export "validate") (param i32 i32) (result i32) unreachable)
    (func (export "transform") (param i32 i32) (result i32) unreachable))"#;

/// As above, of code that counts.
const STEP: &str = r#"(module
    (import "host" "memory" (memory 1))
    (func (export "step") (param i32 i32) (result i32) unreachable))"#;

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let from = number("BRINK_FUZZ_FROM").unwrap_or(0);
    from..from + number("BRINK_FUZZ_CASES").unwrap_or(CASES)
}

/// A plugin in both roles whose code is random.
fn random_guest(seed: u64) -> Vec<u8> {
    let core = random_code(seed, SHAPE, Config::default());
    Wat { core: Some(core), transform: Some(String::new()), ..Wat::validator("") }.bytes()
}

/// A validator whose verdict is a sum of its whole state before the call, which random code then changes: it refuses with
/// a message of so many letters. It does not trap, and changes no tables and drops no segments, so that it can be
/// pre-initialized.
fn counting_guest(seed: u64) -> Vec<u8> {
    let config = Config { disallow_traps: true, bulk_memory_enabled: false, simd_enabled: false, ..Config::default() };
    let core = random_code(seed, STEP, config);
    let (_, rest) = core.split_once("(export \"step\" (func ").unwrap();
    let step = rest.split(')').next().unwrap();
    let globals: String = (0..core.matches("(global (;").count())
        .filter(|index| core.contains(&format!("(global (;{index};) (mut i32)")))
        .map(|index| format!("(local.set $sum (i32.add (local.get $sum) (global.get {index})))"))
        .collect();
    let verdict = format!(
        "(func (export \"configure\") (param i32 i32) (result i32) {OK}) \
         (func (export \"validate\") (param i32 i32) (result i32) (local $sum i32) (local $at i32) \
           (loop $next \
             (local.set $sum (i32.add (i32.mul (local.get $sum) (i32.const 31)) (i32.load (local.get $at)))) \
             (br_if $next (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 4))) (i32.const 65536)))) \
           {globals} \
           (drop (call {step} (local.get 0) (local.get 1))) \
           (memory.fill (i32.const 8192) (i32.const 0) (i32.const 64)) \
           (memory.fill (i32.const 16384) (i32.const 120) (i32.const 1024)) \
           (i32.store8 (i32.const 8192) (i32.const 1)) \
           (i32.store (i32.const 8204) (i32.const 16384)) \
           (i32.store (i32.const 8208) (i32.and (local.get $sum) (i32.const 1023))) \
           (i32.const 8192)))"
    );
    let core = core.trim_end().strip_suffix(')').unwrap().to_owned() + &verdict;
    Wat { core: Some(core), ..Wat::validator("").without_reads() }.bytes()
}

/// A core module of random code, as text.
fn random_code(seed: u64, shape: &str, config: Config) -> String {
    let mut entropy = vec![0; ENTROPY_BYTES];
    Rng::with_seed(seed).fill(&mut entropy);
    let config = Config {
        module_shape: Some(wat::parse_str(shape).unwrap()),
        // What the engine of a node does not have.
        gc_enabled: false,
        reference_types_enabled: false,
        exceptions_enabled: false,
        threads_enabled: false,
        memory64_enabled: false,
        ..config
    };
    let module = Module::new(config, &mut Unstructured::new(&entropy)).unwrap();
    let text = wasmprinter::print_bytes(module.to_bytes()).unwrap();
    text.replacen("(module", "(core module $m", 1)
}

/// Gives a component some damage: bytes changed, moved, left out or doubled.
fn damage(component: &mut Vec<u8>, rng: &mut Rng) {
    for _ in 0..rng.usize(1..=4) {
        let at = rng.usize(8..component.len());
        let until = (at + rng.usize(1..=16)).min(component.len());
        match rng.u8(0..4) {
            0 => component[at] = rng.u8(..),
            1 => component[at..until].rotate_left(1),
            2 => drop(component.drain(at..until)),
            _ => {
                let piece = component[at..until].to_vec();
                component.splice(at..at, piece);
            }
        }
    }
}

/// A hook that may use little.
fn bounded(runtime: &Runtime, component: &[u8]) -> Result<Hook, Error> {
    let plugin = runtime.compile("p", component, &CompileOptions::default())?;
    Ok(runtime.load("h", binding(r#"{"deadline_ms":20,"memory_bytes":1048576}"#), &plugin).unwrap())
}

/// What became of a case, as a word.
fn observe(runtime: &Runtime, component: &[u8]) -> &'static str {
    let hook = match bounded(runtime, component) {
        Ok(hook) => hook,
        Err(error) => return error.word(),
    };
    match judge_key(&hook, "k") {
        Ok(_) => "accepted",
        Err(error) => {
            assert!(error.is_plugin_failure() || matches!(error, Error::Rejected(_)), "{error:?}");
            error.word()
        }
    }
}

/// Tries cases beside two hooks that must go on to say what they said.
fn try_all(cases: impl Iterator<Item = (u64, Vec<u8>)>) -> BTreeMap<&'static str, usize> {
    let runtime = runtime();
    let good = hook(&runtime, "good", &Wat::replacing(0, "2"), "{}");
    let bad = hook(&runtime, "bad", &Wat::rejecting(0), "{}");
    let mut seen = BTreeMap::new();
    for (seed, component) in cases {
        *seen.entry(observe(&runtime, &component)).or_default() += 1;
        let judged = judge_key(&good, "k").unwrap();
        assert_eq!(judged.operations, [put("k", "2")], "after seed {seed}");
        assert!(matches!(judge_key(&bad, "k"), Err(Error::Rejected(_))), "after seed {seed}");
    }
    println!("{seen:?}");
    seen
}

#[test]
fn whatever_a_guest_computes_is_one_of_the_outcomes_of_plugins() {
    let seen = try_all(seeds().map(|seed| (seed, random_guest(seed))));
    // Most of them do run, and stop in more ways than one.
    let ran: usize = seen
        .iter()
        .filter(|(word, _)| ["accepted", "rejected", "trapped", "timed_out"].contains(word))
        .map(|(_, count)| count)
        .sum();
    assert!(seen.len() > 1 && ran > seen.values().sum::<usize>() / 2, "{seen:?}");
}

#[test]
fn whatever_is_damaged_in_a_component_is_refused_or_runs() {
    let whole = [Wat::rejecting(0).bytes(), Wat::replacing(0, "2").bytes(), random_guest(1)];
    let damaged = seeds().map(|seed| {
        let mut rng = Rng::with_seed(seed);
        let mut component = whole[rng.usize(0..whole.len())].clone();
        damage(&mut component, &mut rng);
        (seed, component)
    });
    let seen = try_all(damaged);
    assert!(seen.len() > 1, "{seen:?}");
}

/// The answers to several calls of a pre-initialized guest, one after the other.
fn call_often(runtime: &Runtime, component: &[u8]) -> Option<(Vec<String>, usize)> {
    let hook = bounded(runtime, component).ok()?;
    hook.pre_initialize(component, &CompileOptions::default()).unwrap();
    hook.pre_initialized()?.ok()?;
    let mut was_reset = 0;
    let answers = (0..4).map(|_| {
        let answer = judge_key(&hook, "k");
        was_reset += hook.waiting().unwrap_or(0);
        format!("{answer:?}")
    });
    let answers = answers.collect();
    Some((answers, was_reset))
}

#[test]
fn calls_of_reset_instances_answer_like_those_of_new_ones() {
    let resetting = runtime();
    let starting = Runtime::without_resets(Arc::new(())).unwrap();
    let mut were_reset = 0;
    // Each takes as long as three of the others.
    for seed in seeds().step_by(3) {
        let component = counting_guest(seed);
        let Some((answers, was_reset)) = call_often(&resetting, &component) else { continue };
        let (expected, _) = call_often(&starting, &component).unwrap();
        // Time is not part of what a guest computes.
        if !expected.iter().chain(&answers).any(|answer| answer.starts_with("Err(TimedOut")) {
            assert_eq!(answers, expected, "seed {seed}");
            were_reset += was_reset;
        }
    }
    println!("{were_reset} calls ended with a reset instance");
    // Most of four for each guest.
    assert!(were_reset > seeds().step_by(3).count() * 2);
}
