//! The last changes of the registry, and with them the versions that a hook can be rolled back to.
//!
//! A change and its record are one write, so the history has no gaps and records nothing that did not happen. It is
//! bounded: when the oldest changes are dropped, the versions that only they name are dropped with them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::catalog::Catalog;
use super::components::StoredPieces;
use super::entry::{decode, delete, put_json, read_prefix};
use super::error::Error;
use crate::hooks::{self, Binding};
use crate::limits::{HISTORY_BYTES_MAX, HISTORY_CHANGES_MAX, HISTORY_VERSIONS_BYTES_MAX};
use crate::storage::{Data, Operation, Precondition};

/// Keys of the system space under this prefix are changes: `history/<number>`, with leading zeros so that they sort by
/// number.
pub(super) const HISTORY_PREFIX: &str = "history/";

/// One change of the registry: what was changed, when and by whom.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Change {
    /// The first change of a store is 1.
    pub number: u64,
    /// The cluster's time, in milliseconds since the Unix epoch, as the node that made the change knew it.
    pub at_ms: u64,
    /// The author as named by the client. Nobody has verified it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The URL of the node that made the change.
    pub node: String,
    #[serde(flatten)]
    pub edit: Edit,
    /// The change that a rollback restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back_to: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub(crate) enum Edit {
    PluginUploaded { plugin: String, digest: String, size_bytes: u64 },
    PluginRemoved { plugin: String },
    HookSet { hook: String, binding: Binding },
    HookRemoved { hook: String },
}

pub(super) struct History {
    /// Oldest first.
    pub(super) changes: VecDeque<Change>,
    /// The precondition that no change was recorded since this was read.
    pub(super) unchanged: Precondition,
}

impl History {
    pub(super) fn read(data: &Data) -> Result<Self, Error> {
        let (entries, unchanged) = read_prefix(data, HISTORY_PREFIX)?;
        Ok(Self { changes: entries.iter().map(decode).collect::<Result<_, _>>()?, unchanged })
    }

    pub(super) fn digests(&self) -> BTreeSet<String> {
        self.versions().map(|(_, digest)| digest.to_owned()).collect()
    }

    /// The change that brought a hook to its state as of change `to`, or, if `to` is `None`, to its state before its last
    /// change. `None` if the history does not reach back that far.
    pub(super) fn state_of(&self, hook: &str, to: Option<u64>) -> Option<&Change> {
        let is_of_hook = |change: &&Change| match &change.edit {
            Edit::HookSet { hook: changed, .. } | Edit::HookRemoved { hook: changed } => changed == hook,
            Edit::PluginUploaded { .. } | Edit::PluginRemoved { .. } => false,
        };
        let mut of_hook = self.changes.iter().rev().filter(is_of_hook);
        match to {
            Some(to) => of_hook.find(|change| change.number <= to),
            None => of_hook.nth(1),
        }
    }

    /// The binding with its digest filled in: the newest version of the plugin unless the binding names one. A named
    /// version must be in the catalog or in the history, else it is an error ([`hooks::Error::PluginMissing`]).
    pub(super) fn pin(&self, catalog: &Catalog, binding: Binding) -> Result<Binding, Error> {
        let digest = match &binding.digest {
            None => catalog.plugins.get(&binding.plugin).map(|info| info.digest.clone()),
            Some(digest) => {
                let is_recorded = self.versions().any(|version| version == (&*binding.plugin, &**digest));
                let is_in_catalog = || catalog.versions().contains(&(binding.plugin.clone(), digest.clone()));
                (is_recorded || is_in_catalog()).then(|| digest.clone())
            }
        };
        match digest {
            Some(_) => Ok(Binding { digest, ..binding }),
            None => Err(hooks::Error::PluginMissing { plugin: binding.plugin, digest: binding.digest }.into()),
        }
    }

    /// The operations that record a change: its own entry, and the removal of everything the history no longer keeps.
    pub(super) fn record(
        mut self,
        catalog: &Catalog,
        pieces: &StoredPieces,
        change: Change,
    ) -> Result<Vec<Operation>, Error> {
        let needed = digests_after(catalog, &change.edit);
        let now_ms = change.at_ms;
        let mut operations = vec![put_json(key(change.number), &change)?];
        self.changes.push_back(change);
        while self.changes.len() > 1 && self.is_too_large(catalog, &needed) {
            operations.extend(self.changes.pop_front().map(|oldest| delete(key(oldest.number))));
        }
        let kept: BTreeSet<String> = needed.into_iter().chain(self.digests()).collect();
        operations.extend(pieces.removals(&kept, now_ms));
        Ok(operations)
    }

    /// The plugins and digests that the changes name.
    fn versions(&self) -> impl Iterator<Item = (&str, &str)> {
        self.changes.iter().filter_map(|change| match &change.edit {
            Edit::PluginUploaded { plugin, digest, .. } => Some((&**plugin, &**digest)),
            Edit::HookSet { binding, .. } => Some((&*binding.plugin, binding.digest())),
            Edit::PluginRemoved { .. } | Edit::HookRemoved { .. } => None,
        })
    }

    fn is_too_large(&self, catalog: &Catalog, needed: &BTreeSet<String>) -> bool {
        let uploaded = self.changes.iter().filter_map(|change| match &change.edit {
            Edit::PluginUploaded { digest, size_bytes, .. } => Some((digest.as_str(), *size_bytes)),
            _ => None,
        });
        let newest = catalog.plugins.values().map(|info| (info.digest.as_str(), info.size_bytes));
        let sizes: BTreeMap<&str, u64> = uploaded.chain(newest).collect();
        let only_here = self.digests().into_iter().filter(|digest| !needed.contains(digest));
        let versions_bytes: u64 = only_here.filter_map(|digest| sizes.get(digest.as_str())).sum();
        // The configurations are the only parts of changes that may be large.
        let configs = self.changes.iter().filter_map(|change| match &change.edit {
            Edit::HookSet { binding, .. } => Some(binding.config.to_string().len()),
            _ => None,
        });
        self.changes.len() > HISTORY_CHANGES_MAX
            || configs.sum::<usize>() > HISTORY_BYTES_MAX
            || versions_bytes > HISTORY_VERSIONS_BYTES_MAX
    }
}

/// The digests that plugins and hooks name once an edit is made.
fn digests_after(catalog: &Catalog, edit: &Edit) -> BTreeSet<String> {
    let newest = catalog.plugins.values().map(|info| (info.name.as_str(), info.digest.as_str()));
    let run = catalog.hooks.values().map(|hook| (hook.name.as_str(), hook.binding.digest()));
    let (mut newest, mut run): (BTreeMap<_, _>, BTreeMap<_, _>) = (newest.collect(), run.collect());
    match edit {
        Edit::PluginUploaded { plugin, digest, .. } => newest.insert(plugin, digest),
        Edit::PluginRemoved { plugin } => newest.remove(plugin.as_str()),
        Edit::HookSet { hook, binding } => run.insert(hook, binding.digest()),
        Edit::HookRemoved { hook } => run.remove(hook.as_str()),
    };
    newest.into_values().chain(run.into_values()).map(str::to_owned).collect()
}

fn key(number: u64) -> String {
    format!("{HISTORY_PREFIX}{number:020}")
}
