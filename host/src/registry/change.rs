//! One change of the registry: what was changed, when and by whom.

use serde::{Deserialize, Serialize};

use crate::hooks::Binding;

/// One change of the registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Change {
    /// Its number. The first change of a store is 1.
    pub number: u64,
    /// Unix time in milliseconds, by the clock of the node that made the change.
    pub at_ms: u64,
    /// The author as named by the client. Nobody has verified it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The URL of the node that made the change.
    pub node: String,
    /// What was changed.
    #[serde(flatten)]
    pub edit: Edit,
    /// The change that a rollback restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rolled_back_to: Option<u64>,
}

/// What a change does to the registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub enum Edit {
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
    /// A hook was created or replaced.
    HookSet {
        /// Its name.
        hook: String,
        /// Its binding from then on.
        binding: Binding,
    },
    /// A hook was removed.
    HookRemoved {
        /// Its name.
        hook: String,
    },
}

impl Edit {
    /// The hook that was changed, if it was one.
    pub(super) fn hook(&self) -> Option<&str> {
        match self {
            Self::HookSet { hook, .. } | Self::HookRemoved { hook } => Some(hook),
            Self::PluginUploaded { .. } | Self::PluginRemoved { .. } => None,
        }
    }

    /// The plugin and digest that it names.
    pub(super) fn version(&self) -> Option<(&str, &str)> {
        match self {
            Self::PluginUploaded { plugin, digest, .. } => Some((plugin, digest)),
            Self::HookSet { binding, .. } => Some((&binding.plugin, binding.digest())),
            Self::PluginRemoved { .. } | Self::HookRemoved { .. } => None,
        }
    }

    /// The size of its configuration, the only part of a change that may be large.
    pub(super) fn config_bytes(&self) -> usize {
        match self {
            Self::HookSet { binding, .. } => binding.config.to_string().len(),
            _ => 0,
        }
    }
}

/// Who changes the registry, and why.
#[derive(Debug, Clone)]
pub struct Author {
    /// The name given by the client.
    pub(super) by: Option<String>,
    /// The change to restore, if this is a rollback.
    pub(super) rolls_back_to: Option<u64>,
}

impl Author {
    /// An author with a name, or an anonymous one.
    pub fn named(by: Option<String>) -> Self {
        Self { by, rolls_back_to: None }
    }
}
