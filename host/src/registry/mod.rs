//! Plugins and hooks as part of the replicated state.
//!
//! # Problem
//!
//! Users upload plugins and say which writes they judge. Every node must run the same hooks from the same log index on,
//! although components are large, take seconds to compile, and several clients may change the registry at once.
//!
//! # Approach
//!
//! The registry is four kinds of entries in the system space, written through the log like any other entry:
//!
//! | key | value | file |
//! |---|---|---|
//! | `plugins/<name>` | the newest version of a plugin | `catalog` |
//! | `hooks/<name>` | a binding: which plugin runs on which writes | `catalog` |
//! | `components/<digest>/<number>` | a piece of the bytes of a version | `components` |
//! | `history/<number>` | a change: what was changed, when and by whom | `history` |
//!
//! `Registry` is the facade. All changes go through `transaction`, one read-modify-write loop. On every node `follower`
//! watches the applied entries: it compiles what the registry names, puts the hooks in force and then pre-initializes them.
//! Until a hook is pre-initialized, its calls are configured one by one.
//!
//! # Guarantees
//!
//! - A change of a hook changes the hook epoch, and no write judged under an older epoch commits. So a hook is in force
//!   everywhere once its creation is acknowledged (P6).
//! - A change and its record in the history are one write. A plugin is named only when all its bytes are stored.
//! - A change is acknowledged once every node that can be reached is ready for it, or after [`PREPARE_DEADLINE`]. So a
//!   write need not wait for a compiler.
//!
//! # Failure model
//!
//! A transaction that finds the registry changed by another starts again, a bounded number of times. An upload that fails
//! leaves pieces that a later change removes. A node that was cut off when a hook was created may have to compile it
//! first: its writes wait until the hooks of the newest epoch are in force there. A step of the follower that fails is
//! logged and tried again.
//!
//! # Cost
//!
//! A change reads the whole registry, without the bytes of plugins, and is one write. An upload is one more write per MiB.

mod catalog;
mod components;
mod entry;
mod error;
mod follower;
mod history;
mod transaction;

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::catalog::{Catalog, HookInfo, PluginInfo};
use self::entry::{delete, put_json};
pub(crate) use self::error::Error;
use self::follower::{CompiledPlugins, Follower};
use self::history::{Change, Edit};
pub(crate) use self::transaction::Author;
use self::transaction::{Commit, Decision, ReadSet, Transactions, blocking};
use crate::hooks::{self, Binding, Hook, Pipeline, Runtime};
use crate::limits::{HOOKS_MAX, PLUGINS_MAX, PREPARE_DEADLINE, REGISTRY_DEADLINE, UPLOADS_MAX};
use crate::replication;
use crate::storage::{Data, HOOKS_PREFIX, PLUGINS_PREFIX};
use crate::write_path::WritePath;

/// The registry of this node.
pub(crate) struct Registry {
    follower: Arc<Follower>,
    transactions: Transactions,
    /// One permit per upload that this node may receive at once.
    uploads: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// How the calls of a hook start on this node.
#[derive(Serialize)]
pub(crate) struct HookStart {
    hook: String,
    plugin: String,
    digest: String,
    /// Whether the hook is pre-initialized. Otherwise each call is configured first.
    starts_configured: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_not: Option<String>,
}

/// Whether a node has compiled and put in force everything in the registry.
#[derive(Serialize)]
pub(crate) struct NodeReadiness {
    url: String,
    ready: bool,
}

impl Registry {
    pub fn start(
        runtime: Runtime,
        pipeline: &Pipeline,
        write_path: WritePath,
        replication: replication::Handle,
        data: Data,
    ) -> Self {
        let transactions = Transactions { write_path, data: data.clone(), node_url: replication.url().to_owned() };
        let follower = Arc::new(Follower {
            plugins: CompiledPlugins { runtime, data: data.clone(), by_version: Mutex::default() },
            active: pipeline.active().clone(),
            replication,
            data,
            started: Instant::now(),
            stop: CancellationToken::new(),
        });
        let tasks = TaskTracker::new();
        follower.start(&tasks);
        Self { follower, transactions, uploads: Arc::new(Semaphore::new(UPLOADS_MAX)), tasks }
    }

    /// Stops following. Returns once the steps that were running have ended, which takes as long as compiling one plugin.
    pub async fn stop(&self) {
        self.follower.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Reserves one of the uploads that this node receives at once. Call it before reading the body.
    pub fn reserve_upload(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.uploads).try_acquire_owned().map_err(|_| Error::TooManyUploads)
    }

