//! Compiles plugins and makes hooks of them: the engine of a node, its background threads, and its observer.

use std::path::Path;
use std::sync::Arc;

use rayon::ThreadPool;

use super::binding::{Binding, check_name, invalid};
use super::error::Error;
use super::hook::{Hook, Observer};
use super::view::Reads;
use crate::sandbox::{self, Engine, Tuning, background_instances_max, threads};

/// A compiled plugin. Cheap to clone.
pub type Plugin = sandbox::Plugin<Reads>;

/// Compiles plugins, and makes hooks of them. Cheap to clone; its engine stops with the last clone, plugin and hook.
#[derive(Clone)]
pub struct Runtime {
    engine: Arc<Engine>,
    background: Arc<ThreadPool>,
    observer: Arc<dyn Observer>,
}

impl Runtime {
    /// Sets up the engine (see [`Engine::new`]). Fails with [`Error::Engine`] if the machine cannot run it.
    ///
    /// A node gives a folder for compiled code. Then long computations yield to the threads that serve.
    pub fn new(observer: Arc<dyn Observer>, tuning: Tuning, cache_dir: Option<&Path>) -> Result<Self, Error> {
        let engine = Engine::new(observer.clone(), tuning, cache_dir)?;
        let background = threads::pool("plugin", background_instances_max(), cache_dir.is_some())?;
        Ok(Self { engine: Arc::new(engine), background, observer })
    }

    /// Compiles a component and checks that it is a plugin (see [`sandbox::Plugin::compile`]).
    ///
    /// # Errors
    ///
    /// [`Error::Failed`] says what is wrong with the bytes, or that too many components are being compiled.
    pub fn compile(&self, name: &str, bytes: &[u8]) -> Result<Plugin, Error> {
        Plugin::compile(&self.engine, name, bytes).map_err(|failure| Error::Failed {
            hook: String::new(),
            plugin: name.to_owned(),
            failure,
        })
    }

    /// The plugin with this digest, if this node compiled it before and still has it in its cache.
    pub fn compiled_before(&self, name: &str, digest: &str) -> Option<Plugin> {
        Plugin::from_cache(&self.engine, name, digest)
    }

    /// Creates a hook for a client: checks the binding, and lets the plugin check its configuration in a new instance.
    ///
    /// Runs the plugin, for up to [`PLUGIN_CONFIGURE_DEADLINE`](crate::limits::PLUGIN_CONFIGURE_DEADLINE): call it on a
    /// blocking thread.
    ///
    /// # Errors
    ///
    /// [`Error::BindingInvalid`], [`Error::PluginMissing`] if the binding names another plugin or digest than the one
    /// given, [`Error::Failed`] with the plugin's own words if it refuses the configuration, or how it failed.
    pub fn bind(&self, name: &str, binding: Binding, plugin: &Plugin) -> Result<Hook, Error> {
        let hook = self.load(name, binding, plugin)?;
        let (took_ms, deadline_ms) = (hook.check_config()?.as_millis(), hook.binding().deadline_ms);
        if took_ms > u128::from(deadline_ms) {
            let found = format!("{deadline_ms}, but `configure`, which precedes every call, took {took_ms} ms");
            return Err(invalid("deadline_ms", found, format!("more than {took_ms}")));
        }
        Ok(hook)
    }

    /// Creates a hook of a binding that was accepted before, on this node or another, without running the plugin.
    ///
    /// # Errors
    ///
    /// [`Error::BindingInvalid`] or [`Error::PluginMissing`], as for [`Runtime::bind`].
    pub fn load(&self, name: &str, mut binding: Binding, plugin: &Plugin) -> Result<Hook, Error> {
        check_name("hook", name)?;
        binding.check()?;
        let is_same = binding.digest.as_deref().is_none_or(|digest| digest == plugin.digest());
        if binding.plugin != plugin.name() || !is_same {
            return Err(Error::PluginMissing { plugin: binding.plugin, digest: binding.digest });
        }
        binding.digest = Some(plugin.digest().to_owned());
        let (engine, background) = (Arc::clone(&self.engine), Arc::clone(&self.background));
        Ok(Hook::new(name, binding, plugin.clone(), engine, background, Arc::clone(&self.observer)))
    }

    /// Removes all stored compiled code, except that of these plugin versions, by digest, and of these pre-initialized hooks.
    pub fn keep_compiled<'a>(
        &self,
        versions: impl IntoIterator<Item = String>,
        hooks: impl IntoIterator<Item = &'a Hook>,
    ) {
        let hooks = hooks.into_iter().map(|hook| hook.configured().cache_key());
        self.engine.retain_compiled(&versions.into_iter().chain(hooks).collect());
    }
}
