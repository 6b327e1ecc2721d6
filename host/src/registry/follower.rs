//! Following the registry: this node prepares what the registry names, in three tasks.
//!
//! | task | does | what waits for it |
//! |---|---|---|
//! | put in force | builds the set of hooks of the newest epoch | writes on this node |
//! | prepare | pre-initializes hooks before they are in force, compiles every version | the acknowledgement of a deployment |
//! | pre-initialize | pre-initializes the hooks in force that were not prepared in time | nothing |
//!
//! They are separate because each takes longer than the one before, and must not delay it. The first has compilers that serve,
//! since writes wait for them; those of the others have a low priority.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::OptionFuture;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::catalog::Catalog;
use super::components;
use super::error::Error;
use super::history::History;
use super::preparation::{self, Preparation};
use crate::hooks::{self, Active, Binding, CompileOptions, Hook, Plugin, Priority, Runtime};
use crate::replication;
use crate::storage::Data;

/// Pause between two runs of the task that prepares.
const PREPARE_INTERVAL: Duration = Duration::from_millis(200);

/// Pause before a step that failed is tried again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// After a start, this node keeps all compiled code for so long: entries it has not applied yet may need it.
const KEEP_ALL_COMPILED: Duration = Duration::from_secs(60);

pub(super) struct Follower {
    pub(super) plugins: CompiledPlugins,
    pub(super) active: Active,
    pub(super) replication: replication::Handle,
    pub(super) data: Data,
    pub(super) started: Instant,
    /// Hooks that are prepared and not in force yet. Never locked while a plugin compiles.
    pub(super) prepared: Mutex<Vec<Prepared>>,
    /// Ends all compilers.
    pub(super) compiling: CancellationToken,
    /// Ends the tasks. A step that runs ends first.
    pub(super) stop: CancellationToken,
}

/// What became of the preparation of a hook.
pub(super) struct Prepared {
    name: String,
    binding: Binding,
    /// None if it cannot be prepared, for instance because its plugin was removed meanwhile.
    hook: Option<Hook>,
}

impl Prepared {
    fn is_of(&self, name: &str, binding: &Binding) -> bool {
        self.name == name && self.binding == *binding
    }
}

impl Follower {
    pub(super) fn start(self: &Arc<Self>, tasks: &TaskTracker) {
        tasks.spawn(self.clone().keep_in_force());
        tasks.spawn(self.clone().keep_prepared());
        tasks.spawn(self.clone().keep_pre_initialized());
    }

    async fn keep_in_force(self: Arc<Self>) {
        let mut applied = self.replication.applied();
        loop {
            let mut pause = None;
            if self.data.hook_epoch() != self.active.current().epoch() {
                pause = self.run(Self::put_in_force, "the hooks could not be put in force; writes wait").await;
            }
            if !self.wait(applied.changed(), pause).await {
                return;
            }
        }
    }

    async fn keep_prepared(self: Arc<Self>) {
        let (mut applied, mut in_force) = (self.replication.applied(), self.active.subscribe());
        loop {
            applied.mark_unchanged();
            in_force.mark_unchanged();
            let pause = self.run(Self::prepare, "plugins and hooks could not be prepared").await;
            if self.stop.run_until_cancelled(sleep(PREPARE_INTERVAL)).await.is_none() {
                return;
            }
            let changed = async {
                tokio::select! {
                    changed = applied.changed() => changed,
                    changed = in_force.changed() => changed,
                }
            };
            if !self.wait(changed, pause).await {
                return;
            }
        }
    }

    async fn keep_pre_initialized(self: Arc<Self>) {
        let mut in_force = self.active.subscribe();
        loop {
            in_force.mark_unchanged();
            let pause = self.run(Self::pre_initialize, "a plugin could not be pre-initialized").await;
            if !self.wait(in_force.changed(), pause).await {
                return;
            }
        }
    }

    /// Waits for a change, or for the end of the pause after a failed step. False: the node stops.
    async fn wait(
        &self,
        changed: impl Future<Output = Result<(), watch::error::RecvError>>,
        pause: Option<Duration>,
    ) -> bool {
        let next = async {
            tokio::select! {
                changed = changed => changed.is_ok(),
                Some(()) = OptionFuture::from(pause.map(sleep)) => true,
            }
        };
        self.stop.run_until_cancelled(next).await.unwrap_or(false)
    }

    /// Runs a step on a blocking thread. If it fails, logs that and returns the pause before the next attempt.
    async fn run(self: &Arc<Self>, step: fn(&Self) -> Result<(), Error>, failure: &'static str) -> Option<Duration> {
        let follower = self.clone();
        let error: Box<dyn std::error::Error> = match spawn_blocking(move || step(&follower)).await {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => error.into(),
            Err(error) => error.into(),
        };
        if !self.compiling.is_cancelled() {
            tracing::error!(%error, "{failure}");
        }
        Some(RETRY_PAUSE)
    }

