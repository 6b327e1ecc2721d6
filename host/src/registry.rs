//! Plugins and hooks as part of the replicated state.
//!
//! Three kinds of keys in the system space: `plugins/<name>` names a plugin's current version, `components/<digest>`
//! holds a version's bytes, `hooks/<name>` says what runs where. They travel through the log like any write, so every
//! node has the same hooks at the same log index. A change of a hook changes the hook epoch, and no write judged under
//! an older epoch commits; so a hook is in force everywhere as soon as its creation is acknowledged (P6).
//!
//! Every node compiles what it finds in the registry in the background, as soon as it is uploaded, and tells the others
//! how far it is. Once a hook is in force, it also makes the hook's image, with which calls start configured; until then
//! they are configured one by one. A change is acknowledged once every node that can be reached is ready for it, so that no write has to
//! wait for a compiler. Where one does (a node was cut off meanwhile), it waits until that node has built the set of
//! hooks of the newest epoch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::hooks::{self, Binding, Hook, Pipeline, Plugin, Runtime};
use crate::limits::{
    HOOKS_MAX, PAGE_ENTRIES_MAX, PLUGIN_LIST_MAX, PREPARE_DEADLINE, PROMPT_READ_DEADLINE, REGISTRY_DEADLINE,
    WRITE_DEADLINE,
};
use crate::replication;
use crate::storage::{
    self, Action, AskedBy, Data, Entry, Fact, HOOKS_PREFIX, Operation, PLUGINS_PREFIX, Precondition, RangeQuery, Space,
    Value,
};
use crate::write_path::{self, Request, WritePath};

/// Keys of the system space under this prefix are the bytes of plugin versions: `components/<digest>`.
const COMPONENTS_PREFIX: &str = "components/";

/// How often a change of the registry is tried again when others change it at the same time.
const ATTEMPTS_MAX: usize = 4;

