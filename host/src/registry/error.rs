//! Why the registry was not changed or read.

use std::sync::Arc;

use crate::hooks;
use crate::limits::{HOOKS_MAX, PLUGINS_MAX, UPLOADS_MAX};
use crate::storage;
use crate::write_path;

/// Why the registry was not changed or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A plugin cannot be removed while hooks run it.
    #[error("plugin {plugin:?} is in use by {}", hooks.join(", "))]
    PluginInUse {
        /// The plugin.
        plugin: String,
        /// The hooks that run it.
        hooks: Vec<String>,
    },
    /// The registry holds [`PLUGINS_MAX`] plugins.
    #[error("there are {PLUGINS_MAX} plugins, the maximum")]
    TooManyPlugins,
    /// The history does not reach back to the requested state of a hook.
    #[error(
        "the history has no record of hook {hook:?} {}",
        to.map_or_else(|| "before its last change".to_owned(), |to| format!("as of change {to}"))
    )]
    NoSuchState {
        /// The hook.
        hook: String,
        /// The requested change; `None` for the state before the last one.
        to: Option<u64>,
    },
    /// The registry holds [`HOOKS_MAX`] hooks.
    #[error("there are {HOOKS_MAX} hooks, the maximum")]
    TooManyHooks,
    /// This node receives [`UPLOADS_MAX`] uploads already.
    #[error("this node is receiving {UPLOADS_MAX} uploads, the maximum")]
    TooManyUploads,
    /// A piece of an upload was not committed. The plugin was not changed.
    #[error(transparent)]
    Piece(write_path::Error),
    /// The plugin or the binding was refused.
    #[error(transparent)]
    Hook(#[from] hooks::Error),
    /// The change was not committed.
    #[error(transparent)]
    Write(#[from] write_path::Error),
    /// The node's storage failed.
    #[error("the node's storage failed")]
    Storage(#[from] storage::Error),
    /// An entry of the registry cannot be decoded.
    #[error("registry entry {key:?} cannot be decoded")]
    Undecodable {
        /// The entry's key.
        key: String,
        /// The decoder's error.
        source: Arc<serde_json::Error>,
    },
    /// The node is stopping.
    #[error("this node is stopping")]
    Stopping,
}
