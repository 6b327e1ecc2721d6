//! A plugin with its configuration, which answers calls.
//!
//! Until the plugin is pre-initialized, and if it cannot be, each call starts an instance and configures it first. From then
//! on instances start configured, and are reset after their calls if possible (see [`instance`](super::instance)).

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use wasmtime::component::Component;

use super::bindings::brink::hooks::types::Write;
use super::compiler::{CompileOptions, Configuration, Job};
use super::component::{LinkedComponent, Role, check_resources};
use super::engine::Engine;
use super::error::Error;
use super::host_state::HostReads;
use super::instance::{Pool, Resetter};
use super::invocation::{CallOutcome, Invocation, Target};
use super::limiter::CallLimits;
use super::lines::LogSource;
use super::plugin::Plugin;
use crate::limits;

/// The first part of the cache key of a pre-initialized component: what is stored, in which version.
const CACHE_KEY: &str = "rewindable image";

/// A plugin with its configuration.
pub struct ConfiguredPlugin<R: 'static> {
    engine: Arc<Engine>,
    plugin: Plugin<R>,
    config: String,
    /// The limits of its calls.
    pub limits: CallLimits,
    /// Whose log lines the calls write.
    pub source: LogSource,
    random_seed: u64,
    /// Empty until it has been tried; an error says why the plugin cannot be pre-initialized.
    pre_initialized: OnceLock<Result<PreInitialized<R>, String>>,
}

/// The plugin with the configuration in its initial memory.
struct PreInitialized<R: 'static> {
    component: LinkedComponent<R>,
    /// Its reset instances; an error says why its instances cannot be reset.
    pool: Result<Pool<R>, String>,
}

