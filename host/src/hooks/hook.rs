//! A hook: a binding and the plugin it names, ready to judge; and who learns of its calls.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rayon::ThreadPool;

use super::binding::Binding;
use super::error::Error;
use super::scheduler::Share;
use super::view::Reads;
use crate::sandbox::wit::Level;
use crate::sandbox::{self, CallLimits, ConfiguredPlugin, Engine, LogSink, LogSource, Plugin, one_line};

/// A hook that is ready to judge. Cheap to clone.
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

impl Hook {
    /// A hook of a binding that has been checked and whose digest is present.
    pub(super) fn new(
        name: &str,
        binding: Binding,
        plugin: Plugin<Reads>,
        engine: Arc<Engine>,
        background: Arc<ThreadPool>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let limits = CallLimits {
            deadline: Duration::from_millis(binding.deadline_ms),
            memory_bytes: binding.memory_bytes,
            output_bytes: binding.output_bytes,
            is_provisional: false,
        };
        let configured = ConfiguredPlugin::new(engine, plugin, name, binding.config_text(), limits);
        let share = Share::new(background);
        Self(Arc::new(Inner { binding, configured, share, observer, calls: OnceLock::new() }))
    }

    /// The hook's name.
    pub fn name(&self) -> &str {
        &self.source().hook
    }

    /// The binding, in its stored form: the digest is always present.
    pub fn binding(&self) -> &Binding {
        &self.0.binding
    }

    /// The plugin that judges.
    pub fn plugin(&self) -> &Plugin<Reads> {
        self.configured().plugin()
    }

    /// Pre-initializes the plugin from its component (see [`ConfiguredPlugin::pre_initialize`]).
    pub fn pre_initialize(&self, component: &[u8]) {
        self.configured().pre_initialize(component);
    }

    /// Whether its calls start configured; an error says why they cannot. `None` until that is known.
    pub fn pre_initialized(&self) -> Option<Result<(), &str>> {
        self.configured().pre_initialized()
    }

    /// Number of reset instances that wait for calls. An error says why instances cannot be reset, so that each call starts
    /// a new one.
    ///
    /// It is 0 after a call whose instance was dropped: its memory had grown, or the call wrote to more than 4 MiB of it, or
    /// was given handles of WASI, or failed, or too many other instances wait.
    pub fn waiting(&self) -> Result<usize, &str> {
        self.configured().waiting()
    }

    /// Provides an instance as each call does, without a call: to measure what that costs.
    ///
    /// # Errors
    ///
    /// How the plugin failed.
    pub fn provide_instance(&self) -> Result<(), Error> {
        self.configured().provide_instance(self.limits()).map_err(|failure| self.failed(failure))
    }

    /// Lets the plugin check the configuration, and returns how long that took.
    pub(super) fn check_config(&self) -> Result<Duration, Error> {
        self.configured().check_config().map_err(|failure| self.failed(failure))
    }

    pub(super) fn configured(&self) -> &ConfiguredPlugin<Reads> {
        &self.0.configured
    }

    /// The limits of its calls.
    pub(super) fn limits(&self) -> CallLimits {
        self.configured().limits()
    }

    pub(super) fn share(&self) -> &Share {
        &self.0.share
    }

    /// What learns of its calls.
    pub(super) fn calls(&self) -> &Calls {
        let LogSource { hook, plugin, .. } = self.source();
        self.0.calls.get_or_init(|| self.0.observer.calls_of(hook, plugin))
    }

    /// Writes an error of the plugin to its log.
    pub(super) fn log_error(&self, error: &Error) {
        self.source().log(&*self.0.observer, Level::Error, one_line(&error.to_string()));
    }

    /// The error of a failure of its plugin.
    pub(super) fn failed(&self, failure: sandbox::Error) -> Error {
        let LogSource { hook, plugin, .. } = self.source();
        Error::Failed { hook: hook.clone(), plugin: plugin.clone(), failure }
    }

    fn source(&self) -> &LogSource {
        self.configured().source()
    }
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook").field("name", &self.name()).field("plugin", self.plugin()).finish_non_exhaustive()
    }
}
