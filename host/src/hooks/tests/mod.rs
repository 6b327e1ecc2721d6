//! What hooks promise, tried with small guests written by hand.

mod binding;
mod contain;
mod fuzz;
mod judge;
mod pipeline;
mod preinit;
mod reset;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::*;
use crate::sandbox::tests::{OK, Wat, suspicious};
use crate::storage::command::{Action, Entry, EntryMeta, Operation, RangeDigest, Space, Value};

/// A runtime that remembers what it observed: hook and result.
fn observed() -> (Runtime, Seen) {
    let seen = Seen::default();
    (Runtime::new(Arc::new(seen.clone()), Compilers::Here, None).unwrap(), seen)
}

fn runtime() -> Runtime {
    Runtime::new(Arc::new(()), Compilers::Here, None).unwrap()
}

#[derive(Default, Clone)]
struct Seen(Arc<Mutex<Vec<(String, &'static str)>>>);

impl LogSink for Seen {}

impl Observer for Seen {
    fn calls_of(&self, hook: &str, _: &str) -> Calls {
        let (hook, seen) = (hook.to_owned(), self.clone());
        Box::new(move |_, result, _| seen.0.lock().push((hook.clone(), result)))
    }
}

const LOOP: &str = "(loop $l (br $l)) (unreachable)";

/// A store of a few keys.
#[derive(Default)]
struct Kept {
    revisions: BTreeMap<String, u64>,
    is_broken: bool,
}

impl View for Kept {
    fn get(&self, key: &str) -> Result<Option<Entry>, ViewError> {
        if self.is_broken {
            return Err(ViewError("broken".into()));
        }
        Ok(self.revisions.get(key).map(|revision| Entry {
            key: key.to_owned(),
            meta: EntryMeta { version: 1, revision: *revision, created_at_ms: 0, updated_at_ms: 0 },
            value: Value::json("1"),
        }))
    }

    fn list(&self, start: &str, _: &str, limit: u32) -> Result<(Vec<String>, RangeDigest), ViewError> {
        let range = || self.revisions.range(start.to_owned()..).take(limit as usize);
        let digest = RangeDigest::of(range().map(|(key, revision)| (key.as_str(), *revision)));
        Ok((range().map(|(key, _)| key.clone()).collect(), digest))
    }
}

fn binding(json: &str) -> Binding {
    let mut object: serde_json::Value = serde_json::from_str(json).unwrap();
    object["plugin"] = "p".into();
    Binding::parse(object.to_string().as_bytes()).unwrap()
}

fn hook(runtime: &Runtime, name: &str, wat: &Wat, json: &str) -> Hook {
    let plugin = runtime.compile("p", &wat.bytes(), &CompileOptions::default()).unwrap();
    runtime.bind(name, binding(json), &plugin).unwrap()
}

/// A hook that is pre-initialized.
fn pre_initialized(runtime: &Runtime, wat: &Wat, json: &str) -> Hook {
    pre_initialized_from(runtime, &wat.bytes(), json)
}

fn pre_initialized_from(runtime: &Runtime, component: &[u8], json: &str) -> Hook {
    let plugin = runtime.compile("p", component, &CompileOptions::default()).unwrap();
    let hook = runtime.bind("h", binding(json), &plugin).unwrap();
    hook.pre_initialize(component, &CompileOptions::default()).unwrap();
    assert_eq!(hook.pre_initialized(), Some(Ok(())));
    hook
}

fn put(key: &str, json: &str) -> Operation {
    Operation { space: Space::Kv, key: key.to_owned(), action: Action::Put(Value::json(json.to_owned())) }
}

fn delete(key: &str) -> Operation {
    Operation { space: Space::Kv, key: key.to_owned(), action: Action::Delete }
}

/// How the plugin failed.
fn failure(error: Error) -> Failure {
    match error {
        Error::Failed { failure, .. } => failure,
        error => panic!("{error:?}"),
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn judge_with(kept: Kept, hooks: Vec<Hook>, operations: Vec<Operation>) -> Result<Judged, Error> {
    super::judge(&Arc::new(Set::new(7, hooks)), operations, Arc::new(kept), soon())
}

fn judge(hooks: Vec<Hook>, operations: Vec<Operation>) -> Result<Judged, Error> {
    judge_with(Kept::default(), hooks, operations)
}

fn judge_key(hook: &Hook, key: &str) -> Result<Judged, Error> {
    judge(vec![hook.clone()], vec![put(key, "1")])
}
