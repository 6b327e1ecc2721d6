//! A plugin on this machine, without a node, for `test`, `run`, `bench` and `inspect`.
//!
//! Plugins run as on a node, with the same engine, limits, hooks and judging. Only the store differs: it holds the entries
//! that the author gives.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value as Json;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::super::failure::Failure;
use super::project;
use crate::hooks::{self, Binding, Hook, Judged, Observer, Plugin, Runtime, Set, View, ViewError};
use crate::json;
use crate::storage::command::{Action, Entry, EntryMeta, Operation, RangeDigest, Space, Value};

/// Maximum time of a judgement. The hook's own deadline is shorter.
const JUDGE_DEADLINE: Duration = Duration::from_secs(60);

/// The content type of a value given as text.
pub(super) const TEXT: &str = "text/plain; charset=utf-8";

/// The component to load.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// A component, or the folder of its project
    #[arg(value_name = "PATH", default_value = ".")]
    path: PathBuf,
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
            None => (name_of(&self.path), self.path.clone()),
        };
        let component = fs::read(&file).map_err(|source| Failure::File { path: file, source })?;
        let runtime = Runtime::new(observer, None)?;
        let plugin = runtime.compile(&name, &component)?;
        Ok(Local { plugin, component, runtime })
    }
}

/// Prints the log lines of plugins to standard error.
pub(super) fn print_log_lines() {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time().with_target(false);
    let of_plugins = Targets::new().with_target("plugin", tracing::Level::DEBUG);
    // This fails only if it was called before.
    let _ = tracing_subscriber::registry().with(lines.with_filter(of_plugins)).try_init();
}

/// A plugin name made of a file name.
fn name_of(file: &Path) -> String {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    if hooks::check_name("plugin", stem).is_ok() { stem.to_owned() } else { "plugin".to_owned() }
}

impl Local {
    /// A hook for every write, bound as `brink plugin bind` does: the plugin checks the configuration.
    pub(super) fn bind(&self, config: &Json) -> Result<Hook, Failure> {
        let binding = serde_json::json!({
            "plugin": self.plugin.name(), "config": config, "operations": ["put", "delete"],
        });
        let binding = Binding::parse(binding.to_string().as_bytes())?;
        Ok(self.runtime.bind(self.plugin.name(), binding, &self.plugin)?)
    }

    /// Pre-initializes the hook's plugin as nodes do, which takes seconds if it is large.
    pub(super) fn pre_initialize(&self, hook: &Hook) {
        hook.pre_initialize(&self.component);
    }
}

/// A write to try a plugin with.
pub(super) struct Trial {
    /// The hook's configuration.
    pub(super) config: Json,
    pub(super) write: Operation,
    /// The entries that the plugin can read.
    pub(super) store: Arc<Store>,
}

/// A set with this hook alone.
pub(super) fn set(hook: &Hook) -> Arc<Set> {
    Arc::new(Set::new(1, vec![hook.clone()]))
}

/// Judges one write.
pub(super) fn judge(set: &Arc<Set>, write: Operation, store: &Arc<Store>) -> Result<Judged, hooks::Error> {
    hooks::judge(set, vec![write], store.clone(), Instant::now() + JUDGE_DEADLINE)
}

/// The write of a value; without one, the deletion of the key.
pub(super) fn write(key: &str, value: Option<Value>) -> Operation {
    let action = value.map_or(Action::Delete, Action::Put);
    Operation { space: Space::Kv, key: key.to_owned(), action }
}

/// A JSON value as a node stores it.
pub(super) fn json_value(text: impl Into<Bytes>) -> Result<Value, json::Error> {
    json::compact(text.into()).map(Value::json)
}

/// A value of any other type.
pub(super) fn other_value(content_type: &str, bytes: impl Into<Bytes>) -> Value {
    Value { content_type: content_type.to_owned(), bytes: bytes.into() }
}

/// A store for plugins to read: entries that were written once each, in key order.
#[derive(Default, Clone)]
pub(super) struct Store(BTreeMap<String, Entry>);

impl Store {
    /// A store with these values.
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