    /// Uploads a plugin, or a new version of it. Existing hooks keep the version they were bound to.
    ///
    /// After an error the plugin is unchanged, unless the leader was lost during the last write ([`Error::Write`]), which
    /// may still commit. Pieces that were stored are removed later.
    pub async fn put_plugin(
        &self,
        name: &str,
        bytes: Bytes,
        author: &Author,
        upload: OwnedSemaphorePermit,
    ) -> Result<PluginInfo, Error> {
        hooks::check_name("name", name)?;
        let deadline = Instant::now() + REGISTRY_DEADLINE;
        let (plugin, _upload) = {
            let (follower, name, bytes) = (self.follower.clone(), name.to_owned(), bytes.clone());
            // The compiler holds the permit while it runs, even if the client goes away.
            blocking(move || Ok((follower.plugins.compile(&name, &bytes)?, upload))).await?
        };
        let info = PluginInfo {
            name: name.to_owned(),
            digest: plugin.digest().to_owned(),
            size_bytes: bytes.len() as u64,
            roles: plugin.roles().into_iter().map(str::to_owned).collect(),
            memory_bytes: plugin.start_memory_bytes() as u64,
            start_us: u64::try_from(plugin.start_time().as_micros()).unwrap_or(u64::MAX),
            revision: 0,
        };
        let (transactions, info, bytes) = (&self.transactions, &info, &bytes);
        let decide = move |read: ReadSet| async move {
            let plugins = &read.catalog.plugins;
            if let Some(known) = plugins.get(name).filter(|known| known.digest == info.digest) {
                return Ok(Decision::Done(known.clone()));
            }
            if plugins.len() >= PLUGINS_MAX && !plugins.contains_key(name) {
                return Err(Error::TooManyPlugins);
            }
            let Some(preconditions) = transactions.store_pieces(&read, &info.digest, bytes, deadline).await? else {
                return Ok(Decision::Again);
            };
            let operation = put_json(format!("{PLUGINS_PREFIX}{name}"), info)?;
            let (plugin, digest, size_bytes) = (info.name.clone(), info.digest.clone(), info.size_bytes);
            let edit = Edit::PluginUploaded { plugin, digest, size_bytes };
            Ok(Decision::Commit(Box::new(Commit { read, operation, preconditions, edit }), info.clone()))
        };
        let (mut info, committed) = transactions.run(author, deadline, decide).await?;
        if let Some(revision) = committed {
            self.wait_everywhere(revision).await;
            info.revision = revision;
        }
        Ok(info)
    }

    /// Removes a plugin, unless a hook runs it. False if there is no plugin of that name.
    pub async fn delete_plugin(&self, name: &str, author: &Author) -> Result<bool, Error> {
        let decide = move |read: ReadSet| async move {
            if !read.catalog.plugins.contains_key(name) {
                return Ok(Decision::Done(false));
            }
            let hooks = read.catalog.hooks.values().filter(|hook| hook.binding.plugin == name);
            let hooks: Vec<String> = hooks.map(|hook| hook.name.clone()).collect();
            if !hooks.is_empty() {
                return Err(Error::PluginInUse { plugin: name.to_owned(), hooks });
            }
            let operation = delete(format!("{PLUGINS_PREFIX}{name}"));
            let edit = Edit::PluginRemoved { plugin: name.to_owned() };
            Ok(Decision::Commit(Box::new(Commit { read, operation, preconditions: Vec::new(), edit }), true))
        };
        let deadline = Instant::now() + REGISTRY_DEADLINE;
        Ok(self.transactions.run(author, deadline, decide).await?.0)
    }

    /// Creates or replaces a hook. When this returns, no write commits that the hook did not see.
    pub async fn put_hook(&self, name: &str, binding: Binding, author: &Author) -> Result<HookInfo, Error> {
        hooks::check_name("name", name)?;
        let deadline = Instant::now() + REGISTRY_DEADLINE;
        let binding = &binding;
        let decide = move |read: ReadSet| async move {
            if read.catalog.hooks.len() >= HOOKS_MAX && !read.catalog.hooks.contains_key(name) {
                return Err(Error::TooManyHooks);
            }
            let binding = read.history.pin(&read.catalog, binding.clone())?;
            {
                let (follower, name, binding) = (self.follower.clone(), name.to_owned(), binding.clone());
                // Checks the binding: runs the plugin once with the configuration.
                blocking(move || {
                    let plugin = follower.plugins.get(&binding.plugin, binding.digest())?;
                    follower.plugins.runtime.bind(&name, binding, &plugin)?;
                    Ok(())
                })
                .await?;
            }
            let operation = put_json(format!("{HOOKS_PREFIX}{name}"), &binding)?;
            let edit = Edit::HookSet { hook: name.to_owned(), binding: binding.clone() };
            let hook = HookInfo { name: name.to_owned(), binding, revision: 0 };
            Ok(Decision::Commit(Box::new(Commit { read, operation, preconditions: Vec::new(), edit }), hook))
        };
        let (mut hook, committed) = self.transactions.run(author, deadline, decide).await?;
        if let Some(revision) = committed {
            // Committed, so the epoch has changed: if this node cannot put the hook in force, its writes wait.
            if let Err(error) = self.follower.active.wait_for(revision, deadline.into_std()).await {
                tracing::warn!(name, %error, "the hook is committed but not in force on this node yet");
            }
            self.wait_everywhere(revision).await;
            hook.revision = revision;
        }
        Ok(hook)
    }

