//! A plugin on this machine, without a node, for `test`, `run` and `bench`; and `brink plugin inspect`.
//!
//! Plugins run as on a node, with the same engine, limits, hooks and judging. Only the store differs: it holds the entries
//! that the author gives.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::{Value as Json, json};

use super::super::{Failure, Format, io};
use super::project;
use crate::hooks::{
    self, Binding, CompileOptions, Compilers, HOOKS_VERSION, Hook, Judged, Observer, Plugin, Priority, Runtime, Set,
    View, ViewError,
};
use crate::storage::command::{Action, Entry, EntryMeta, Operation, RangeDigest, Space, Value};
use crate::text;

/// Maximum time of a judgement. The hook's own deadline is shorter.
const JUDGE_DEADLINE: Duration = Duration::from_secs(60);

/// The content type of a value given as text.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// The component to load.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Target {
    /// A component, or the folder of its project
    #[arg(value_name = "PATH", default_value = ".")]
    path: PathBuf,
}

/// A write to try a plugin with.
pub(super) struct Trial {
    pub(super) config: Json,
    pub(super) write: Operation,
    /// The entries that the plugin can read.
    pub(super) store: Arc<Store>,
}

/// A compiled plugin, and the runtime that compiled it.
pub(super) struct Local {
    pub(super) plugin: Plugin,
    pub(super) component: Vec<u8>,
    runtime: Runtime,
}

impl Target {
    /// The project's folder; `None` if the path is a component.
    pub(super) fn project(&self) -> Option<&Path> {
        self.path.is_dir().then_some(&self.path)
    }

    /// Reads and compiles the component, which takes seconds if it is large.
    pub(super) fn load(&self, observer: Arc<dyn Observer>) -> Result<Local, Failure> {
        let (name, file) = match self.project() {
            Some(dir) => project::built(dir)?,
            None => {
                let stem = self.path.file_stem().and_then(|stem| stem.to_str());
                let name = stem.filter(|stem| hooks::check_name("plugin", stem).is_ok()).unwrap_or("plugin");
                (name.to_owned(), self.path.clone())
            }
        };
        let component = fs::read(&file).map_err(Failure::of_file(&file))?;
        // As on a node: what is inspected may be a stranger's.
        let runtime = Runtime::new(observer, Compilers::Processes, None)?;
        let plugin = runtime.compile(&name, &component, &compile_options())?;
        Ok(Local { plugin, component, runtime })
    }
}

/// Somebody waits at the terminal.
pub(super) fn compile_options() -> CompileOptions {
    CompileOptions { priority: Priority::Serving, ..CompileOptions::default() }
}

impl Local {
    /// A hook for every write, bound as `brink plugin bind` does: the plugin checks the configuration.
    pub(super) fn bind(&self, config: &Json) -> Result<Hook, Failure> {
        let name = self.plugin.name();
        let binding = json!({"plugin": name, "config": config, "operations": ["put", "delete"]});
        let binding = Binding::parse(binding.to_string().as_bytes())?;
        Ok(self.runtime.bind(name, binding, &self.plugin)?)
    }
}

pub(super) fn set(hook: &Hook) -> Arc<Set> {
    Arc::new(Set::new(1, vec![hook.clone()]))
}

pub(super) fn judge(set: &Arc<Set>, write: Operation, store: &Arc<Store>) -> Result<Judged, hooks::Error> {
    hooks::judge(set, vec![write], store.clone(), Instant::now() + JUDGE_DEADLINE)
}

/// The write of a value; without one, the deletion of the key.
pub(super) fn write(key: &str, value: Option<Value>) -> Operation {
    let action = value.map_or(Action::Delete, Action::Put);
    Operation { space: Space::Kv, key: key.to_owned(), action }
}

/// A JSON value as a node stores it.
pub(super) fn json_value(text: impl Into<Bytes>) -> Result<Value, crate::json::Error> {
    crate::json::compact(text.into()).map(Value::json)
}

/// A value of any other type.
pub(super) fn other_value(content_type: &str, bytes: impl Into<Bytes>) -> Value {
    Value::of_type(content_type, bytes.into())
}

/// `brink plugin inspect`: the roles, rights and size of a component.
pub(super) fn inspect(target: &Target, format: Format) -> Result<(), Failure> {
    let local = target.load(Arc::new(()))?;
    let Local { plugin, component, .. } = &local;
    let start_us = plugin.start_time().as_micros() as u64;
    let reads = plugin.imports().iter().any(|import| import.starts_with("store."));
    if format == Format::Json {
        let text = json!({
            "name": plugin.name(), "roles": plugin.roles(), "can_change_values": plugin.has(hooks::Role::Transformer),
            "can_read_other_keys": reads, "interface": format!("brink:hooks@{HOOKS_VERSION}"),
            "imports": plugin.imports(), "size_bytes": component.len(), "digest": plugin.digest(),
            "memory_bytes": plugin.start_memory_bytes(), "start_us": start_us,
        });
        return io::json(&text.to_string());
    }
    let values = if plugin.has(hooks::Role::Transformer) { "can change values" } else { "cannot change values" };
    let keys = if reads { "can read other keys" } else { "cannot read other keys" };
    let imports = if plugin.imports().is_empty() { "none".to_owned() } else { plugin.imports().join(", ") };
    let start = format!("{:.1} MiB of memory, {start_us} µs", plugin.start_memory_bytes() as f64 / io::MEBIBYTE);
    let lines = [
        ("plugin", plugin.name().to_owned()),
        ("role", format!("{}: it {values}", plugin.roles().join(" and "))),
        ("interface", format!("brink:hooks@{HOOKS_VERSION}")),
        ("imports", format!("{imports}: it {keys}")),
        ("size", format!("{} bytes", component.len())),
        ("start", start),
        ("digest", plugin.digest().to_owned()),
    ];
    lines.iter().try_for_each(|(title, text)| io::line(&format!("{title:<10} {}", text::safe(text))))
}

/// A store for plugins to read: entries that were written once each, in key order.
#[derive(Default, Clone)]
pub(super) struct Store(BTreeMap<String, Entry>);

impl Store {
    pub(super) fn new(values: impl IntoIterator<Item = (String, Value)>) -> Self {
        let entries = (1..).zip(BTreeMap::from_iter(values)).map(|(revision, (key, value))| {
            let meta = EntryMeta { version: 1, revision, created_at_ms: 0, updated_at_ms: 0 };
            (key.clone(), Entry { key, meta, value })
        });
        Self(entries.collect())
    }
}

impl View for Store {
    fn get(&self, key: &str) -> Result<Option<Entry>, ViewError> {
        Ok(self.0.get(key).cloned())
    }

    fn list(&self, start: &str, end: &str, limit: u32) -> Result<(Vec<String>, RangeDigest), ViewError> {
        let found = self.0.values().filter(|entry| *entry.key >= *start && (end.is_empty() || *entry.key <= *end));
        let found: Vec<&Entry> = found.take(usize::try_from(limit).unwrap_or(usize::MAX)).collect();
        let digest = RangeDigest::of(found.iter().map(|entry| (entry.key.as_str(), entry.meta.revision)));
        Ok((found.into_iter().map(|entry| entry.key.clone()).collect(), digest))
    }
}
