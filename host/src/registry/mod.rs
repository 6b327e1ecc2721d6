//! Plugins and hooks as part of the replicated state.
//!
//! Four kinds of keys in the system space: `plugins/<name>` names a plugin's current version, those under
//! `components/<digest>/` hold a version's bytes in pieces, `hooks/<name>` says what runs where, `history/<number>` what was
//! changed, by whom and when. They travel through the log like any write, so every node has the same hooks at the same log
//! index. A change of a hook changes the hook epoch, and no write judged under
//! an older epoch commits; so a hook is in force everywhere as soon as its creation is acknowledged (P6).
//!
//! Every node compiles what it finds in the registry in the background, as soon as it is uploaded, and tells the others
//! how far it is. Once a hook is in force, it also pre-initializes the hook, so that calls start configured; until then
//! they are configured one by one. A change is acknowledged once every node that can be reached is ready for it, so that no write has to
//! wait for a compiler. Where one does (a node was cut off meanwhile), it waits until that node has built the set of
//! hooks of the newest epoch.

mod components;
mod history;
mod known;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use self::components::Stored;
use self::history::History;
pub use self::history::{Author, Change, What};
use self::known::{Known, delete, json, put};
use crate::hooks::{self, Binding, Hook, Pipeline, Plugin, Runtime};
use crate::limits::{
    HOOKS_MAX, PLUGINS_MAX, PREPARE_DEADLINE, PROMPT_READ_DEADLINE, REGISTRY_DEADLINE, UPLOADS_MAX, WRITE_DEADLINE,
};
use crate::replication;
use crate::storage::{self, Data, HOOKS_PREFIX, Operation, PLUGINS_PREFIX, Precondition};
use crate::write_path::{self, Request, WritePath, now_ms};

/// How often a change of the registry is tried again when others change it at the same time.
const ATTEMPTS_MAX: usize = 4;

/// How long an upload rests before it writes a piece again when the leader was lost meanwhile.
const PIECE_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How long the registry rests between looks for plugins to compile ahead.
const COMPILE_AHEAD_INTERVAL: Duration = Duration::from_millis(200);

/// How long after its start a node forgets no compiled code: it may not have applied yet what it will need.
const KEEP_ALL_COMPILED: Duration = Duration::from_secs(60);

/// How long it waits before it tries again to build a set of hooks that could not be built.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// A plugin in the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginInfo {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub digest: String,
    /// Its size in bytes.
    pub size_bytes: u64,
    /// What it exports: `validator`, `transformer` or both.
    pub roles: Vec<String>,
    /// The linear memory of an instance that has just started, in bytes.
    #[serde(default)]
    pub memory_bytes: u64,
    /// How long an instance took to start on the node that took the upload, in microseconds, before any configuration.
    #[serde(default)]
    pub start_us: u64,
    /// The store's revision at which this version was uploaded.
    #[serde(default)]
    pub revision: u64,
}

/// A hook in force.
#[derive(Debug, Clone, Serialize)]
pub struct HookInfo {
    /// Its name.
    pub name: String,
    /// What it runs, and on which writes.
    #[serde(flatten)]
    pub binding: Binding,
    /// The store's revision at which it was set.
    pub revision: u64,
}