/// How long the registry rests between looks for plugins to compile ahead.
const COMPILE_AHEAD_INTERVAL: Duration = Duration::from_millis(200);

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
    /// There are as many hooks as there may be.
    #[error("there are {HOOKS_MAX} hooks, and no more are allowed")]
    TooManyHooks,
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
        let inner =
            Arc::new(Inner { runtime, pipeline, write_path, replication, data, compiled: Mutex::default(), stopped });
        tokio::spawn(follow(inner.clone(), applied.clone()));
        tokio::spawn(compile_ahead(inner.clone(), applied));
        tokio::spawn(specialise(inner.clone()));
        Self { inner }
    }

    /// Whether the hooks of the newest epoch this node knows are in force here; until then its writes wait.
    pub fn is_ready(&self) -> bool {
        self.inner.pipeline.active().current().epoch() >= self.inner.data.hook_epoch()
    }

    /// Stops following.
    pub fn stop(&self) {
        self.inner.stopped.send_replace(true);
    }

    /// Uploads a plugin, or a new version of it. Hooks keep the version they were bound to.
    ///
    /// # Errors
    ///
    /// If the bytes are not a plugin, or the upload was not committed; nothing is stored then.
    pub async fn put_plugin(&self, name: &str, bytes: Bytes) -> Result<PluginInfo, Error> {
        hooks::check_name("name", name)?;
        let deadline = Instant::now() + REGISTRY_DEADLINE;
        let plugin = self.inner.compile(name, bytes.clone()).await?;
        for _ in 0..ATTEMPTS_MAX {
            let known = self.inner.current(deadline).await?;
            if let Some(info) = known.plugins.get(name).filter(|info| info.digest == plugin.digest()) {
                return Ok(info.clone());
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
            let component = Value { content_type: "application/wasm".to_owned(), bytes: bytes.clone() };
            let mut operations = vec![
                put(format!("{COMPONENTS_PREFIX}{}", info.digest), component),
                put(format!("{PLUGINS_PREFIX}{name}"), json(&info, name)?),
            ];
            operations.extend(known.unused_version_of(name, &info.digest));
            match self.change(operations, known.unchanged(), deadline).await? {
                Some(revision) => {
                    self.wait_everywhere(revision).await;
                    return Ok(PluginInfo { revision, ..info });
                }
                None => continue,
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
    pub async fn delete_plugin(&self, name: &str) -> Result<bool, Error> {
        let deadline = Instant::now() + REGISTRY_DEADLINE;
        for _ in 0..ATTEMPTS_MAX {
            let known = self.inner.current(deadline).await?;
            if !known.plugins.contains_key(name) {
                return Ok(false);
            }
            let hooks: Vec<String> = known.hooks_of(name).map(str::to_owned).collect();
            if !hooks.is_empty() {
                return Err(Error::PluginInUse { plugin: name.to_owned(), hooks });
            }
            let mut operations = vec![delete(format!("{PLUGINS_PREFIX}{name}"))];
            operations.extend(known.unused_version_of(name, ""));
            if self.change(operations, known.unchanged(), deadline).await?.is_some() {
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
    pub async fn put_hook(&self, name: &str, binding: Binding) -> Result<HookInfo, Error> {
        hooks::check_name("name", name)?;
        let deadline = Instant::now() + REGISTRY_DEADLINE;
        for _ in 0..ATTEMPTS_MAX {
            let known = self.inner.current(deadline).await?;
            if known.hooks.len() >= HOOKS_MAX && !known.hooks.contains_key(name) {
                return Err(Error::TooManyHooks);
            }
            let binding = known.pinned(binding.clone())?;
            let digest = binding.digest.clone().unwrap_or_default();
            let plugin = self.inner.plugin_of(&binding.plugin, &digest).await?;
            self.inner.check_bind(name, binding.clone(), plugin).await?;
            let operations = vec![put(format!("{HOOKS_PREFIX}{name}"), json(&binding, name)?)];
            if let Some(revision) = self.change(operations, known.unchanged(), deadline).await? {
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

    /// The hooks, by name.
    ///
    /// # Errors
    ///
    /// If the registry cannot be read.
    pub async fn hooks(&self) -> Result<Vec<HookInfo>, Error> {
        Ok(self.inner.fresh_if_prompt().await?.hooks.into_values().collect())
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
    pub async fn delete_hook(&self, name: &str) -> Result<bool, Error> {
        let deadline = Instant::now() + REGISTRY_DEADLINE;
        for _ in 0..ATTEMPTS_MAX {
            let known = self.inner.current(deadline).await?;
            if !known.hooks.contains_key(name) {
                return Ok(false);
            }
            let operations = vec![delete(format!("{HOOKS_PREFIX}{name}"))];
            if self.change(operations, known.unchanged(), deadline).await?.is_some() {
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

    /// Commits a change of the registry; none if somebody else changed it first.
    async fn change(
        &self,
        operations: Vec<Operation>,
        preconditions: Vec<Precondition>,
        deadline: Instant,
    ) -> Result<Option<u64>, Error> {
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
    async fn current(self: &Arc<Self>, deadline: Instant) -> Result<Known, Error> {
        self.write_path.catch_up(deadline.min(Instant::now() + WRITE_DEADLINE)).await?;
        self.snapshot().await
    }

    /// The registry with every change acknowledged so far if that can be had promptly, else as this node has it.
    async fn fresh_if_prompt(self: &Arc<Self>) -> Result<Known, Error> {
        if let Err(error) = self.write_path.catch_up(Instant::now() + PROMPT_READ_DEADLINE).await {
            tracing::debug!(%error, "the registry is read as it is here");
        }
        self.snapshot().await
    }

    /// Reads the whole registry, without the bytes of plugins.
    async fn snapshot(self: &Arc<Self>) -> Result<Known, Error> {
        let data = self.data.clone();
        tokio::task::spawn_blocking(move || Known::read(&data)).await.map_err(|_| Error::Stopping)?
    }

    async fn compile(self: &Arc<Self>, name: &str, bytes: Bytes) -> Result<Arc<Plugin>, Error> {
        let (inner, name) = (self.clone(), name.to_owned());
        tokio::task::spawn_blocking(move || inner.compile_blocking(&name, &bytes)).await.map_err(|_| Error::Stopping)?
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
        let component = self.data.get(Space::System, &format!("{COMPONENTS_PREFIX}{digest}"))?;
        let missing = || hooks::Error::PluginMissing { plugin: name.to_owned(), digest: Some(digest.to_owned()) };
        Ok(component.ok_or_else(missing)?.value.bytes)
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
                // What has not changed keeps its image, and its share of the node.
                let same = |old: &&Hook| old.name() == hook.name && *old.binding() == hook.binding;
                if let Some(old) = current.hooks().iter().find(same) {
                    set.push(old.clone());
                    continue;
                }
                let digest = hook.binding.digest.clone().unwrap_or_default();
                let plugin = self.plugin_of_blocking(&hook.binding.plugin, &digest)?;
                set.push(self.runtime.load(&hook.name, hook.binding, &plugin)?);
            }
            tracing::info!(epoch, hooks = set.len(), "hooks in force");
            self.pipeline.active().replace(hooks::Set::new(epoch, set));
        }
    }

    /// Makes the images of the hooks in force, as long as no others come.
    fn specialise(&self) -> Result<(), Error> {
        let set = self.pipeline.active().current();
        for hook in set.hooks().iter().filter(|hook| hook.is_specialised().is_none()) {
            if self.data.hook_epoch() != set.epoch() {
                return Ok(());
            }
            let began = Instant::now();
            let component = self.component(hook.plugin().name(), hook.plugin().digest())?;
            self.runtime.specialise(hook, &component);
            let (name, plugin, ms) = (hook.name(), hook.plugin().name(), began.elapsed().as_millis());
            match hook.is_specialised() {
                Some(Err(reason)) => {
                    tracing::info!(hook = name, plugin, reason, "the plugin is configured before each call")
                }
                _ => tracing::info!(hook = name, plugin, ms, "the plugin starts configured"),
            }
        }
        let compiled: Vec<Arc<Plugin>> = self.lock_compiled().values().cloned().collect();
        self.runtime.keep_compiled(compiled.iter().map(|plugin| &**plugin), set.hooks());
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

/// Makes the images of hooks that are in force, which takes longest and which nothing waits for.
async fn specialise(inner: Arc<Inner>) {
    let mut stopped = inner.stopped.subscribe();
    let mut in_force = inner.pipeline.active().subscribe();
    loop {
        in_force.mark_unchanged();
        let rest = run(&inner, Inner::specialise, "a hook could not be configured ahead").await;
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

/// The registry as of one look.
struct Known {
    plugins: BTreeMap<String, PluginInfo>,
    hooks: BTreeMap<String, HookInfo>,
    /// What must not have changed for a decision made on this look to be right.
    unchanged: Vec<Precondition>,
}

impl Known {
    fn read(data: &Data) -> Result<Self, Error> {
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
        Ok(Self { plugins, hooks, unchanged: vec![plugins_unchanged, hooks_unchanged] })
    }

    fn unchanged(&self) -> Vec<Precondition> {
        self.unchanged.clone()
    }

    /// The hooks that run a plugin.
    fn hooks_of<'a>(&'a self, plugin: &'a str) -> impl Iterator<Item = &'a str> {
        self.hooks.values().filter(move |hook| hook.binding.plugin == plugin).map(|hook| hook.name.as_str())
    }

    /// The versions that plugins name or hooks run, by name and digest.
    fn versions(&self) -> BTreeSet<(String, String)> {
        let named = self.plugins.values().map(|info| (info.name.clone(), info.digest.clone()));
        let run = self.hooks.values().map(|hook| &hook.binding);
        let run = run.filter_map(|binding| Some((binding.plugin.clone(), binding.digest.clone()?)));
        named.chain(run).collect()
    }

    /// The removal of the bytes of a plugin's current version, if nothing else needs them once it is replaced.
    fn unused_version_of(&self, name: &str, replaced_by: &str) -> Option<Operation> {
        let current = self.plugins.get(name)?;
        let others = self.plugins.values().filter(|info| info.name != name).map(|info| info.digest.as_str());
        let run = self.hooks.values().filter_map(|hook| hook.binding.digest.as_deref());
        let needed: BTreeSet<&str> = others.chain(run).chain(std::iter::once(replaced_by)).collect();
        let unused = !needed.contains(current.digest.as_str());
        unused.then(|| delete(format!("{COMPONENTS_PREFIX}{}", current.digest)))
    }

    /// The binding with the version it runs written out.
    fn pinned(&self, binding: Binding) -> Result<Binding, Error> {
        let missing = || hooks::Error::PluginMissing { plugin: binding.plugin.clone(), digest: binding.digest.clone() };
        let info = self.plugins.get(&binding.plugin).ok_or_else(missing)?;
        let digest = match &binding.digest {
            Some(digest) if !self.versions().contains(&(binding.plugin.clone(), digest.clone())) => {
                return Err(missing().into());
            }
            Some(digest) => digest.clone(),
            None => info.digest.clone(),
        };
        Ok(Binding { digest: Some(digest), ..binding })
    }
}

/// All entries under a prefix, and the precondition that they are still these.
fn read_prefix(data: &Data, prefix: &str) -> Result<(Vec<Entry>, Precondition), Error> {
    let end = format!("{prefix}{}", char::MAX);
    let limit = u32::try_from(PLUGIN_LIST_MAX).unwrap_or(u32::MAX);
    let query = RangeQuery {
        space: Space::System,
        prefix: Some(prefix.to_owned()),
        limit: PAGE_ENTRIES_MAX,
        ..RangeQuery::default()
    };
    let entries = data.scan(&query)?.entries;
    let seen = entries.iter().take(PLUGIN_LIST_MAX).map(|entry| (entry.key.as_str(), entry.meta.revision));
    let fact = Fact::Range { start: prefix.to_owned(), end, limit, digest: storage::RangeDigest::of(seen) };
    Ok((entries, Precondition { asked_by: AskedBy::Client, space: Space::System, fact }))
}

fn name_of(entry: &Entry, prefix: &str) -> String {
    entry.key.strip_prefix(prefix).unwrap_or(&entry.key).to_owned()
}

fn decode<T: serde::de::DeserializeOwned>(entry: &Entry) -> Result<T, Error> {
    serde_json::from_slice(&entry.value.bytes)
        .map_err(|source| Error::Undecodable { key: entry.key.clone(), source: Arc::new(source) })
}

fn json<T: Serialize>(value: &T, name: &str) -> Result<Value, Error> {
    let text = serde_json::to_vec(value)
        .map_err(|source| Error::Undecodable { key: name.to_owned(), source: Arc::new(source) })?;
    Ok(Value::json(text))
}

fn put(key: String, value: Value) -> Operation {
    Operation { space: Space::System, key, action: Action::Put(value) }
}

fn delete(key: String) -> Operation {
    Operation { space: Space::System, key, action: Action::Delete }
}