    /// Builds the set of hooks of the newest epoch, unless it is in force.
    fn put_in_force(&self) -> Result<(), Error> {
        loop {
            let epoch = self.data.hook_epoch();
            let current = self.active.current();
            if current.epoch() == epoch {
                return Ok(());
            }
            let catalog = Catalog::read(&self.data)?;
            // The catalog must be that of the epoch.
            if self.data.hook_epoch() != epoch {
                continue;
            }
            let mut hooks = Vec::with_capacity(catalog.hooks.len());
            for hook in catalog.hooks.into_values() {
                // An unchanged hook stays as it is, pre-initialized, and with its share of the node.
                match self.find(current.hooks(), &hook.name, &hook.binding) {
                    Some(known) => hooks.push(known),
                    None => {
                        let options = self.compile_options(Priority::Serving);
                        let plugin = self.plugins.get(&hook.binding.plugin, hook.binding.digest(), &options)?;
                        let hook = self.plugins.runtime.load(&hook.name, hook.binding, &plugin)?;
                        // It is there if this node was restarted.
                        hook.pre_initialize_from_cache();
                        hooks.push(hook);
                    }
                }
            }
            tracing::info!(epoch, hooks = hooks.len(), "hooks in force");
            self.active.replace(hooks::Set::new(epoch, hooks));
        }
    }

    /// The hook with this binding, in force or prepared.
    fn find(&self, in_force: &[Hook], name: &str, binding: &Binding) -> Option<Hook> {
        let is_same = |hook: &&Hook| hook.name() == name && hook.binding() == binding;
        let prepared = || self.prepared.lock().iter().find(|prepared| prepared.is_of(name, binding))?.hook.clone();
        in_force.iter().find(is_same).cloned().or_else(prepared)
    }

    fn compile_options(&self, priority: Priority) -> CompileOptions {
        CompileOptions { priority, cancelled: self.compiling.clone() }
    }

    /// Prepares hooks, compiles the versions that the registry names, drops all others, and tells the other nodes.
    fn prepare(&self) -> Result<(), Error> {
        let revision = self.data.revision();
        let versions = Catalog::read(&self.data)?.versions();
        self.plugins.by_version.lock().retain(|version, _| versions.contains(version));
        self.plugins.unusable.lock().retain(|version| versions.contains(version));
        // First, since they are urgent: a rollback may be among them.
        self.prepare_hooks()?;
        for (name, digest) in versions {
            if self.stop.is_cancelled() {
                return Ok(());
            }
            self.prepare_version(name, digest)?;
        }
        // Hooks of a later epoch are left to the next run.
        if self.active.current().epoch() == self.data.hook_epoch() {
            self.replication.set_prepared(revision);
        }
        Ok(())
    }

