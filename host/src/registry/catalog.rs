//! The registry as one look at the state shows it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;

use super::history::{History, What};
use super::{Error, HookInfo, PluginInfo};
use crate::hooks::{self, Binding};
use crate::limits::{PAGE_ENTRIES_MAX, PLUGIN_LIST_MAX};
use crate::storage::{
    self, Action, AskedBy, Data, Entry, Fact, HOOKS_PREFIX, Operation, PLUGINS_PREFIX, Precondition, RangeQuery, Space,
    Value,
};

/// The registry as of one look.
pub(super) struct Known {
    pub(super) plugins: BTreeMap<String, PluginInfo>,
    pub(super) hooks: BTreeMap<String, HookInfo>,
    /// What must not have changed for a decision made on this look to be right.
    unchanged: Vec<Precondition>,
}

impl Known {
    pub(super) fn read(data: &Data) -> Result<Self, Error> {
        let mut plugins = BTreeMap::new();
        let (entries, plugins_unchanged) = read_prefix(data, PLUGINS_PREFIX)?;
        for entry in entries {
            let name = name_of(&entry, PLUGINS_PREFIX);
            let info: PluginInfo = decode(&entry)?;
            plugins.insert(name.clone(), PluginInfo { name, revision: entry.meta.revision, ..info });
        }
        let mut hooks = BTreeMap::new();
        let (entries, hooks_unchanged) = read_prefix(data, HOOKS_PREFIX)?;
        for entry in entries {
            let name = name_of(&entry, HOOKS_PREFIX);
            let binding: Binding = decode(&entry)?;
            hooks.insert(name.clone(), HookInfo { name, binding, revision: entry.meta.revision });
        }
        Ok(Self { plugins, hooks, unchanged: vec![plugins_unchanged, hooks_unchanged] })
    }

    pub(super) fn unchanged(&self) -> Vec<Precondition> {
        self.unchanged.clone()
    }

    /// The hooks that run a plugin.
    pub(super) fn hooks_of<'a>(&'a self, plugin: &'a str) -> impl Iterator<Item = &'a str> {
        self.hooks.values().filter(move |hook| hook.binding.plugin == plugin).map(|hook| hook.name.as_str())
    }

    /// The versions that plugins name or hooks run, by name and digest.
    pub(super) fn versions(&self) -> BTreeSet<(String, String)> {
        let named = self.plugins.values().map(|info| (info.name.clone(), info.digest.clone()));
        let run = self.hooks.values().map(|hook| &hook.binding);
        let run = run.filter_map(|binding| Some((binding.plugin.clone(), binding.digest.clone()?)));
        named.chain(run).collect()
    }

    /// The versions that plugins name or hooks run once a change is made, by digest.
    pub(super) fn digests_after(&self, change: &What) -> BTreeSet<String> {
        let mut named: BTreeMap<&str, &str> =
            self.plugins.values().map(|info| (info.name.as_str(), info.digest.as_str())).collect();
        let mut run: BTreeMap<&str, &str> =
            self.hooks.values().map(|hook| (hook.name.as_str(), hook.binding.digest())).collect();
        match change {
            What::PluginUploaded { plugin, digest, .. } => named.insert(plugin, digest),
            What::PluginRemoved { plugin } => named.remove(plugin.as_str()),
            What::HookSet { hook, binding } => run.insert(hook, binding.digest()),
            What::HookRemoved { hook } => run.remove(hook.as_str()),
        };
        named.into_values().chain(run.into_values()).map(str::to_owned).collect()
    }

    /// The versions that plugins name or hooks run, by digest.
    pub(super) fn digests(&self) -> BTreeSet<String> {
        self.versions().into_iter().map(|(_, digest)| digest).collect()
    }

    /// The binding with the version it runs written out.
    pub(super) fn pinned(&self, binding: Binding, history: &History) -> Result<Binding, Error> {
        let missing = || hooks::Error::PluginMissing { plugin: binding.plugin.clone(), digest: binding.digest.clone() };
        let is_kept = |digest: &String| {
            let version = (binding.plugin.clone(), digest.clone());
            self.versions().contains(&version) || history.versions().contains(&version)
        };
        let newest = || self.plugins.get(&binding.plugin).map(|info| info.digest.clone());
        let digest = binding.digest.clone().filter(is_kept).or_else(|| binding.digest.is_none().then(newest).flatten());
        let digest = digest.ok_or_else(missing)?;
        Ok(Binding { digest: Some(digest), ..binding })
    }
}

/// All entries under a prefix, and the precondition that they are still these.
pub(super) fn read_prefix(data: &Data, prefix: &str) -> Result<(Vec<Entry>, Precondition), Error> {
    let end = format!("{prefix}{}", char::MAX);
    let limit = u32::try_from(PLUGIN_LIST_MAX).unwrap_or(u32::MAX);
    let query = RangeQuery {
        space: Space::System,
        prefix: Some(prefix.to_owned()),
        limit: PAGE_ENTRIES_MAX,
        ..RangeQuery::default()
    };
    let entries = data.scan(&query)?.entries;
    let seen = entries.iter().take(PLUGIN_LIST_MAX).map(|entry| (entry.key.as_str(), entry.meta.revision));
    let fact = Fact::Range { start: prefix.to_owned(), end, limit, digest: storage::RangeDigest::of(seen) };
    Ok((entries, Precondition { asked_by: AskedBy::Client, space: Space::System, fact }))
}

pub(super) fn name_of(entry: &Entry, prefix: &str) -> String {
    entry.key.strip_prefix(prefix).unwrap_or(&entry.key).to_owned()
}

pub(super) fn decode<T: serde::de::DeserializeOwned>(entry: &Entry) -> Result<T, Error> {
    serde_json::from_slice(&entry.value.bytes)
        .map_err(|source| Error::Undecodable { key: entry.key.clone(), source: Arc::new(source) })
}

pub(super) fn json<T: Serialize>(value: &T, name: &str) -> Result<Value, Error> {
    let text = serde_json::to_vec(value)
        .map_err(|source| Error::Undecodable { key: name.to_owned(), source: Arc::new(source) })?;
    Ok(Value::json(text))
}

pub(super) fn put(key: String, value: Value) -> Operation {
    Operation { space: Space::System, key, action: Action::Put(value) }
}

pub(super) fn delete(key: String) -> Operation {
    Operation { space: Space::System, key, action: Action::Delete }
}
