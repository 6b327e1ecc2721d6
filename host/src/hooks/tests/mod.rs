//! What the module promises, tried with small components written by hand.

mod compile;
mod contain;
mod fuzz;
mod image;
mod judge;
mod pipeline;
mod rewind;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::*;
use crate::storage::command::{Action, Entry, EntryMeta, Operation, RangeDigest, Space, Value};

/// What a guest does, as core WebAssembly. The bodies run with two `i32` parameters that point to their arguments; the
/// answer is a pointer to zeroed memory, which reads as `ok`, unless they say otherwise.
struct Wat {
    configure: String,
    validate: Option<String>,
    transform: Option<String>,
    memory: &'static str,
    data: String,
    reads: bool,
    /// The whole core module `$m`, in place of all but the memory.
    core: Option<String>,
}

/// Where the answer of a guest is: 8 zero bytes, the `ok` of every result.
const OK: &str = "(i32.const 1024)";

impl Wat {
    fn validator(body: &str) -> Self {
        Self {
            configure: OK.to_owned(),
            validate: Some(body.to_owned()),
            transform: None,
            memory: "1",
            data: String::new(),
            reads: true,
            core: None,
        }
    }

    fn transformer(body: &str) -> Self {
        Self { validate: None, transform: Some(body.to_owned()), ..Self::validator("") }
    }

    /// A transformer that answers with one replacement of an item by a text.
    fn replacing(item: u32, text: &str) -> Self {
        let mut wat = Self::transformer("(i32.const 2048)");
        // ok, list at 2064 of one: item, pointer 2100, length.
        wat.data = format!(
            "(data (i32.const 2048) \"\\00\\00\\00\\00\\10\\08\\00\\00\\01\\00\\00\\00\") \
             (data (i32.const 2064) \"\\{item:02x}\\00\\00\\00\\34\\08\\00\\00\\{:02x}\\00\\00\\00\") \
             (data (i32.const 2100) \"{}\")",
            text.len(),
            text.replace('"', "\\\"")
        );
        wat
    }

    /// A validator that rejects with a code `no`, a message `nope`, and a violation of item `item`.
    fn rejecting(item: u32) -> Self {
        let mut wat = Self::validator("(i32.const 2048)");
        // err, code (2100, 2), message (2100, 4), violations at 2200 of one: item, path (0), code, message.
        wat.data = format!(
            "(data (i32.const 2048) \"\\01\\00\\00\\00\\34\\08\\00\\00\\02\\00\\00\\00\\34\\08\\00\\00\\04\\00\\00\\00\
             \\98\\08\\00\\00\\01\\00\\00\\00\") \
             (data (i32.const 2200) \"\\{item:02x}\\00\\00\\00\\34\\08\\00\\00\\00\\00\\00\\00\
             \\34\\08\\00\\00\\02\\00\\00\\00\
             \\34\\08\\00\\00\\04\\00\\00\\00\") \
             (data (i32.const 2100) \"nope\")"
        );
        wat
    }

    fn with_configure(mut self, body: &str) -> Self {
        self.configure = body.to_owned();
        self
    }

    /// Without the import of `store`.
    fn without_reads(mut self) -> Self {
        self.reads = false;
        self
    }

    fn with_memory(mut self, memory: &'static str) -> Self {
        self.memory = memory;
        self
    }

    fn core(&self) -> String {
        if let Some(core) = &self.core {
            return core.clone();
        }
        let export = |name: &str, body: &Option<String>| match body {
            Some(body) => format!("(func (export \"{name}\") (param i32 i32) (result i32) {body})"),
            None => String::new(),
        };
        format!(
            "(core module $m \
               (import \"host\" \"exists\" (func $exists (param i32 i32 i32))) \
               (import \"host\" \"memory\" (memory {})) \
               {} {} {} {})",
            self.memory,
            export("configure", &Some(self.configure.clone())),
            export("validate", &self.validate),
            export("transform", &self.transform),
            self.data
        )
    }

    fn text(&self) -> String {
        let (imports, exists) = match self.reads {
            true => (
                IMPORTS,
                "(core func $exists (canon lower (func $exists) (memory (core memory $mem \"memory\")) \
                 (realloc (core func $mem \"realloc\"))))",
            ),
            false => ("", "(alias core export $mem \"none\" (core func $exists))"),
        };
        format!(
            "(component {imports} \
               (core module $mem (memory (export \"memory\") {}) {REALLOC} (func (export \"none\") (param i32 i32 i32))) \
               (core instance $mem (instantiate $mem)) \
               {exists} \
               {} \
               (core instance $i (instantiate $m (with \"host\" (instance \
                 (export \"exists\" (func $exists)) (export \"memory\" (memory $mem \"memory\")))))) \
               {} {} {})",
            self.memory,
            self.core(),
            interface("configuration", "configure", CONFIGURE),
            if self.validate.is_some() { interface("validator", "validate", VALIDATE) } else { String::new() },
            if self.transform.is_some() { interface("transformer", "transform", TRANSFORM) } else { String::new() },
        )
    }

    fn bytes(&self) -> Vec<u8> {
        wat::parse_str(self.text()).unwrap()
    }
}

/// An allocator that only goes up.
const REALLOC: &str = r#"
  (global $next (mut i32) (i32.const 4096))
  (func (export "realloc") (param i32 i32 i32 i32) (result i32)
    (global.get $next)
    (global.set $next (i32.and (i32.add (i32.add (global.get $next) (local.get 3)) (i32.const 7)) (i32.const -8))))"#;

