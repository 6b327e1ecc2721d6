//! The cost of a judgement on one thread, and what resetting and pre-initializing are worth.
//!
//! ```sh
//! cargo build --profile plugin --target wasm32-wasip2 -p json-schema -p limits -p normalize -p test-reference
//! cargo bench --bench hooks
//! ```
//!
//! Each name says the plugin and how it ran. `reset` is as on a node; `new` starts an instance for each call; `configured` does
//! so too, and each call configures its instance. `instance` takes and resets an instance without a call, `new-instance` starts
//! and ends one. `passing` is a call that reads only the length of a value: the differences between its sizes are the cost of
//! handing a value over.

#![allow(missing_docs, reason = "the harness makes a function without")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure here is a failed benchmark")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use brink::hooks::{Binding, CompileOptions, Compilers, Hook, Runtime, Set, View, ViewError};
use brink::storage::{Action, Entry, Operation, RangeDigest, Space, Value};
use criterion::{Criterion, criterion_group, criterion_main};

/// As in the node: a new instance makes some hundred allocations.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The schema of the records of ISO 639-3, as Debian's iso-codes has it.
const RECORD_SCHEMA: &str = r#"{"schema": {"type": "object", "properties": {
    "alpha_3": {"type": "string", "pattern": "^[a-z]{3}$"},
    "name": {"type": "string", "minLength": 1},
    "scope": {"type": "string", "pattern": "^[IMS]$"},
    "type": {"type": "string", "pattern": "^[ACEHLS]$"},
    "alpha_2": {"type": "string", "pattern": "^[a-z]{2}$"},
    "bibliographic": {"type": "string", "pattern": "^[a-z]{3}$"},
    "common_name": {"type": "string", "minLength": 1},
    "inverted_name": {"type": "string", "minLength": 1}
  }, "required": ["alpha_3", "name", "scope", "type"], "additionalProperties": false}}"#;

/// Bytes of the values that `normalize` and a pattern are given.
const VALUE_BYTES: usize = 256;

/// A store without entries.
struct Nothing;

impl View for Nothing {
    fn get(&self, _: &str) -> Result<Option<Entry>, ViewError> {
        Ok(None)
    }

    fn list(&self, _: &str, _: &str, _: u32) -> Result<(Vec<String>, RangeDigest), ViewError> {
        Ok((Vec::new(), RangeDigest::of([])))
    }
}

/// A plugin, and the write that it judges.
struct Subject {
    name: &'static str,
    package: &'static str,
    config: &'static str,
    action: Action,
}

fn subjects() -> [Subject; 4] {
    let text = format!(r#""{}""#, "aB3".repeat(VALUE_BYTES / 3));
    let padding = "x".repeat(VALUE_BYTES - r#"{"name":"  "}"#.len());
    let value = format!(r#"{{"name":" {padding} "}}"#);
    let record = r#"{"alpha_2":"de","alpha_3":"deu","bibliographic":"ger","name":"German","scope":"I","type":"L"}"#;
    [
        // A deletion needs no reference: the plugin has nothing to do.
        Subject {
            name: "nothing",
            package: "test_reference",
            config: r#"{"reference": "of"}"#,
            action: Action::Delete,
        },
        Subject {
            name: "normalize",
            package: "normalize",
            config: r#"{"trim": ["/name"]}"#,
            action: Action::Put(Value::json(value)),
        },
        Subject {
            name: "json-schema",
            package: "json_schema",
            config: RECORD_SCHEMA,
            action: Action::Put(Value::json(record)),
        },
        // What `cargo xtask hook-cost` binds.
        Subject {
            name: "pattern",
            package: "json_schema",
            config: r#"{"schema": {"type": "string", "maxLength": 1024, "pattern": "^[A-Za-z0-9]*$"}}"#,
            action: Action::Put(Value::json(text)),
        },
    ]
}

fn component(package: &str) -> Vec<u8> {
    let target = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/wasm32-wasip2/plugin"));
    let dir = std::env::var_os("BRINK_PLUGINS_DIR").map_or(target, PathBuf::from);
    let path = dir.join(format!("{package}.wasm"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; build the plugins first", path.display()))
}

fn hook(runtime: &Runtime, subject: &Subject, is_pre_initialized: bool) -> Hook {
    let component = component(subject.package);
    let plugin = runtime.compile("p", &component, &CompileOptions::default()).unwrap();
    let binding = format!(r#"{{"plugin": "p", "operations": ["put", "delete"], "config": {}}}"#, subject.config);
    let hook = runtime.bind("h", Binding::parse(binding.as_bytes()).unwrap(), &plugin).unwrap();
    if is_pre_initialized {
        hook.pre_initialize(&component, &CompileOptions::default()).unwrap();
        assert_eq!(hook.pre_initialized(), Some(Ok(())));
    }
    hook
}

fn judgements(criterion: &mut Criterion) {
    let with_resets = Runtime::new(Arc::new(()), Compilers::Here, None).unwrap();
    let without_resets = Runtime::without_resets(Arc::new(())).unwrap();
    let settings =
        [("reset", &with_resets, true), ("new", &without_resets, true), ("configured", &without_resets, false)];
    for subject in &subjects() {
        let mut group = criterion.benchmark_group(subject.name);
        for (name, runtime, is_pre_initialized) in settings {
            let set = Arc::new(Set::new(1, vec![hook(runtime, subject, is_pre_initialized)]));
            let write = Operation { space: Space::Kv, key: "k".to_owned(), action: subject.action.clone() };
            group.bench_function(name, |bencher| bencher.iter(|| judge(&set, &write)));
        }
        for (name, runtime) in [("instance", &with_resets), ("new-instance", &without_resets)] {
            let hook = hook(runtime, subject, true);
            group.bench_function(name, |bencher| bencher.iter(|| hook.provide_instance(hook.limits).unwrap()));
        }
        group.finish();
    }
    passing(criterion);
}

fn passing(criterion: &mut Criterion) {
    let runtime = Runtime::new(Arc::new(()), Compilers::Here, None).unwrap();
    let mut group = criterion.benchmark_group("passing");
    for bytes in [16, 1_024, 16_384, 262_144] {
        let action = Action::Put(Value { content_type: "text/plain".into(), bytes: vec![b'x'; bytes].into() });
        let subject =
            Subject { name: "limits", package: "limits", config: r#"{"bytes_max": 1000000}"#, action: action.clone() };
        let set = Arc::new(Set::new(1, vec![hook(&runtime, &subject, true)]));
        let write = Operation { space: Space::Kv, key: "k".to_owned(), action };
        group.bench_function(bytes.to_string(), |bencher| bencher.iter(|| judge(&set, &write)));
    }
    group.finish();
}

fn judge(set: &Arc<Set>, write: &Operation) {
    let deadline = Instant::now() + Duration::from_secs(10);
    brink::hooks::judge(set, vec![write.clone()], Arc::new(Nothing), deadline).unwrap();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = judgements
}
criterion_main!(benches);