    /// Compiles a version. One that cannot be compiled here holds up nothing else: it is tried again after a restart, and when a
    /// hook needs it.
    fn prepare_version(&self, name: String, digest: String) -> Result<(), Error> {
        let version = (name, digest);
        if self.plugins.unusable.lock().contains(&version) {
            return Ok(());
        }
        match self.plugins.get(&version.0, &version.1, &self.compile_options(Priority::Deploying)) {
            Ok(_) => Ok(()),
            Err(Error::Hook(hooks::Error::Failed { failure, .. })) if !failure.may_pass() => {
                let (plugin, digest) = (&version.0, &version.1);
                tracing::error!(plugin, digest, error = %failure, "a plugin that another node accepted cannot be compiled here");
                self.plugins.unusable.lock().insert(version);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Pre-initializes the hooks that are about to be in force.
    fn prepare_hooks(&self) -> Result<(), Error> {
        let (wanted, _) = preparation::read(&self.data)?;
        // A hook that was just put in force is still needed until this node has done so.
        let is_in_force = self.active.current().epoch() == self.data.hook_epoch();
        let is_wanted = |known: &Prepared| preparation::revision_of(&wanted, &known.name, &known.binding).is_some();
        self.prepared.lock().retain(|known| !is_in_force || is_wanted(known));
        for Preparation { name, binding, .. } in wanted {
            let is_known = self.prepared.lock().iter().any(|known| known.is_of(&name, &binding));
            if is_known {
                continue;
            }
            if self.stop.is_cancelled() {
                return Err(Error::Stopping);
            }
            let hook = match self.prepare_hook(&name, &binding) {
                Ok(hook) => Some(hook),
                Err(Error::Hook(hooks::Error::Failed { failure, .. })) if failure.may_pass() => {
                    return Err(hooks::Error::Failed { hook: name, plugin: binding.plugin, failure }.into());
                }
                // Nothing waits for it in vain: it is in force without, or whoever puts it in force meets the same error.
                Err(error) => {
                    tracing::warn!(hook = name, %error, "a hook cannot be prepared");
                    None
                }
            };
            self.prepared.lock().push(Prepared { name, binding, hook });
        }
        Ok(())
    }

    fn prepare_hook(&self, name: &str, binding: &Binding) -> Result<Hook, Error> {
        let options = self.compile_options(Priority::Deploying);
        let plugin = self.plugins.get(&binding.plugin, binding.digest(), &options)?;
        let hook = self.plugins.runtime.load(name, binding.clone(), &plugin)?;
        self.pre_initialize_one(&hook)?;
        Ok(hook)
    }

    /// Pre-initializes a hook. The hook keeps the result, also if it cannot be pre-initialized.
    fn pre_initialize_one(&self, hook: &Hook) -> Result<(), Error> {
        let began = Instant::now();
        let (name, plugin) = (hook.name(), hook.plugin().name());
        let component = self.plugins.component(plugin, hook.plugin().digest())?;
        hook.pre_initialize(&component, &self.compile_options(Priority::Deploying))
            .map_err(|failure| hook.failed(failure))?;
        let ms = began.elapsed().as_millis();
        match hook.pre_initialized() {
            Some(Err(reason)) => {
                tracing::info!(hook = name, plugin, reason, "the plugin is configured before each call")
            }
            _ => tracing::info!(hook = name, plugin, ms, "the plugin is pre-initialized"),
        }
        Ok(())
    }

    /// Pre-initializes the plugins of the hooks in force, until another set is in force, and removes compiled code that
    /// nothing names.
    fn pre_initialize(&self) -> Result<(), Error> {
        let set = self.active.current();
        for hook in set.hooks().iter().filter(|hook| hook.pre_initialized().is_none()) {
            if self.data.hook_epoch() != set.epoch() || self.stop.is_cancelled() {
                return Ok(());
            }
            self.pre_initialize_one(hook)?;
        }
        if self.data.hook_epoch() != set.epoch() || self.started.elapsed() < KEEP_ALL_COMPILED {
            return Ok(());
        }
        // Versions that a hook can be rolled back to stay compiled.
        let digests = Catalog::read(&self.data)?.digests().into_iter().chain(History::read(&self.data)?.digests());
        let prepared: Vec<Hook> = self.prepared.lock().iter().filter_map(|prepared| prepared.hook.clone()).collect();
        self.plugins.runtime.keep_compiled(digests, set.hooks().iter().chain(&prepared));
        Ok(())
    }
}

/// The name of a plugin, and the digest of the version.
type Version = (String, String);

/// The compiled versions of plugins on this node: in memory, from the cache on disk, or compiled from the registry.
///
/// Its methods may compile a plugin, which takes up to minutes: call them on blocking threads.
pub(super) struct CompiledPlugins {
    pub(super) runtime: Runtime,
    pub(super) data: Data,
    /// Never locked while a plugin compiles: two threads may load the same version, and the later one replaces it.
    pub(super) by_version: Mutex<HashMap<Version, Arc<Plugin>>>,
    /// Versions that could not be compiled here.
    pub(super) unusable: Mutex<HashSet<Version>>,
}

impl CompiledPlugins {
    /// The compiled form of a version in the registry. [`hooks::Error::PluginMissing`] if the registry does not have all
    /// its bytes.
    pub(super) fn get(&self, name: &str, digest: &str, options: &CompileOptions) -> Result<Arc<Plugin>, Error> {
        let version = (name.to_owned(), digest.to_owned());
        if let Some(plugin) = self.in_memory(&version) {
            return Ok(plugin);
        }
        if let Some(plugin) = self.runtime.compiled_before(name, digest) {
            return Ok(self.keep(version, plugin));
        }
        self.compile(name, &self.component(name, digest)?, options)
    }

    /// Compiles the bytes of a plugin, unless that was done before.
    pub(super) fn compile(&self, name: &str, bytes: &[u8], options: &CompileOptions) -> Result<Arc<Plugin>, Error> {
        let version = (name.to_owned(), hooks::digest(bytes));
        if let Some(plugin) = self.in_memory(&version) {
            return Ok(plugin);
        }
        Ok(self.keep(version, self.runtime.compile(name, bytes, options)?))
    }

    /// The bytes of a version, checked against its digest.
    fn component(&self, name: &str, digest: &str) -> Result<Bytes, Error> {
        let component = components::read(&self.data, digest)?.filter(|component| hooks::digest(component) == digest);
        let missing = || hooks::Error::PluginMissing { plugin: name.to_owned(), digest: Some(digest.to_owned()) };
        component.ok_or_else(|| missing().into())
    }

    fn in_memory(&self, version: &Version) -> Option<Arc<Plugin>> {
        self.by_version.lock().get(version).cloned()
    }

    fn keep(&self, version: Version, plugin: Plugin) -> Arc<Plugin> {
        let plugin = Arc::new(plugin);
        self.by_version.lock().insert(version, plugin.clone());
        plugin
    }
}
