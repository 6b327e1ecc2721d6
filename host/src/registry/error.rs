//! Why the registry was not changed or read.

use crate::limits::{HOOKS_MAX, HOOKS_PREPARED_MAX, PLUGINS_MAX, UPLOADS_MAX};
use crate::{hooks, storage, write_path};

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("plugin {plugin:?} is in use by {}", hooks.join(", "))]
    PluginInUse { plugin: String, hooks: Vec<String> },
    #[error("there are {PLUGINS_MAX} plugins, the maximum")]
    TooManyPlugins,
    #[error("there are {HOOKS_MAX} hooks, the maximum")]
    TooManyHooks,
    #[error("this node is receiving {UPLOADS_MAX} uploads, the maximum")]
    TooManyUploads,
    #[error("{HOOKS_PREPARED_MAX} hooks are being prepared, the maximum")]
    TooManyPreparations,
    #[error(
        "the history has no record of hook {hook:?} {}",
        to.map_or_else(|| "before its last change".to_owned(), |to| format!("as of change {to}"))
    )]
    NoSuchState { hook: String, to: Option<u64> },
    /// A write before the change was not committed: a piece of an upload, or the preparation of a hook. Nothing was changed.
    #[error(transparent)]
    Preliminary(write_path::Error),
    /// The plugin or the binding was refused.
    #[error(transparent)]
    Hook(#[from] hooks::Error),
    /// The change was not committed.
    #[error(transparent)]
    Write(#[from] write_path::Error),
    #[error("the node's storage failed")]
    Storage(#[from] storage::Error),
    #[error("registry entry {key:?} cannot be decoded")]
    Undecodable { key: String, source: serde_json::Error },
    #[error("this node is stopping")]
    Stopping,
}