impl<R: HostReads> ConfiguredPlugin<R> {
    /// The plugin of a hook, whose calls have these limits unless they say otherwise. `config` is JSON text.
    pub fn new(engine: Arc<Engine>, plugin: Plugin<R>, hook: &str, config: String, limits: CallLimits) -> Self {
        let source =
            LogSource { hook: hook.to_owned(), plugin: plugin.name().to_owned(), digest: plugin.digest().to_owned() };
        // The same on every node, and not to be guessed without knowing the hook.
        let hash = sha256(&[&source.hook, &source.digest, &config]);
        let random_seed = hash.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte));
        Self { engine, plugin, config, limits, source, random_seed, pre_initialized: OnceLock::new() }
    }

    /// The plugin.
    pub fn plugin(&self) -> &Plugin<R> {
        &self.plugin
    }

    /// Asks the plugin about writes. If it does not have the role, it accepts everything and changes nothing.
    pub fn call(&self, role: Role, limits: CallLimits, reads: R, writes: &[Write<'_>]) -> CallOutcome<R> {
        let outcome = self.with_configured(limits, |invocation| invocation.call(role, reads, writes));
        outcome.unwrap_or_else(|error| CallOutcome {
            has_met_limit: error.is_limit(),
            answer: Err(error),
            reads: R::default(),
            memory_bytes: 0,
        })
    }

    /// Lets the plugin check its configuration in a new instance, and returns how long that took.
    ///
    /// Runs for up to [`limits::PLUGIN_CONFIGURE_DEADLINE`]: call it on a blocking thread. Fails with [`Error::ConfigRefused`]
    /// (the plugin's own words), [`Error::Busy`], or how the plugin failed.
    pub fn check_config(&self) -> Result<Duration, Error> {
        let _room = self.engine.side_room()?;
        let limits = CallLimits { deadline: limits::PLUGIN_CONFIGURE_DEADLINE, ..self.limits };
        self.target(self.plugin.component(), None).invoke(limits, |invocation| {
            let started_at = Instant::now();
            invocation.configure(&self.config).map(|()| started_at.elapsed())
        })?
    }

    /// Provides an instance as a call does, without a call: to measure what that costs.
    pub fn provide_instance(&self, limits: CallLimits) -> Result<(), Error> {
        self.with_configured(limits, |_| ())
    }

    /// Pre-initializes the plugin from its component, unless that has been tried before. Takes seconds to minutes if the
    /// component is large: call it on a blocking thread. An error is one that [may pass](Error::may_pass).
    pub fn pre_initialize(&self, component: &[u8], options: &CompileOptions) -> Result<(), Error> {
        if self.pre_initialized.get().is_none() {
            let configuration = Configuration {
                config: self.config.clone(),
                random_seed: self.random_seed,
                memory_bytes: self.limits.memory_bytes,
                output_bytes: self.limits.output_bytes,
            };
            let job = Job::PreInitialize(configuration);
            let result = match self.engine.compile(&self.cache_key(), &job, component, options) {
                Err(error) if error.may_pass() => return Err(error),
                Err(Error::NotAComponent(reason)) => Err(reason),
                Err(error) => Err(format!("it {error}")),
                Ok(compiled) => self.start_with(&compiled),
            };
            // Another thread may have come first; its result is the same.
            let _ = self.pre_initialized.set(result);
        }
        Ok(())
    }

    /// The same, if the result is in the cache. It takes milliseconds.
    pub fn pre_initialize_from_cache(&self) {
        if self.pre_initialized.get().is_none()
            && let Some(compiled) = self.engine.cached(&self.cache_key())
        {
            let _ = self.pre_initialized.set(self.start_with(&compiled));
        }
    }

    fn start_with(&self, compiled: &Component) -> Result<PreInitialized<R>, String> {
        check_resources(compiled).map_err(|mismatch| mismatch.to_string())?;
        let component = LinkedComponent::new(compiled).map_err(|mismatch| mismatch.to_string())?;
        let pool = self.pool_for(&component);
        if let Err(reason) = &pool {
            tracing::debug!(hook = self.source.hook, reason, "each call starts an instance");
        }
        Ok(PreInitialized { component, pool })
    }

    /// Whether the plugin is pre-initialized; an error says why it cannot be. `None` until that is known.
    pub fn pre_initialized(&self) -> Option<Result<(), &str>> {
        self.pre_initialized.get().map(|result| result.as_ref().map(drop).map_err(String::as_str))
    }

    /// Number of reset instances that wait for calls: 0 after a call whose instance was dropped (see `sandbox::instance`). An
    /// error says why instances cannot be reset, so that each call starts a new one.
    pub fn waiting(&self) -> Result<usize, &str> {
        match self.pre_initialized.get() {
            Some(Ok(pre_initialized)) => pre_initialized.pool.as_ref().map(Pool::waiting).map_err(String::as_str),
            Some(Err(reason)) => Err(reason),
            None => Err("it is not pre-initialized yet"),
        }
    }

    /// The key of the pre-initialized component in the cache: the same for the same code, configuration and random numbers.
    pub fn cache_key(&self) -> String {
        let hash = sha256(&[CACHE_KEY, &self.source.hook, &self.source.digest, &self.config]);
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn pool_for(&self, component: &LinkedComponent<R>) -> Result<Pool<R>, String> {
        let support = self.engine.reset_support.as_ref().ok_or("this node cannot")?;
        let resetter = self.target(component, None).invoke(self.limits, |invocation| {
            Resetter::new(support, self.plugin.component(), component, &mut invocation.instance)
        });
        Ok(Pool::new(resetter.map_err(|error| format!("it {error}"))??))
    }

    fn with_configured<T>(
        &self,
        limits: CallLimits,
        ask: impl FnOnce(&mut Invocation<'_, R>) -> T,
    ) -> Result<T, Error> {
        if let Some(Ok(PreInitialized { component, pool })) = self.pre_initialized.get() {
            return self.target(component, pool.as_ref().ok()).invoke(limits, ask);
        }
        self.target(self.plugin.component(), None).invoke(limits, |invocation| {
            invocation.configure(&self.config)?;
            Ok(ask(invocation))
        })?
    }

    fn target<'a>(&'a self, component: &'a LinkedComponent<R>, pool: Option<&'a Pool<R>>) -> Target<'a, R> {
        Target {
            ticker: &self.engine.ticker,
            log_sink: &*self.engine.log_sink,
            component,
            pool,
            source: &self.source,
            random_seed: self.random_seed,
        }
    }
}

/// SHA-256 of several texts.
fn sha256(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
