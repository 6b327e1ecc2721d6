//! The plugins and hooks of the registry at one moment.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::entry::{decode, name_of, read_prefix};
use super::error::Error;
use crate::hooks::Binding;
use crate::storage::{Data, HOOKS_PREFIX, PLUGINS_PREFIX, Precondition};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PluginInfo {
    #[serde(default)]
    pub name: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub digest: String,
    pub size_bytes: u64,
    /// Its exports: `validator`, `transformer` or both.
    pub roles: Vec<String>,
    /// The linear memory of a new instance, in bytes.
    #[serde(default)]
    pub memory_bytes: u64,
    /// How long an instance took to start on the node that received the upload, in microseconds, without configuration.
    #[serde(default)]
    pub start_us: u64,
    /// The store's revision at which this version was uploaded.
    #[serde(default)]
    pub revision: u64,
}

/// A hook in force.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct HookInfo {
    pub name: String,
    #[serde(flatten)]
    pub binding: Binding,
    pub revision: u64,
}

/// The plugins and hooks at one moment.
pub(crate) struct Catalog {
    pub plugins: BTreeMap<String, PluginInfo>,
    pub hooks: BTreeMap<String, HookInfo>,
    /// The preconditions that no plugin and no hook has changed since this was read.
    pub(super) unchanged: [Precondition; 2],
}

impl Catalog {
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
        Ok(Self { plugins, hooks, unchanged: [plugins_unchanged, hooks_unchanged] })
    }

    /// The newest version of each plugin and the versions that hooks run, by name and digest.
    pub(super) fn versions(&self) -> BTreeSet<(String, String)> {
        let newest = self.plugins.values().map(|info| (info.name.clone(), info.digest.clone()));
        let bindings = self.hooks.values().map(|hook| &hook.binding);
        let run = bindings.filter_map(|binding| Some((binding.plugin.clone(), binding.digest.clone()?)));
        newest.chain(run).collect()
    }

    /// As [`Catalog::versions`], by digest only.
    pub(super) fn digests(&self) -> BTreeSet<String> {
        self.versions().into_iter().map(|(_, digest)| digest).collect()
    }
}
