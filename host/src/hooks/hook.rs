//! A hook: a binding and the plugin it names, ready to judge.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::binding::{Binding, check_name, invalid};
use super::error::Error;
use super::guest::{Allowance, Guest};
use super::lines::Speaker;
use super::pace::Pace;
use super::plugin::{Code, Plugin};
use super::rewind::Rewinder;
use super::runtime::{Calls, Core, Runtime};
use super::text::cut;
use crate::limits;

/// A hook that is ready to judge. Cheap to clone.
#[derive(Clone)]
pub struct Hook(Arc<Inner>);

struct Inner {
    core: Arc<Core>,
    binding: Binding,
    config: String,
    plugin: Plugin,
    speaker: Speaker,
    seed: u64,
    share: Share,
    /// Who learns of its calls; empty before the first.
    calls: OnceLock<Arc<dyn Calls>>,
    /// The plugin with the configuration in it, or why there is none; empty until it has been tried.
    image: OnceLock<Result<Code, String>>,
}

/// How much of a node's room for plugins one hook takes.
pub(super) struct Share {
    /// All permits there are. What the machine has to run on may change later.
    max: u32,
    /// One permit per running call.
    pub(super) permits: Arc<Semaphore>,
    /// Writes that wait for one.
    pub(super) queue: Arc<Semaphore>,
    /// What its calls have shown.
    pub(super) pace: Pace,
}

/// Calls of one hook that may run at once: half of what the node runs, so that one hook cannot have it all.
pub(super) fn share_max() -> u32 {
    (super::pipeline::instances_max() as u32 / 2).max(1)
}

impl Runtime {
    /// Creates a hook for a client: checks the binding, and has the plugin check its configuration on a fresh instance.
    ///
    /// Runs the plugin, for up to [`limits::PLUGIN_CONFIGURE_DEADLINE`]: call it on a blocking thread.
    ///
    /// # Errors
    ///
    /// [`Error::BindingInvalid`], [`Error::PluginMissing`] if the binding names another plugin or digest than the one
    /// given, [`Error::ConfigRefused`] with the plugin's own words, [`Error::Busy`], or how the plugin failed.
    pub fn bind(&self, name: &str, binding: Binding, plugin: &Plugin) -> Result<Hook, Error> {
        let hook = self.load(name, binding, plugin)?;
        let _room = self.core().side_room()?;
        let allowance = Allowance { deadline: limits::PLUGIN_CONFIGURE_DEADLINE, ..hook.allowance() };
        let took = Guest::with(self.core(), plugin.code(), hook.speaker(), allowance, |guest| {
            let started_at = Instant::now();
            hook.configure(guest).map(|()| started_at.elapsed())
        });
        let (took_ms, deadline_ms) = (took.flatten()?.as_millis(), hook.binding().deadline_ms);
        if took_ms > u128::from(deadline_ms) {
            let found = format!("{deadline_ms}, but `configure`, which precedes every call, took {took_ms} ms");
            return Err(invalid("deadline_ms", found, format!("more than {took_ms}")));
        }
        Ok(hook)
    }

    /// Makes a hook of a binding that was accepted before, on this node or another, without running the plugin.
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
        let config = binding.config_text();
        let inner = Inner {
            core: Arc::clone(self.core()),
            seed: seed(name, plugin, &config),
            config,
            plugin: plugin.clone(),
            speaker: Speaker {
                hook: name.to_owned(),
                plugin: plugin.name().to_owned(),
                digest: plugin.digest().to_owned(),
            },
            share: Share::new(),
            calls: OnceLock::new(),
            image: OnceLock::new(),
            binding,
        };
        Ok(Hook(Arc::new(inner)))
    }
}

impl Hook {
    /// The hook's name.
    pub fn name(&self) -> &str {
        &self.0.speaker.hook
    }

    /// The binding, in its stored form: the digest is always present.
    pub fn binding(&self) -> &Binding {
        &self.0.binding
    }

    /// The plugin that judges.
    pub fn plugin(&self) -> &Plugin {
        &self.0.plugin
    }

    /// Whether its calls start configured; an error says why they cannot. `None` until that is known.
    pub fn is_specialised(&self) -> Option<Result<(), &str>> {
        self.0.image.get().map(|image| image.as_ref().map(drop).map_err(String::as_str))
    }