/// How the calls of a hook start on this node.
#[derive(Debug, Clone, Serialize)]
pub struct Start {
    /// The hook.
    pub hook: String,
    /// The plugin's name.
    pub plugin: String,
    /// The plugin's version.
    pub digest: String,
    /// Whether an instance starts with its configuration, instead of getting it before each call.
    pub starts_configured: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// Why the registry was not changed or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A plugin cannot be removed while hooks run it.
    #[error("plugin {plugin:?} is run by {}", hooks.join(", "))]
    PluginInUse {
        /// The plugin.
        plugin: String,
        /// The hooks that run it.
        hooks: Vec<String>,
    },
    /// There are as many plugins as there may be.
    #[error("there are {PLUGINS_MAX} plugins, and no more are allowed")]
    TooManyPlugins,
    /// The history does not tell what a hook was.
    #[error(
        "the history does not tell what hook {hook:?} was {}",
        to.map_or_else(|| "before its last change".to_owned(), |to| format!("when change {to} had been made"))
    )]
    NoSuchState {
        /// The hook.
        hook: String,
        /// The change named, if one was.
        to: Option<u64>,
    },
    /// There are as many hooks as there may be.
    #[error("there are {HOOKS_MAX} hooks, and no more are allowed")]
    TooManyHooks,
    /// As many uploads as a node takes at once are under way.
    #[error("{UPLOADS_MAX} uploads are under way on this node, and it takes no more at once")]
    TooManyUploads,
    /// A piece of an upload was not committed, so that the plugin is what it was.
    #[error(transparent)]
    Piece(write_path::Error),
    /// The plugin or the binding is refused.
    #[error(transparent)]
    Hook(#[from] hooks::Error),
    /// The change was not committed.
    #[error(transparent)]
    Write(#[from] write_path::Error),
    /// The node's storage failed.
    #[error("the node's storage failed")]
    Storage(#[from] storage::Error),
    /// An entry of the registry cannot be read.
    #[error("the registry's entry {key:?} cannot be read")]
    Undecodable {
        /// The entry's key.
        key: String,
        /// What is wrong with it.
        source: Arc<serde_json::Error>,
    },
    /// The node is stopping.
    #[error("this node is stopping")]
    Stopping,
}

/// The registry of this node. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

type Compiled = HashMap<(String, String), Arc<Plugin>>;

struct Inner {
    runtime: Runtime,
    pipeline: Pipeline,
    write_path: WritePath,
    replication: replication::Handle,
    data: Data,
    /// Compiled versions by name and digest.
    compiled: Mutex<Compiled>,
    uploads: Arc<Semaphore>,
    started: Instant,
    stopped: watch::Sender<bool>,
}

impl Registry {
    /// Starts following the registry.
    pub fn start(
        runtime: Runtime,
        pipeline: Pipeline,
        write_path: WritePath,
        replication: replication::Handle,
        data: Data,
    ) -> Self {
        let stopped = watch::Sender::new(false);
        let applied = replication.applied();
        let inner = Arc::new(Inner {
            runtime,
            pipeline,
            write_path,
            replication,
            data,
            compiled: Mutex::default(),
            uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
            started: Instant::now(),
            stopped,
        });
        tokio::spawn(follow(inner.clone(), applied.clone()));
        tokio::spawn(compile_ahead(inner.clone(), applied));
        tokio::spawn(pre_initialize(inner.clone()));
        Self { inner }
    }

    /// Whether the hooks of the newest epoch this node knows are in force here; until then its writes wait.
    pub fn is_ready(&self) -> bool {
        self.inner.pipeline.active().current().epoch() >= self.inner.data.hook_epoch()
    }

    /// The hooks in force here, and whether their calls start configured; if not, why.
    pub fn starts(&self) -> Vec<Start> {
        let set = self.inner.pipeline.active().current();
        let start = |hook: &Hook| {
            let pre_initialized = hook.pre_initialized();
            Start {
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
        set.hooks().iter().map(start).collect()
    }

    /// Stops following.
    pub fn stop(&self) {
        self.inner.stopped.send_replace(true);
    }

    /// Room for one upload, to be had before its body is read.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyUploads`] if there is none.
    pub fn upload_room(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.inner.uploads).try_acquire_owned().map_err(|_| Error::TooManyUploads)
    }

    /// Uploads a plugin, or a new version of it. Hooks keep the version they were bound to.
    ///
    /// # Errors
    ///
    /// If the bytes are not a plugin, or the upload was not committed. The plugin is then what it was, unless the leader was
    /// lost with the last write ([`Error::Write`]), which may still be committed. Pieces that nobody names are removed later.
    pub async fn put_plugin(
        &self,
        name: &str,
        bytes: Bytes,
        author: &Author,
        room: OwnedSemaphorePermit,
    ) -> Result<PluginInfo, Error> {
        hooks::check_name("name", name)?;
        let deadline = Instant::now() + REGISTRY_DEADLINE;
        let (plugin, _room) = self.inner.compile(name, bytes.clone(), room).await?;
        for _ in 0..ATTEMPTS_MAX {
            let (known, history) = self.inner.current(deadline).await?;
            if let Some(info) = known.plugins.get(name).filter(|info| info.digest == plugin.digest()) {
                return Ok(info.clone());
            }
            if known.plugins.len() >= PLUGINS_MAX && !known.plugins.contains_key(name) {
                return Err(Error::TooManyPlugins);
            }
            let info = PluginInfo {
                name: name.to_owned(),
                digest: plugin.digest().to_owned(),
                size_bytes: bytes.len() as u64,
                roles: plugin.roles().into_iter().map(str::to_owned).collect(),
                memory_bytes: plugin.start_memory_bytes() as u64,
                start_us: u64::try_from(plugin.start_time().as_micros()).unwrap_or(u64::MAX),
                revision: 0,
            };
            let stored = self.inner.stored(&known, &history).await?;
            let missing = stored.missing(&info.digest, &bytes);
            if !missing.is_empty() {
                self.store(missing, deadline).await?;
                continue;
            }
            let operations = vec![put(format!("{PLUGINS_PREFIX}{name}"), json(&info, name)?)];
            let (plugin, digest, size_bytes) = (info.name.clone(), info.digest.clone(), info.size_bytes);
            let what = What::PluginUploaded { plugin, digest, size_bytes };
            let is_whole = stored.is_whole(&info.digest);
            if let Some(revision) = self.change(operations, what, author, (known, history), is_whole, deadline).await? {
                self.wait_everywhere(revision).await;
                return Ok(PluginInfo { revision, ..info });
            }
        }
        Err(write_path::Error::Contended { attempts: ATTEMPTS_MAX }.into())
    }

    /// The plugins, by name.
    ///
    /// # Errors
    ///
    /// If the registry cannot be read.
    pub async fn plugins(&self) -> Result<Vec<PluginInfo>, Error> {
        Ok(self.inner.fresh_if_prompt().await?.plugins.into_values().collect())
    }

    /// One plugin.
    ///
    /// # Errors
    ///
    /// If the registry cannot be read.
    pub async fn plugin(&self, name: &str) -> Result<Option<PluginInfo>, Error> {
        Ok(self.inner.fresh_if_prompt().await?.plugins.remove(name))
    }

    /// Removes a plugin; false if there is none of that name.
    ///
    /// # Errors
    ///
    /// If a hook runs it, or the removal was not committed.
    pub async fn delete_plugin(&self, name: &str, author: &Author) -> Result<bool, Error> {
        let deadline = Instant::now() + REGISTRY_DEADLINE;
        for _ in 0..ATTEMPTS_MAX {
            let (known, history) = self.inner.current(deadline).await?;
            if !known.plugins.contains_key(name) {
                return Ok(false);
            }
            let hooks: Vec<String> = known.hooks_of(name).map(str::to_owned).collect();
            if !hooks.is_empty() {
                return Err(Error::PluginInUse { plugin: name.to_owned(), hooks });
            }
            let operations = vec![delete(format!("{PLUGINS_PREFIX}{name}"))];
            let what = What::PluginRemoved { plugin: name.to_owned() };
            if self.change(operations, what, author, (known, history), Vec::new(), deadline).await?.is_some() {
                return Ok(true);
            }
        }
        Err(write_path::Error::Contended { attempts: ATTEMPTS_MAX }.into())
    }

    /// Sets a hook. When this returns, no write commits that the hook did not see.
    ///
    /// # Errors
    ///
    /// If the plugin is missing, refuses the configuration, or the change was not committed; nothing is changed then.
    pub async fn put_hook(&self, name: &str, binding: Binding, author: &Author) -> Result<HookInfo, Error> {
        hooks::check_name("name", name)?;
        let deadline = Instant::now() + REGISTRY_DEADLINE;
        for _ in 0..ATTEMPTS_MAX {
            let (known, history) = self.inner.current(deadline).await?;
            if known.hooks.len() >= HOOKS_MAX && !known.hooks.contains_key(name) {
                return Err(Error::TooManyHooks);
            }
            let binding = known.pinned(binding.clone(), &history)?;
            let plugin = self.inner.plugin_of(&binding.plugin, binding.digest()).await?;
            self.inner.check_bind(name, binding.clone(), plugin).await?;
            let operations = vec![put(format!("{HOOKS_PREFIX}{name}"), json(&binding, name)?)];
            let what = What::HookSet { hook: name.to_owned(), binding: binding.clone() };
            if let Some(revision) =
                self.change(operations, what, author, (known, history), Vec::new(), deadline).await?
            {
                // The hook is committed, and with it the epoch: writes here wait for it, if this node cannot put it in force.
                if let Err(error) = self.inner.pipeline.active().wait_for(revision, deadline.into_std()).await {
                    tracing::warn!(name, %error, "the hook is committed, and not in force on this node yet");
                }
                self.wait_everywhere(revision).await;
                return Ok(HookInfo { name: name.to_owned(), binding, revision });
            }
        }
        Err(write_path::Error::Contended { attempts: ATTEMPTS_MAX }.into())
    }

    /// Makes a hook what it was when change `to` had been made; what it was before its last change, if none is named.
    /// `None` if that is to be removed.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchState`] if the history does not tell what the hook was; else as for [`Registry::put_hook`].
    pub async fn roll_back(&self, name: &str, to: Option<u64>, author: &Author) -> Result<Option<HookInfo>, Error> {
        let (_, history) = self.inner.current(Instant::now() + REGISTRY_DEADLINE).await?;
        let change = history.state_of(name, to).ok_or_else(|| Error::NoSuchState { hook: name.to_owned(), to })?;
        let author = Author { rolls_back_to: Some(change.number), ..author.clone() };
        match &change.what {
            What::HookSet { binding, .. } => self.put_hook(name, binding.clone(), &author).await.map(Some),
            _ => self.delete_hook(name, &author).await.map(|_| None),
        }
    }

    /// The changes that are kept, newest first.
    ///
    /// # Errors
    ///
    /// If the registry cannot be read.
    pub async fn history(&self) -> Result<Vec<Change>, Error> {
        self.inner.catch_up_if_prompt().await;
        Ok(self.inner.snapshot().await?.1.into_changes())
    }

    /// The hooks, by name.
    ///
    /// # Errors
    ///
    /// If the registry cannot be read.
    pub async fn hooks(&self) -> Result<Vec<HookInfo>, Error> {
        Ok(self.inner.fresh_if_prompt().await?.hooks.into_values().collect())
    }

    /// The nodes that can be reached, and whether each has what the registry holds compiled and in force.
    ///
    /// # Errors
    ///
    /// If the registry cannot be read.
    pub async fn readiness(&self) -> Result<Vec<(String, bool)>, Error> {
        let (known, _) = self.inner.snapshot().await?;
        let plugins = known.plugins.values().map(|plugin| plugin.revision);
        let newest = plugins.chain(known.hooks.values().map(|hook| hook.revision)).max().unwrap_or(0);
        // Of itself a node knows it before it has told the others.
        let is_own = |url: &str| url == self.inner.replication.url();
        let nodes = self.inner.replication.prepared().into_iter();
        let is_ready = |url: &str, prepared| if is_own(url) { self.is_ready() } else { prepared >= newest };
        let readiness = nodes.map(|(url, prepared)| {
            let is_ready = is_ready(&url, prepared);
            (url, is_ready)
        });
        Ok(readiness.collect())
    }

    /// One hook.
    ///
    /// # Errors
    ///
    /// If the registry cannot be read.
    pub async fn hook(&self, name: &str) -> Result<Option<HookInfo>, Error> {
        Ok(self.inner.fresh_if_prompt().await?.hooks.remove(name))
    }

    /// Removes a hook; false if there is none of that name.
    ///
    /// # Errors
    ///
    /// If the removal was not committed.
    pub async fn delete_hook(&self, name: &str, author: &Author) -> Result<bool, Error> {
        let deadline = Instant::now() + REGISTRY_DEADLINE;
        for _ in 0..ATTEMPTS_MAX {
            let (known, history) = self.inner.current(deadline).await?;
            if !known.hooks.contains_key(name) {
                return Ok(false);
            }
            let operations = vec![delete(format!("{HOOKS_PREFIX}{name}"))];
            let what = What::HookRemoved { hook: name.to_owned() };
            if self.change(operations, what, author, (known, history), Vec::new(), deadline).await?.is_some() {
                return Ok(true);
            }
        }
        Err(write_path::Error::Contended { attempts: ATTEMPTS_MAX }.into())
    }

    /// Waits until every node that can be reached is ready for a change; one that is slow is not waited for for ever.
    async fn wait_everywhere(&self, revision: u64) {
        let late = self.inner.replication.wait_prepared(revision, Instant::now() + PREPARE_DEADLINE).await;
        if !late.is_empty() {
            tracing::warn!(nodes = late.join(", "), revision, "not ready for the change of the registry yet");
        }
    }

    /// Commits pieces of a version, one by one, so that other writes go between them.
    async fn store(&self, pieces: Vec<Operation>, deadline: Instant) -> Result<(), Error> {
        for piece in pieces {
            let request = Request { operations: vec![piece], preconditions: Vec::new(), idempotency_key: None };
            while let Err(error) = self.inner.write_path.write_unjudged(request.clone(), deadline).await {
                // Whether it was committed does not matter then: it can be written again.
                let is_in_doubt = matches!(error, write_path::Error::Replication(replication::Error::LeaderLost));
                if !is_in_doubt || Instant::now() >= deadline {
                    return Err(Error::Piece(error));
                }
                tokio::time::sleep(PIECE_RETRY_INTERVAL).await;
            }
        }
        Ok(())
    }

    /// Commits a change of the registry and its record; none if somebody else changed it first.
    async fn change(
        &self,
        mut operations: Vec<Operation>,
        what: What,
        author: &Author,
        (known, history): (Known, History),
        conditions: Vec<Precondition>,
        deadline: Instant,
    ) -> Result<Option<u64>, Error> {
        let mut preconditions = known.unchanged();
        preconditions.push(history.unchanged());
        preconditions.extend(conditions);
        let change = Change {
            number: history.next(),
            at_ms: now_ms(),
            by: author.by.clone(),
            node: self.inner.replication.url().to_owned(),
            what,
            rolled_back_to: author.rolls_back_to,
        };
        let stored = self.inner.stored(&known, &history).await?;
        operations.extend(history.record(&known, &stored, change)?);
        let request = Request { operations, preconditions, idempotency_key: None };
        match self.inner.write_path.write_unjudged(request, deadline).await {
            Ok(written) => Ok(Some(written.revision)),
            Err(write_path::Error::PreconditionFailed { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Inner {
    /// The registry with every change acknowledged so far, by any node.
    async fn current(self: &Arc<Self>, deadline: Instant) -> Result<(Known, History), Error> {
        self.write_path.catch_up(deadline.min(Instant::now() + WRITE_DEADLINE)).await?;
        self.snapshot().await
    }

    /// The registry with every change acknowledged so far if that can be had promptly, else as this node has it.
    async fn fresh_if_prompt(self: &Arc<Self>) -> Result<Known, Error> {
        self.catch_up_if_prompt().await;
        Ok(self.snapshot().await?.0)
    }

    async fn catch_up_if_prompt(&self) {
        if let Err(error) = self.write_path.catch_up(Instant::now() + PROMPT_READ_DEADLINE).await {
            tracing::debug!(%error, "the registry is read as it is here");
        }
    }

    /// The pieces of versions that this node has.
    async fn stored(&self, known: &Known, history: &History) -> Result<Stored, Error> {
        let (data, named) = (self.data.clone(), known.digests().into_iter().chain(history.digests()).collect());
        tokio::task::spawn_blocking(move || Stored::read(&data, &named)).await.map_err(|_| Error::Stopping)?
    }

    /// Reads the whole registry, without the bytes of plugins.
    async fn snapshot(self: &Arc<Self>) -> Result<(Known, History), Error> {
        let data = self.data.clone();
        let read = move || Ok((Known::read(&data)?, History::read(&data)?));
        tokio::task::spawn_blocking(read).await.map_err(|_| Error::Stopping)?
    }

    /// Compiles an upload, which has its room for as long as that takes, even if nobody waits for it any more.
    async fn compile(
        self: &Arc<Self>,
        name: &str,
        bytes: Bytes,
        room: OwnedSemaphorePermit,
    ) -> Result<(Arc<Plugin>, OwnedSemaphorePermit), Error> {
        let (inner, name) = (self.clone(), name.to_owned());
        let compile = move || Ok((inner.compile_blocking(&name, &bytes)?, room));
        tokio::task::spawn_blocking(compile).await.map_err(|_| Error::Stopping)?
    }

    fn compile_blocking(&self, name: &str, bytes: &[u8]) -> Result<Arc<Plugin>, Error> {
        let version = (name.to_owned(), hooks::digest(bytes));
        if let Some(plugin) = self.lock_compiled().get(&version) {
            return Ok(plugin.clone());
        }
        let plugin = Arc::new(self.runtime.compile(name, bytes)?);
        self.lock_compiled().insert(version, plugin.clone());
        Ok(plugin)
    }

    /// The compiled version of a plugin, from memory or from the registry.
    async fn plugin_of(self: &Arc<Self>, name: &str, digest: &str) -> Result<Arc<Plugin>, Error> {
        let (inner, name, digest) = (self.clone(), name.to_owned(), digest.to_owned());
        tokio::task::spawn_blocking(move || inner.plugin_of_blocking(&name, &digest))
            .await
            .map_err(|_| Error::Stopping)?
    }

    fn plugin_of_blocking(&self, name: &str, digest: &str) -> Result<Arc<Plugin>, Error> {
        if let Some(plugin) = self.lock_compiled().get(&(name.to_owned(), digest.to_owned())) {
            return Ok(plugin.clone());
        }
        if let Some(plugin) = self.runtime.compiled_before(name, digest) {
            let plugin = Arc::new(plugin);
            self.lock_compiled().insert((name.to_owned(), digest.to_owned()), plugin.clone());
            return Ok(plugin);
        }
        self.compile_blocking(name, &self.component(name, digest)?)
    }

    /// The bytes of a version.
    fn component(&self, name: &str, digest: &str) -> Result<Bytes, Error> {
        let component = components::read(&self.data, digest)?.filter(|component| hooks::digest(component) == digest);
        let missing = || hooks::Error::PluginMissing { plugin: name.to_owned(), digest: Some(digest.to_owned()) };
        component.ok_or_else(|| missing().into())
    }

    async fn check_bind(self: &Arc<Self>, name: &str, binding: Binding, plugin: Arc<Plugin>) -> Result<(), Error> {
        let (inner, name) = (self.clone(), name.to_owned());
        tokio::task::spawn_blocking(move || inner.runtime.bind(&name, binding, &plugin).map(drop))
            .await
            .map_err(|_| Error::Stopping)?
            .map_err(Error::from)
    }

    fn lock_compiled(&self) -> std::sync::MutexGuard<'_, Compiled> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Builds the set of hooks of the newest epoch, unless it is in force already.
    fn refresh(&self) -> Result<(), Error> {
        loop {
            let epoch = self.data.hook_epoch();
            if self.pipeline.active().current().epoch() == epoch {
                return Ok(());
            }
            let known = Known::read(&self.data)?;
            // What was read must be what the epoch stands for.
            if self.data.hook_epoch() != epoch {
                continue;
            }
            let current = self.pipeline.active().current();
            let mut set = Vec::with_capacity(known.hooks.len());
            for hook in known.hooks.into_values() {
                // A hook that has not changed stays pre-initialized, and keeps its share of the node.
                let same = |old: &&Hook| old.name() == hook.name && *old.binding() == hook.binding;
                if let Some(old) = current.hooks().iter().find(same) {
                    set.push(old.clone());
                    continue;
                }
                let plugin = self.plugin_of_blocking(&hook.binding.plugin, hook.binding.digest())?;
                set.push(self.runtime.load(&hook.name, hook.binding, &plugin)?);
            }
            tracing::info!(epoch, hooks = set.len(), "hooks in force");
            self.pipeline.active().replace(hooks::Set::new(epoch, set));
        }
    }

    /// Pre-initializes the hooks in force, until others come into force.
    fn pre_initialize(&self) -> Result<(), Error> {
        let set = self.pipeline.active().current();
        for hook in set.hooks().iter().filter(|hook| hook.pre_initialized().is_none()) {
            if self.data.hook_epoch() != set.epoch() {
                return Ok(());
            }
            let began = Instant::now();
            let component = self.component(hook.plugin().name(), hook.plugin().digest())?;
            self.runtime.pre_initialize(hook, &component);
            let (name, plugin, ms) = (hook.name(), hook.plugin().name(), began.elapsed().as_millis());
            match hook.pre_initialized() {
                Some(Err(reason)) => {
                    tracing::info!(hook = name, plugin, reason, "the plugin is configured before each call")
                }
                _ => tracing::info!(hook = name, plugin, ms, "the plugin is pre-initialized"),
            }
        }
        if self.data.hook_epoch() != set.epoch() || self.started.elapsed() < KEEP_ALL_COMPILED {
            return Ok(());
        }
        // What a hook may be rolled back to stays compiled.
        let versions = Known::read(&self.data)?.digests().into_iter().chain(History::read(&self.data)?.digests());
        self.runtime.keep_compiled(versions, set.hooks());
        Ok(())
    }

    /// Compiles what was uploaded and is not compiled yet, and forgets what is gone.
    fn compile_ahead(&self) -> Result<(), Error> {
        let revision = self.data.revision();
        let known = Known::read(&self.data)?;
        let needed = known.versions();
        self.lock_compiled().retain(|version, _| needed.contains(version));
        for (name, digest) in needed {
            self.plugin_of_blocking(&name, &digest)?;
        }
        // Hooks that came with a later epoch are for the next look.
        if self.pipeline.active().current().epoch() == self.data.hook_epoch() {
            self.replication.set_prepared(revision);
        }
        Ok(())
    }
}

/// Puts hooks in force as the log is applied.
async fn follow(inner: Arc<Inner>, mut applied: watch::Receiver<u64>) {
    let mut stopped = inner.stopped.subscribe();
    loop {
        let mut rest = None;
        if inner.data.hook_epoch() != inner.pipeline.active().current().epoch() {
            rest = run(&inner, Inner::refresh, "the hooks could not be put in force; writes wait").await;
        }
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return,
            changed = applied.changed() => if changed.is_err() { return },
            () = sleep(rest) => {}
        }
    }
}

/// Compiles what will be needed, beside the way of hooks into force: this may take long, and that must not.
async fn compile_ahead(inner: Arc<Inner>, mut applied: watch::Receiver<u64>) {
    let mut stopped = inner.stopped.subscribe();
    let mut in_force = inner.pipeline.active().subscribe();
    loop {
        applied.mark_unchanged();
        in_force.mark_unchanged();
        let rest = run(&inner, Inner::compile_ahead, "a plugin could not be compiled ahead").await;
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return,
            () = tokio::time::sleep(COMPILE_AHEAD_INTERVAL) => {}
        }
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return,
            changed = applied.changed() => if changed.is_err() { return },
            changed = in_force.changed() => if changed.is_err() { return },
            () = sleep(rest) => {}
        }
    }
}

/// Pre-initializes the hooks in force, which takes longest, and nothing waits for it.
async fn pre_initialize(inner: Arc<Inner>) {
    let mut stopped = inner.stopped.subscribe();
    let mut in_force = inner.pipeline.active().subscribe();
    loop {
        in_force.mark_unchanged();
        let rest = run(&inner, Inner::pre_initialize, "a hook could not be pre-initialized").await;
        tokio::select! {
            _ = stopped.wait_for(|stopped| *stopped) => return,
            changed = in_force.changed() => if changed.is_err() { return },
            () = sleep(rest) => {}
        }
    }
}

/// Runs a step on a blocking thread. If it fails, says so and returns how long to rest before the next try.
async fn run(inner: &Arc<Inner>, step: fn(&Inner) -> Result<(), Error>, failure: &str) -> Option<Duration> {
    let inner = inner.clone();
    match tokio::task::spawn_blocking(move || step(&inner)).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => {
            tracing::error!(%error, "{failure}");
            Some(RETRY_INTERVAL)
        }
        Err(error) => {
            tracing::error!(%error, "{failure}");
            Some(RETRY_INTERVAL)
        }
    }
}

async fn sleep(rest: Option<Duration>) {
    match rest {
        Some(rest) => tokio::time::sleep(rest).await,
        None => std::future::pending().await,
    }
}
