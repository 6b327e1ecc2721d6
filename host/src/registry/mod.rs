//! Plugins and hooks as part of the replicated state.
//!
//! # Problem
//!
//! Users upload plugins and say which writes they judge. Every node must run the same hooks from the same log index on,
//! although components are large, take seconds to compile, and several clients may change the registry at once.
//!
//! # Approach
//!
//! The registry is five kinds of entries in the system space, written through the log like any other entry:
//!
//! | key | value | file |
//! |---|---|---|
//! | `plugins/<name>` | the newest version of a plugin | `catalog` |
//! | `hooks/<name>` | a binding: which plugin runs on which writes | `catalog` |
//! | `components/<digest>/<number>` | a piece of the bytes of a version | `components` |
//! | `history/<number>` | a change: what was changed, when and by whom | `history` |
//! | `preparing/<name>` | the binding that a hook is about to have | `preparation` |
//!
//! `Registry` is the facade. All changes go through `transaction`, one read-modify-write loop. On every node `follower`
//! watches the applied entries: it compiles what the registry names, pre-initializes the hooks that are about to be in force, and
//! puts them in force. A change of a hook takes three steps: the node that was asked checks the binding, all nodes prepare it, and
//! one write puts it in force everywhere. A node that was not reached has calls configured one by one until it has caught up.
//!
//! # Guarantees
//!
//! - A change of a hook changes the hook epoch, and no write judged under an older epoch commits. So a hook is in force
//!   everywhere once its creation is acknowledged (P6).
//! - A change and its record in the history are one write. A plugin is named only when all its bytes are stored.
//! - An upload is acknowledged once every node that can be reached has compiled it, or after [`PREPARE_DEADLINE`]; a hook is in
//!   force once they have pre-initialized it, or after [`BIND_DEADLINE`] (after [`PREPARE_DEADLINE`] if it is rolled back). So a
//!   write need not wait for a compiler, nor pay for a configuration.
//! - What compiles for a request ends with it (see [`sandbox`](crate::sandbox)).
//!
//! # Failure model
//!
//! A transaction that finds the registry changed by another starts again, a bounded number of times. A failed upload leaves
//! pieces, and a failed change of a hook its preparation; a later change removes both. A client that was cut off while a hook was
//! prepared repeats its request, and goes on where it was. A version that one node cannot compile holds up only the hooks that
//! run it there. A node that was cut off when a hook was created may have to compile it first: its writes wait until the hooks
//! of the newest epoch are in force there. A step of the follower that fails is logged and tried again.
//!
//! # Cost
//!
//! A change reads the whole registry, without the bytes of plugins, and is one write; that of a hook is two. An upload is one more
//! write per MiB.

mod catalog;
mod components;
mod entry;
mod error;
mod follower;
mod history;
mod preparation;
mod proposed;
mod transaction;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::catalog::{Catalog, HookInfo, PluginInfo};
use self::entry::{delete, put_json};
pub(crate) use self::error::Error;
use self::follower::{CompiledPlugins, Follower};
use self::history::{Change, Edit};
pub(crate) use self::proposed::is_of_a_node;
pub(crate) use self::transaction::Author;
use self::transaction::{ATTEMPTS_MAX, Commit, Decision, ReadSet, Transactions, blocking};
use crate::hooks::{self, Binding, CompileOptions, Hook, Pipeline, Priority, Runtime};
use crate::limits::{
    BIND_DEADLINE, HOOKS_MAX, PLUGINS_MAX, PREPARE_DEADLINE, REGISTRY_DEADLINE, STORE_UPLOAD_DEADLINE, UPLOADS_MAX,
};
use crate::replication;
use crate::storage::{Data, HOOKS_PREFIX, PLUGINS_PREFIX};
use crate::write_path::{self, WritePath};