    /// Removes a hook. False if there is no hook of that name.
    pub async fn delete_hook(&self, name: &str, author: &Author) -> Result<bool, Error> {
        let decide = move |read: ReadSet| async move {
            if !read.catalog.hooks.contains_key(name) {
                return Ok(Decision::Done(false));
            }
            let operation = delete(format!("{HOOKS_PREFIX}{name}"));
            let edit = Edit::HookRemoved { hook: name.to_owned() };
            Ok(Decision::Commit(Box::new(Commit { read, operation, preconditions: Vec::new(), edit }), true))
        };
        let deadline = Instant::now() + REGISTRY_DEADLINE;
        Ok(self.transactions.run(author, deadline, decide).await?.0)
    }

    /// Restores a hook to its state as of change `to`, or, if `to` is `None`, to its state before its last change.
    /// Returns `None` if the hook did not exist then, and is removed.
    pub async fn roll_back(&self, name: &str, to: Option<u64>, author: &Author) -> Result<Option<HookInfo>, Error> {
        let history = self.transactions.read(Instant::now() + REGISTRY_DEADLINE).await?.history;
        let change = history.state_of(name, to).ok_or_else(|| Error::NoSuchState { hook: name.to_owned(), to })?;
        let author = Author { rolls_back_to: Some(change.number), ..author.clone() };
        match &change.edit {
            Edit::HookSet { binding, .. } => self.put_hook(name, binding.clone(), &author).await.map(Some),
            _ => self.delete_hook(name, &author).await.map(|_| None),
        }
    }

    pub async fn catalog(&self) -> Result<Catalog, Error> {
        Ok(self.transactions.read_promptly().await?.catalog)
    }

    /// The kept changes, newest first.
    pub async fn history(&self) -> Result<Vec<Change>, Error> {
        Ok(self.transactions.read_promptly().await?.history.changes.into_iter().rev().collect())
    }

    /// Whether the hooks of the newest epoch known to this node are in force here. Otherwise its writes wait.
    pub fn is_ready(&self) -> bool {
        self.follower.active.current().epoch() >= self.follower.data.hook_epoch()
    }

    pub async fn readiness(&self) -> Result<Vec<NodeReadiness>, Error> {
        let catalog = self.transactions.read_local().await?.catalog;
        let plugins = catalog.plugins.values().map(|plugin| plugin.revision);
        let newest = plugins.chain(catalog.hooks.values().map(|hook| hook.revision)).max().unwrap_or(0);
        let readiness = self.follower.replication.prepared().into_iter().map(|(url, prepared)| {
            // This node knows its own state before it has told the others.
            let is_own = url == self.follower.replication.url();
            NodeReadiness { url, ready: if is_own { self.is_ready() } else { prepared >= newest } }
        });
        Ok(readiness.collect())
    }

    /// The hooks in force here, and how their calls start.
    pub fn starts(&self) -> Vec<HookStart> {
        let start = |hook: &Hook| {
            let pre_initialized = hook.pre_initialized();
            HookStart {
                hook: hook.name().to_owned(),
                plugin: hook.plugin().name().to_owned(),
                digest: hook.plugin().digest().to_owned(),
                starts_configured: matches!(pre_initialized, Some(Ok(()))),
                why_not: match pre_initialized {
                    None => Some("it is not pre-initialized yet".to_owned()),
                    Some(Err(reason)) => Some(reason.to_owned()),
                    Some(Ok(())) => None,
                },
            }
        };
        self.follower.active.current().hooks().iter().map(start).collect()
    }

    /// Waits until every reachable node is ready for a change, but not longer than [`PREPARE_DEADLINE`].
    async fn wait_everywhere(&self, revision: u64) {
        let late = self.follower.replication.wait_prepared(revision, Instant::now() + PREPARE_DEADLINE).await;
        if !late.is_empty() {
            let nodes = late.join(", ");
            tracing::warn!(nodes, revision, "some nodes are not ready for the change of the registry yet");
        }
    }
}
