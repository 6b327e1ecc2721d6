//! What was changed in the registry, when and by whom; and with it the versions that a hook can be rolled back to.
//!
//! A change and its record are one write, so that the history has no gaps and nothing that did not happen. It is bounded:
//! with the oldest changes go the versions that only they name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::Error;
use super::components::Stored;
use super::known::{Known, decode, delete, json, put, read_prefix};
use crate::hooks::Binding;
use crate::limits::{HISTORY_BYTES_MAX, HISTORY_CHANGES_MAX, HISTORY_VERSIONS_BYTES_MAX};
use crate::storage::{Data, Operation, Precondition};

/// Keys of the system space under this prefix are changes: `history/<number>`, so written that they sort by number.
const HISTORY_PREFIX: &str = "history/";

/// One change of the registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    /// Its number; the first change of a store is 1.
    pub number: u64,
    /// Unix time in milliseconds, by the clock of the node that took it.
    pub at_ms: u64,
    /// Who made it, as the client says: nobody has verified it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The URL of the node that took it.
    pub node: String,
    /// What was changed.
    #[serde(flatten)]
    pub what: What,
    /// The change whose state a rollback brought back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back_to: Option<u64>,
}

/// What a change did.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum What {
    /// A version of a plugin was uploaded.
    PluginUploaded {
        /// The plugin's name.
        plugin: String,
        /// The version.
        digest: String,
        /// Its size.
        size_bytes: u64,
    },
    /// A plugin was removed.
    PluginRemoved {
        /// Its name.
        plugin: String,
    },
    /// A hook was set.
    HookSet {
        /// Its name.
        hook: String,
        /// What it runs from then on.
        binding: Binding,
    },
    /// A hook was removed.
    HookRemoved {
        /// Its name.
        hook: String,
    },
}

/// Who changes the registry, and why a change is made.
#[derive(Debug, Clone)]
pub struct Author {
    /// A name, as the client says.
    pub(super) by: Option<String>,
    /// The change whose state is brought back, if it is a rollback.
    pub(super) rolls_back_to: Option<u64>,
}

impl Author {
    /// Somebody of this name, or nobody in particular.
    pub fn named(by: Option<String>) -> Self {
        Self { by, rolls_back_to: None }
    }
}

impl What {
    /// The hook it changed, if it was one.
    fn hook(&self) -> Option<&str> {
        match self {
            Self::HookSet { hook, .. } | Self::HookRemoved { hook } => Some(hook),
            Self::PluginUploaded { .. } | Self::PluginRemoved { .. } => None,
        }
    }

    /// The version it names.
    fn version(&self) -> Option<(&str, &str)> {
        match self {
            Self::PluginUploaded { plugin, digest, .. } => Some((plugin, digest)),
            Self::HookSet { binding, .. } => Some((&binding.plugin, binding.digest())),
            Self::PluginRemoved { .. } | Self::HookRemoved { .. } => None,
        }
    }
}

/// The changes that are kept, oldest first.
pub(super) struct History {
    changes: VecDeque<Change>,
    unchanged: Precondition,
}

impl History {
    pub(super) fn read(data: &Data) -> Result<Self, Error> {
        let (entries, unchanged) = read_prefix(data, HISTORY_PREFIX)?;
        Ok(Self { changes: entries.iter().map(decode).collect::<Result<_, _>>()?, unchanged })
    }

    /// The changes, newest first.
    pub(super) fn into_changes(self) -> Vec<Change> {
        self.changes.into_iter().rev().collect()
    }

    /// What must not have changed for a decision made on this look to be right.
    pub(super) fn unchanged(&self) -> Precondition {
        self.unchanged.clone()
    }

    /// The versions that changes name, by name and digest.
    pub(super) fn versions(&self) -> BTreeSet<(String, String)> {
        let versions = self.changes.iter().filter_map(|change| change.what.version());
        versions.map(|(plugin, digest)| (plugin.to_owned(), digest.to_owned())).collect()
    }

    pub(super) fn digests(&self) -> BTreeSet<String> {
        self.versions().into_iter().map(|(_, digest)| digest).collect()
    }

    /// The change that made a hook what it was when change `to` had been made; what it was before its last change, if
    /// none is named. `None`: the history does not tell.
    pub(super) fn state_of(&self, hook: &str, to: Option<u64>) -> Option<&Change> {
        let mut of_hook = self.changes.iter().rev().filter(|change| change.what.hook() == Some(hook));
        match to {
            Some(to) => of_hook.find(|change| change.number <= to),
            None => of_hook.nth(1),
        }
    }

    /// What has to be written for a change to be recorded: itself, and the removal of what is kept no longer.
    pub(super) fn record(mut self, known: &Known, stored: &Stored, change: Change) -> Result<Vec<Operation>, Error> {
        let needed = known.digests_after(&change.what);
        let (name, now_ms) = (key(change.number), change.at_ms);
        let mut operations = vec![put(name.clone(), json(&change, &name)?)];
        self.changes.push_back(change);
        while self.changes.len() > 1 && self.is_too_large(known, &needed) {
            operations.extend(self.changes.pop_front().map(|oldest| delete(key(oldest.number))));
        }
        let kept: BTreeSet<String> = needed.into_iter().chain(self.digests()).collect();
        operations.extend(stored.removals(&kept, now_ms));
        Ok(operations)
    }

    /// The number of the next change.
    pub(super) fn next(&self) -> u64 {
        self.changes.back().map_or(1, |last| last.number + 1)
    }

    fn is_too_large(&self, known: &Known, needed: &BTreeSet<String>) -> bool {
        let uploaded = self.changes.iter().filter_map(|change| match &change.what {
            What::PluginUploaded { digest, size_bytes, .. } => Some((digest.as_str(), *size_bytes)),
            _ => None,
        });
        let named = known.plugins.values().map(|info| (info.digest.as_str(), info.size_bytes));
        let sizes: BTreeMap<&str, u64> = uploaded.chain(named).collect();
        let only_here = self.digests().into_iter().filter(|digest| !needed.contains(digest));
        let versions_bytes: u64 = only_here.filter_map(|digest| sizes.get(digest.as_str())).sum();
        let bytes: usize = self.changes.iter().map(|change| change.what.config_bytes()).sum();
        self.changes.len() > HISTORY_CHANGES_MAX
            || bytes > HISTORY_BYTES_MAX
            || versions_bytes > HISTORY_VERSIONS_BYTES_MAX
    }
}

impl What {
    /// What of it may be large.
    fn config_bytes(&self) -> usize {
        match self {
            Self::HookSet { binding, .. } => binding.config.to_string().len(),
            _ => 0,
        }
    }
}

fn key(number: u64) -> String {
    format!("{HISTORY_PREFIX}{number:020}")
}