const IMPORTS: &str = r#"
  (import "brink:hooks/store@0.1.0" (instance $store
    (type $error' (variant (case "limit" string) (case "unavailable" string)))
    (export "read-error" (type $error (eq $error')))
    (export "exists" (func (param "key" string) (result (result bool (error $error)))))))
  (alias export $store "exists" (func $exists))"#;

/// The types of each interface: names with definitions, then the function's type.
type Shape = (&'static [(&'static str, &'static str)], &'static str);

const CONFIGURE: Shape = (
    &[("invalid", r#"(record (field "path" string) (field "message" string))"#)],
    r#"(param "config" string) (result (result (error $invalid)))"#,
);

const WRITE: (&str, &str) =
    ("write", r#"(record (field "key" string) (field "content-type" string) (field "value" (option (list u8))))"#);

const VIOLATION: (&str, &str) = (
    "violation",
    r#"(record (field "item" u32) (field "path" string) (field "code" string) (field "message" string))"#,
);

const REJECTION: (&str, &str) =
    ("rejection", r#"(record (field "code" string) (field "message" string) (field "violations" (list $violation)))"#);

const REPLACEMENT: (&str, &str) = ("replacement", r#"(record (field "item" u32) (field "value" (list u8)))"#);

const VALIDATE: Shape =
    (&[WRITE, VIOLATION, REJECTION], r#"(param "writes" (list $write)) (result (result (error $rejection)))"#);

const TRANSFORM: Shape = (
    &[WRITE, VIOLATION, REJECTION, REPLACEMENT],
    r#"(param "writes" (list $write)) (result (result (list $replacement) (error $rejection)))"#,
);

/// Lifts a core function and exports it in an interface. Exported functions may use only named types, which takes a
/// component of its own.
fn interface(name: &str, function: &str, (types, signature): Shape) -> String {
    let mut outer = String::new();
    let mut imported = String::new();
    let mut exported = String::new();
    let mut arguments = String::new();
    let rename = |text: &str, suffix: &str| {
        types.iter().fold(text.to_owned(), |text, (ty, _)| text.replace(&format!("${ty}"), &format!("${ty}{suffix}")))
    };
    for (ty, definition) in types {
        outer += &format!("(type ${ty}-{name} {}) ", rename(definition, &format!("-{name}")));
        imported += &format!("(type ${ty}-d {}) ", rename(definition, "-i"));
        imported += &format!("(import \"t-{ty}\" (type ${ty}-i (eq ${ty}-d))) ");
        exported += &format!("(type ${ty}-f {}) ", rename(definition, "-e"));
        exported += &format!("(export ${ty}-e \"{ty}\" (type ${ty}-f)) ");
        arguments += &format!("(with \"t-{ty}\" (type ${ty}-{name})) ");
    }
    format!(
        "{outer} \
         (func ${function} {} (canon lift (core func $i \"{function}\") (memory (core memory $mem \"memory\")) \
           (realloc (core func $mem \"realloc\")))) \
         (component $c-{name} {imported} (import \"f\" (func $f {})) {exported} \
           (export \"{function}\" (func $f) (func {}))) \
         (instance $e-{name} (instantiate $c-{name} {arguments} (with \"f\" (func ${function})))) \
         (export \"brink:hooks/{name}@0.1.0\" (instance $e-{name})) ",
        rename(signature, &format!("-{name}")),
        rename(signature, "-i"),
        rename(signature, "-e"),
    )
}

/// A runtime that remembers what it observed: hook and result.
fn observed() -> (Runtime, Seen) {
    let seen = Seen::default();
    (Runtime::new(Arc::new(seen.clone())).unwrap(), seen)
}

fn runtime() -> Runtime {
    Runtime::new(Arc::new(Unobserved)).unwrap()
}

#[derive(Default, Clone)]
struct Seen(Arc<Mutex<Vec<(String, &'static str)>>>);

struct SeenOf(String, Seen);

impl Observer for Seen {
    fn calls_of(&self, hook: &str, _: &str) -> Arc<dyn Calls> {
        Arc::new(SeenOf(hook.to_owned(), self.clone()))
    }
}

impl Calls for SeenOf {
    fn ended(&self, _: Duration, result: &'static str, _: usize) {
        self.1.0.lock().unwrap().push((self.0.clone(), result));
    }
}

/// A store of a few keys.
#[derive(Default)]
struct Kept {
    revisions: BTreeMap<String, u64>,
    is_broken: bool,
}

impl View for Kept {
    fn get(&self, key: &str) -> Result<Option<Entry>, ViewError> {
        if self.is_broken {
            return Err(ViewError::new("broken"));
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
    let plugin = runtime.compile("p", &wat.bytes()).unwrap();
    runtime.bind(name, binding(json), &plugin).unwrap()
}

fn put(key: &str, json: &str) -> Operation {
    Operation { space: Space::Kv, key: key.to_owned(), action: Action::Put(Value::json(json.to_owned())) }
}

fn delete(key: &str) -> Operation {
    Operation { space: Space::Kv, key: key.to_owned(), action: Action::Delete }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn judge(hooks: Vec<Hook>, operations: Vec<Operation>) -> Result<Judged, Error> {
    Arc::new(Set::new(7, hooks)).judge(operations, Arc::new(Kept::default()), soon())
}