/// Interval at which the nodes' preparations are checked. They arrive with every hello.
const PREPARED_POLL: Duration = Duration::from_millis(50);

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
            plugins: CompiledPlugins {
                runtime,
                data: data.clone(),
                by_version: Mutex::default(),
                unusable: Mutex::default(),
            },
            active: pipeline.active().clone(),
            replication,
            data,
            started: Instant::now(),
            prepared: Mutex::default(),
            compiling: CancellationToken::new(),
            stop: CancellationToken::new(),
        });
        let tasks = TaskTracker::new();
        follower.start(&tasks);
        Self { follower, transactions, uploads: Arc::new(Semaphore::new(UPLOADS_MAX)), tasks }
    }

    /// Ends all compilers, and with them the requests that wait for one.
    pub fn stop_compiling(&self) {
        self.follower.compiling.cancel();
    }

    /// Stops following. Returns once the steps that were running have ended.
    pub async fn stop(&self) {
        self.stop_compiling();
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
    /// If the caller does not wait for the answer, the compiler is ended. After an error the plugin is unchanged, unless the
    /// leader was lost during the last write ([`Error::Write`]), which may still commit. Pieces that were stored are removed
    /// later.
    pub async fn put_plugin(
        &self,
        name: &str,
        bytes: Bytes,
        author: &Author,
        upload: OwnedSemaphorePermit,
    ) -> Result<PluginInfo, Error> {
        hooks::check_name("name", name)?;
        let (plugin, _upload) = {
            let (follower, name, bytes) = (self.follower.clone(), name.to_owned(), bytes.clone());
            // Dropped with this future.
            let cancelled = self.follower.compiling.child_token();
            let options = CompileOptions { priority: Priority::Deploying, cancelled: cancelled.clone() };
            let _cancel = cancelled.drop_guard();
            blocking(move || Ok((follower.plugins.compile(&name, &bytes, &options)?, upload))).await?
        };
        let deadline = Instant::now() + STORE_UPLOAD_DEADLINE;
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
            let operations = vec![put_json(format!("{PLUGINS_PREFIX}{name}"), info)?];
            let (plugin, digest, size_bytes) = (info.name.clone(), info.digest.clone(), info.size_bytes);
            let edit = Edit::PluginUploaded { plugin, digest, size_bytes };
            Ok(Decision::Commit(Box::new(Commit { read, operations, preconditions, edit }), info.clone()))
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
            let operations = vec![delete(format!("{PLUGINS_PREFIX}{name}"))];
            let edit = Edit::PluginRemoved { plugin: name.to_owned() };
            Ok(Decision::Commit(Box::new(Commit { read, operations, preconditions: Vec::new(), edit }), true))
        };
        let deadline = Instant::now() + REGISTRY_DEADLINE;
        Ok(self.transactions.run(author, deadline, decide).await?.0)
    }

    /// Creates or replaces a hook. When this returns, no write commits that the hook did not see. Before it is in force, the
    /// nodes that can be reached pre-initialize it, so that its first calls cost what all others do.
    pub async fn put_hook(&self, name: &str, binding: Binding, author: &Author) -> Result<HookInfo, Error> {
        self.put_prepared_hook(name, binding, author, BIND_DEADLINE).await
    }

    /// The same, but the hook is in force after `patience`, whether all nodes have pre-initialized it or not.
    async fn put_prepared_hook(
        &self,
        name: &str,
        binding: Binding,
        author: &Author,
        patience: Duration,
    ) -> Result<HookInfo, Error> {
        hooks::check_name("name", name)?;
        let binding = &self.prepare_hook(name, binding, patience).await?;
        let deadline = Instant::now() + REGISTRY_DEADLINE;
        let decide = move |read: ReadSet| async move {
            if read.catalog.hooks.len() >= HOOKS_MAX && !read.catalog.hooks.contains_key(name) {
                return Err(Error::TooManyHooks);
            }
            // The version may have gone meanwhile.
            let binding = read.history.pin(&read.catalog, binding.clone())?;
            let operations = vec![put_json(format!("{HOOKS_PREFIX}{name}"), &binding)?, preparation::end(name)];
            let edit = Edit::HookSet { hook: name.to_owned(), binding: binding.clone() };
            let hook = HookInfo { name: name.to_owned(), binding, revision: 0 };
            Ok(Decision::Commit(Box::new(Commit { read, operations, preconditions: Vec::new(), edit }), hook))
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

    /// Checks the binding of a hook, and has every node that can be reached prepare it. Returns the binding with its digest.
    async fn prepare_hook(&self, name: &str, binding: Binding, patience: Duration) -> Result<Binding, Error> {
        let read = self.transactions.read(Instant::now() + REGISTRY_DEADLINE).await?;
        if read.catalog.hooks.len() >= HOOKS_MAX && !read.catalog.hooks.contains_key(name) {
            return Err(Error::TooManyHooks);
        }
        let binding = read.history.pin(&read.catalog, binding)?;
        let cancelled = self.follower.compiling.child_token();
        let options = CompileOptions { priority: Priority::Deploying, cancelled: cancelled.clone() };
        let _cancel = cancelled.drop_guard();
        let (follower, hook, checked) = (self.follower.clone(), name.to_owned(), binding.clone());
        // Runs the plugin once with the configuration.
        blocking(move || {
            let plugin = follower.plugins.get(&checked.plugin, checked.digest(), &options)?;
            Ok(follower.plugins.runtime.bind(&hook, checked, &plugin).map(drop)?)
        })
        .await?;
        if read.catalog.hooks.get(name).is_some_and(|hook| hook.binding == binding) {
            return Ok(binding);
        }
        // From here on: compiling has a deadline of its own.
        let deadline = Instant::now() + patience;
        let revision = self.begin_preparation(name, &binding, deadline).await?;
        self.wait_prepared(revision, deadline).await?;
        Ok(binding)
    }

    /// Has all nodes prepare a hook. Returns the revision that they have seen then.
    async fn begin_preparation(&self, name: &str, binding: &Binding, deadline: Instant) -> Result<u64, Error> {
        let write_path = &self.transactions.write_path;
        for _ in 0..ATTEMPTS_MAX {
            self.transactions.catch_up(deadline).await?;
            let data = self.follower.data.clone();
            let (all, unchanged) = blocking(move || preparation::read(&data)).await?;
            if let Some(revision) = preparation::revision_of(&all, name, binding) {
                return Ok(revision);
            }
            let begin = preparation::begin(&all, name, binding, write_path.time_ms())?;
            let begun = write_path.write_unjudged(begin, vec![unchanged], deadline).await;
            if let Some(revision) = begun.map_err(Error::Preliminary)? {
                return Ok(revision);
            }
        }
        Err(write_path::Error::Contended { attempts: ATTEMPTS_MAX }.into())
    }

    /// Waits until this node and all that can be reached are prepared, but not beyond the deadline.
    async fn wait_prepared(&self, revision: u64, deadline: Instant) -> Result<(), Error> {
        loop {
            let prepared = self.follower.replication.prepared().into_iter();
            let late: Vec<String> = prepared.filter(|(_, prepared)| *prepared < revision).map(|(url, _)| url).collect();
            if late.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                tracing::warn!(nodes = late.join(", "), revision, "some nodes have not pre-initialized a hook in time");
                return Ok(());
            }
            if self.follower.compiling.run_until_cancelled(sleep(PREPARED_POLL)).await.is_none() {
                return Err(Error::Stopping);
            }
        }
    }

    /// Removes a hook. False if there is no hook of that name.
    pub async fn delete_hook(&self, name: &str, author: &Author) -> Result<bool, Error> {
        let decide = move |read: ReadSet| async move {
            if !read.catalog.hooks.contains_key(name) {
                return Ok(Decision::Done(false));
            }
            let operations = vec![delete(format!("{HOOKS_PREFIX}{name}"))];
            let edit = Edit::HookRemoved { hook: name.to_owned() };
            Ok(Decision::Commit(Box::new(Commit { read, operations, preconditions: Vec::new(), edit }), true))
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
            // Whoever rolls back is in a hurry.
            Edit::HookSet { binding, .. } => {
                self.put_prepared_hook(name, binding.clone(), &author, PREPARE_DEADLINE).await.map(Some)
            }
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
