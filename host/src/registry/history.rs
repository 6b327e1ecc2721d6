//! The last changes of the registry, and with them the versions that a hook can be rolled back to.
//!
//! A change and its record are one write, so the history has no gaps and records nothing that did not happen. It is
//! bounded: when the oldest changes are dropped, the versions that only they name are dropped with them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::catalog::Catalog;
use super::change::{Change, Edit};
use super::components::StoredPieces;
use super::entry::{decode, delete, put_json, read_prefix};
use super::error::Error;
use crate::hooks::{self, Binding};
use crate::limits::{HISTORY_BYTES_MAX, HISTORY_CHANGES_MAX, HISTORY_VERSIONS_BYTES_MAX};
use crate::storage::{Data, Operation, Precondition};

/// Keys of the system space under this prefix are changes: `history/<number>`, with leading zeros so that they sort by
/// number.
const HISTORY_PREFIX: &str = "history/";

/// The kept changes, oldest first.
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

    /// The precondition that no change was recorded since this was read.
    pub(super) fn unchanged(&self) -> &Precondition {
        &self.unchanged
    }

    /// The number of the next change.
    pub(super) fn next_number(&self) -> u64 {
        self.changes.back().map_or(1, |last| last.number + 1)
    }

    /// The digests of all versions that the changes name.
    pub(super) fn digests(&self) -> BTreeSet<String> {
        self.versions().map(|(_, digest)| digest.to_owned()).collect()
    }

    /// The change that brought a hook to its state as of change `to`, or, if `to` is `None`, to its state before its last
    /// change. `None` if the history does not reach back that far.
    pub(super) fn state_of(&self, hook: &str, to: Option<u64>) -> Option<&Change> {
        let mut of_hook = self.changes.iter().rev().filter(|change| change.edit.hook() == Some(hook));
        match to {
            Some(to) => of_hook.find(|change| change.number <= to),
            None => of_hook.nth(1),
        }
    }

    /// The binding with its digest filled in: the newest version of the plugin unless the binding names one. A named
    /// version must be in the catalog or in the history.
    ///
    /// # Errors
    ///
    /// [`hooks::Error::PluginMissing`] if there is no such plugin or version.
    pub(super) fn pin(&self, catalog: &Catalog, binding: Binding) -> Result<Binding, Error> {
        let digest = match &binding.digest {
            None => catalog.plugins.get(&binding.plugin).map(|info| info.digest.clone()),
            Some(digest) => {
                let is_in_catalog = || catalog.versions().contains(&(binding.plugin.clone(), digest.clone()));
                let is_kept =
                    self.versions().any(|version| version == (&*binding.plugin, &**digest)) || is_in_catalog();
                is_kept.then(|| digest.clone())
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
        let needed = catalog.digests_after(&change.edit);
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

    fn versions(&self) -> impl Iterator<Item = (&str, &str)> {
        self.changes.iter().filter_map(|change| change.edit.version())
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
        let config_bytes: usize = self.changes.iter().map(|change| change.edit.config_bytes()).sum();
        self.changes.len() > HISTORY_CHANGES_MAX
            || config_bytes > HISTORY_BYTES_MAX
            || versions_bytes > HISTORY_VERSIONS_BYTES_MAX
    }
}

fn key(number: u64) -> String {
    format!("{HISTORY_PREFIX}{number:020}")
}
