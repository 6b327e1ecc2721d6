//! The runtime that compiles plugins; hooks, which are plugins bound to the writes they judge; and who learns of their calls.

use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::binding::{Binding, check_name, invalid};
use super::error::Error;
use super::scheduler::Share;
use super::view::Reads;
use crate::sandbox::wit::Level;
use crate::sandbox::{
    self, CallLimits, CompileOptions, Compilers, ConfiguredPlugin, Engine, LogSink, LogSource, one_line,
};

/// A compiled plugin. Cheap to clone.
pub type Plugin = sandbox::Plugin<Reads>;

/// Compiles plugins, and makes hooks of them. Cheap to clone; its engine stops with the last clone and hook.
#[derive(Clone)]
pub struct Runtime {
    engine: Arc<Engine>,
    observer: Arc<dyn Observer>,
}

/// A hook that is ready to judge: a binding, and its plugin with its configuration. Cheap to clone.
#[derive(Clone)]
pub struct Hook(Arc<Inner>);

struct Inner {
    binding: Binding,
    configured: ConfiguredPlugin<Reads>,
    share: Share,
    observer: Arc<dyn Observer>,
    /// What learns of its calls; empty before the first.
    calls: OnceLock<Calls>,
}

/// Learns of the calls of hooks, and receives what plugins log. `()` does neither.
pub trait Observer: LogSink {
    /// What learns of the calls of a hook from now on. Asked once per hook, because finding counters takes longer than counting.
    fn calls_of(&self, hook: &str, plugin: &str) -> Calls;
}

/// Learns of the calls of one hook, on the thread that calls the plugin, in the span of the request; must not block.
///
/// It is given how long a call took, its result (`accepted`, or the [`Error::word`] of its error), and the linear memory of
/// the instance, in bytes.
pub type Calls = Box<dyn Fn(Duration, &'static str, usize) + Send + Sync>;

impl Observer for () {
    fn calls_of(&self, _: &str, _: &str) -> Calls {
        Box::new(|_, _, _| ())
    }
}

impl Runtime {
    /// Sets up the engine (see [`Engine::new`]). Fails with [`Error::Engine`] if the machine cannot run it.
    pub fn new(observer: Arc<dyn Observer>, compilers: Compilers, cache_dir: Option<&Path>) -> Result<Self, Error> {
        let engine = Engine::new(observer.clone(), compilers, cache_dir)?;
        Ok(Self { engine: Arc::new(engine), observer })
    }

    /// The same without a folder, compiling in this process, and with a new instance for each call, to compare with.
    pub fn without_resets(observer: Arc<dyn Observer>) -> Result<Self, Error> {
        let engine = Engine::new(observer.clone(), Compilers::Here, None)?.without_resets();
        Ok(Self { engine: Arc::new(engine), observer })
    }

    /// Compiles a component and checks that it is a plugin (see [`sandbox::Plugin::compile`]). [`Error::Failed`] says what is
    /// wrong with the bytes, or why they were not compiled.
    pub fn compile(&self, name: &str, bytes: &[u8], options: &CompileOptions) -> Result<Plugin, Error> {
        Plugin::compile(&self.engine, name, bytes, options).map_err(|failure| Error::Failed {
            hook: String::new(),
            plugin: name.to_owned(),
            failure,
        })
    }

    /// The plugin with this digest, if this node compiled it before and still has it in its cache.
    pub fn compiled_before(&self, name: &str, digest: &str) -> Option<Plugin> {
        Plugin::from_cache(&self.engine, name, digest)
    }

    /// Creates a hook for a client: checks the binding, and lets the plugin check its configuration in a new instance (see
    /// [`ConfiguredPlugin::check_config`]): call it on a blocking thread.
    ///
    /// # Errors
    ///
    /// [`Error::BindingInvalid`], [`Error::PluginMissing`] if the binding names another plugin or digest than the one
    /// given, [`Error::Failed`] if the plugin refuses the configuration or fails.
    pub fn bind(&self, name: &str, binding: Binding, plugin: &Plugin) -> Result<Hook, Error> {
        let hook = self.load(name, binding, plugin)?;
        let took_ms = hook.check_config().map_err(|failure| hook.failed(failure))?.as_millis();
        let deadline_ms = hook.binding().deadline_ms;
        if took_ms > u128::from(deadline_ms) {
            let found = format!("{deadline_ms}, but `configure`, which precedes every call, took {took_ms} ms");
            return Err(invalid("deadline_ms", found, format!("more than {took_ms}")));
        }
        Ok(hook)
    }

    /// Creates a hook of a binding that was accepted before, on this node or another, without running the plugin. Fails with
    /// [`Error::BindingInvalid`] or [`Error::PluginMissing`], as [`Runtime::bind`] does.
    pub fn load(&self, name: &str, mut binding: Binding, plugin: &Plugin) -> Result<Hook, Error> {
        check_name("hook", name)?;
        binding.check()?;
        let is_same = binding.digest.as_deref().is_none_or(|digest| digest == plugin.digest());
        if binding.plugin != plugin.name() || !is_same {
            return Err(Error::PluginMissing { plugin: binding.plugin, digest: binding.digest });
        }
        binding.digest = Some(plugin.digest().to_owned());
        let limits = CallLimits {
            deadline: Duration::from_millis(binding.deadline_ms),
            memory_bytes: binding.memory_bytes,
            output_bytes: binding.output_bytes,
            is_provisional: false,
        };
        let (engine, config) = (Arc::clone(&self.engine), binding.config_text());
        Ok(Hook(Arc::new(Inner {
            share: Share::new(Arc::clone(&engine.background)),
            configured: ConfiguredPlugin::new(engine, plugin.clone(), name, config, limits),
            binding,
            observer: Arc::clone(&self.observer),
            calls: OnceLock::new(),
        })))
    }

    /// Removes all stored compiled code, except that of these plugin versions, by digest, and of these pre-initialized hooks.
    pub fn keep_compiled<'a>(
        &self,
        versions: impl IntoIterator<Item = String>,
        hooks: impl IntoIterator<Item = &'a Hook>,
    ) {
        let hooks = hooks.into_iter().map(|hook| hook.cache_key());
        self.engine.retain_compiled(&versions.into_iter().chain(hooks).collect());
    }
}

impl Hook {
    /// The hook's name.
    pub fn name(&self) -> &str {
        &self.source.hook
    }

    /// The binding, in its stored form: the digest is always present.
    pub fn binding(&self) -> &Binding {
        &self.0.binding
    }

    pub(super) fn share(&self) -> &Share {
        &self.0.share
    }

    pub(super) fn calls(&self) -> &Calls {
        self.0.calls.get_or_init(|| self.0.observer.calls_of(self.name(), self.plugin().name()))
    }

    pub(super) fn log_error(&self, error: &Error) {
        self.source.log(&*self.0.observer, Level::Error, one_line(&error.to_string()));
    }

    /// The error of a failure of its plugin.
    pub(crate) fn failed(&self, failure: sandbox::Error) -> Error {
        let LogSource { hook, plugin, .. } = &self.source;
        Error::Failed { hook: hook.clone(), plugin: plugin.clone(), failure }
    }
}

impl Deref for Hook {
    type Target = ConfiguredPlugin<Reads>;

    fn deref(&self) -> &Self::Target {
        &self.0.configured
    }
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook").field("name", &self.name()).field("plugin", self.plugin()).finish_non_exhaustive()
    }
}
