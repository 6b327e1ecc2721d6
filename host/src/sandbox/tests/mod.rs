//! Small guests written by hand, and what the sandbox says about components.

mod compile;

use std::sync::Arc;

use super::wit::{Entry, ReadError};
use super::*;

/// What a guest does, as core WebAssembly. The bodies run with two `i32` parameters that point to their arguments; the
/// answer is a pointer to zeroed memory, which reads as `ok`, unless they say otherwise.
pub(crate) struct Wat {
    pub(crate) configure: String,
    pub(crate) validate: Option<String>,
    pub(crate) transform: Option<String>,
    pub(crate) memory: &'static str,
    pub(crate) data: String,
    pub(crate) reads: bool,
    /// The whole core module `$m`, in place of all but the memory.
    pub(crate) core: Option<String>,
}

/// Where the answer of a guest is: 8 zero bytes, the `ok` of every result.
pub(crate) const OK: &str = "(i32.const 1024)";

impl Wat {
    pub(crate) fn validator(body: &str) -> Self {
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

    pub(crate) fn transformer(body: &str) -> Self {
        Self { validate: None, transform: Some(body.to_owned()), ..Self::validator("") }
    }

    /// A transformer that answers with one replacement of an item by a text.
    pub(crate) fn replacing(item: u32, text: &str) -> Self {
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
    pub(crate) fn rejecting(item: u32) -> Self {
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

    pub(crate) fn with_configure(mut self, body: &str) -> Self {
        self.configure = body.to_owned();
        self
    }

    /// Without the import of `store`.
    pub(crate) fn without_reads(mut self) -> Self {
        self.reads = false;
        self
    }

    pub(crate) fn with_memory(mut self, memory: &'static str) -> Self {
        self.memory = memory;
        self
    }

    pub(crate) fn core(&self) -> String {
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

    pub(crate) fn text(&self) -> String {
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

    pub(crate) fn bytes(&self) -> Vec<u8> {
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

/// A validator that traps unless its globals and its memory are as in a new instance, and changes all of them: a page of zeros,
/// a page of data, the page of its arguments, and (in the allocator of [`Wat`]) a global of another module.
pub(crate) fn suspicious() -> Wat {
    let mut wat = Wat::validator(
        "(if (i32.load (i32.const 20000)) (then unreachable)) (i32.store (i32.const 20000) (i32.const 1)) \
         (if (i32.ne (i32.load (i32.const 40000)) (i32.const 0x64636261)) (then unreachable)) \
         (i32.store (i32.const 40000) (i32.const 1)) \
         (if (i32.ne (global.get $count) (i32.const 3)) (then unreachable)) (global.set $count (i32.const 9)) \
         (if (i64.ne (global.get $wide) (i64.const 5)) (then unreachable)) (global.set $wide (i64.const 9)) \
         (if (f32.ne (global.get $small) (f32.const 0.5)) (then unreachable)) (global.set $small (f32.const 9)) \
         (if (f64.ne (global.get $real) (f64.const 1.5)) (then unreachable)) (global.set $real (f64.const 9)) \
         (i32.const 1024)",
    );
    wat.data = "(global $count (mut i32) (i32.const 1)) (global $wide (mut i64) (i64.const 5)) \
                (global $small (mut f32) (f32.const 0.5)) (global $real (mut f64) (f64.const 1.5)) \
                (data (i32.const 40000) \"abcd\")"
        .to_owned();
    wat.with_configure("(global.set $count (i32.const 3)) (i32.const 1024)")
}

/// No reads at all.
impl HostReads for () {
    fn get(&mut self, _: &str) -> Result<Option<Entry>, ReadError> {
        Ok(None)
    }

    fn exists(&mut self, _: &str) -> Result<bool, ReadError> {
        Ok(false)
    }

    fn list(&mut self, _: &str, _: &str, _: u32) -> Result<Vec<String>, ReadError> {
        Ok(Vec::new())
    }
}

fn engine() -> Engine {
    Engine::new(Arc::new(()), Compilers::Here, None).unwrap()
}

fn compile(engine: &Engine, bytes: &[u8]) -> Result<Plugin<()>, Error> {
    Plugin::compile(engine, "p", bytes, &CompileOptions::default())
}