    /// Starts an instance as each call does, and ends it: to measure what that costs.
    ///
    /// # Errors
    ///
    /// How the plugin failed, or [`Error::Busy`].
    pub fn start_and_end(&self) -> Result<(), Error> {
        self.with_instance(self.allowance(), |_| ())
    }

    /// Keeps what `make` makes, unless it has been made before.
    pub(super) fn specialise(&self, make: impl FnOnce() -> Result<Code, String>) {
        self.0.image.get_or_init(make);
    }

    /// Has `ask` use an instance of its own, which is configured.
    pub(super) fn with_instance<T>(
        &self,
        allowance: Allowance,
        ask: impl FnOnce(&mut Guest<'_>) -> T,
    ) -> Result<T, Error> {
        let Inner { core, speaker, .. } = &*self.0;
        if let Some(Ok(image)) = self.0.image.get() {
            return Guest::with(core, image, speaker, allowance, ask);
        }
        let asked = Guest::with(core, self.0.plugin.code(), speaker, allowance, |guest| {
            self.configure(guest)?;
            Ok(ask(guest))
        });
        asked.flatten()
    }

    /// Instances that were put back to where they began after their calls, and wait for others; an error says why none can
    /// be, so that each call starts a new one.
    ///
    /// None at all after a call: the instance was thrown away, since its memory had grown, or it had written to more than 4 MiB
    /// of it, or was given handles of WASI, or the call failed, or too many others wait.
    pub fn waiting(&self) -> Result<usize, &str> {
        match self.0.image.get() {
            Some(Ok(image)) => image.rewinder.as_ref().map(Rewinder::waiting).map_err(String::as_str),
            Some(Err(why)) => Err(why),
            None => Err("it has no image yet"),
        }
    }

    pub(super) fn config(&self) -> &str {
        &self.0.config
    }

    pub(super) fn core(&self) -> &Arc<Core> {
        &self.0.core
    }

    pub(super) fn speaker(&self) -> &Speaker {
        &self.0.speaker
    }

    pub(super) fn share(&self) -> &Share {
        &self.0.share
    }

    /// Who learns of its calls.
    pub(super) fn calls(&self) -> &dyn Calls {
        let Speaker { hook, plugin, .. } = self.speaker();
        &**self.0.calls.get_or_init(|| self.core().observer().calls_of(hook, plugin))
    }

    pub(super) fn allowance(&self) -> Allowance {
        Allowance {
            deadline: Duration::from_millis(self.0.binding.deadline_ms),
            memory_bytes: self.0.binding.memory_bytes,
            output_bytes: self.0.binding.output_bytes,
            seed: self.0.seed,
            is_provisional: false,
        }
    }

    /// Has an instance check and keep the hook's configuration.
    pub(super) fn configure(&self, guest: &mut Guest<'_>) -> Result<(), Error> {
        guest.configure(&self.0.config)?.map_err(|invalid| Error::ConfigRefused {
            hook: self.name().to_owned(),
            path: cut(&invalid.path, limits::PLUGIN_TEXT_BYTES_MAX).to_owned(),
            message: cut(&invalid.message, limits::PLUGIN_TEXT_BYTES_MAX).to_owned(),
        })
    }
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook").field("name", &self.name()).field("plugin", &self.0.plugin).finish_non_exhaustive()
    }
}

impl Share {
    fn new() -> Self {
        let max = share_max();
        Self {
            max,
            permits: Arc::new(Semaphore::new(max as usize)),
            queue: Arc::new(Semaphore::new(limits::PLUGIN_QUEUE_MAX / 2)),
            pace: Pace::unknown(),
        }
    }

    /// Permits one call needs now: all of them while the hook is stuck, so that its calls run one at a time.
    pub(super) fn permits_needed(&self) -> u32 {
        if self.pace.is_stuck() { self.max } else { 1 }
    }
}

/// The seed of a hook's random numbers: the same on every node, and not to be guessed without knowing the hook.
fn seed(name: &str, plugin: &Plugin, config: &str) -> u64 {
    let mut hash = Sha256::new();
    for part in [name, plugin.digest(), config] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}
