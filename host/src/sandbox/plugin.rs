//! A plugin: a compiled component, checked, with its name and version.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use wasmtime::component::Component;

use super::compiler::{CompileOptions, Job};
use super::component::{self, LinkedComponent, Role};
use super::engine::Engine;
use super::error::Error;
use super::host_state::HostReads;
use super::invocation::Target;
use super::limiter::CallLimits;
use super::lines::LogSource;
use crate::limits;

/// A compiled plugin, whose guests read from the host by `R`. Cheap to clone.
pub struct Plugin<R: 'static>(Arc<Compiled<R>>);

struct Compiled<R: 'static> {
    source: LogSource,
    imports: Vec<String>,
    component: LinkedComponent<R>,
    start_time: Duration,
    start_memory_bytes: usize,
}

/// SHA-256 of a component's bytes, in lower-case hexadecimal.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl<R: HostReads> Plugin<R> {
    /// Compiles a component and checks that it is a plugin: its size, its imports and exports with all their types, and
    /// that an instance of it can start within the limits.
    ///
    /// Takes from milliseconds to minutes: call it on a blocking thread. Fails as `compiler` says, and as
    /// an instance does that fails to start.
    pub fn compile(engine: &Engine, name: &str, bytes: &[u8], options: &CompileOptions) -> Result<Self, Error> {
        if bytes.len() > limits::PLUGIN_BYTES_MAX {
            return Err(Error::TooLarge(bytes.len()));
        }
        component::check_preamble(bytes).map_err(|detail| Error::NotAComponent(detail.to_owned()))?;
        let digest = digest(bytes);
        let component = engine.compile(&digest, &Job::Compile, bytes, options)?;
        Self::checked(engine, name, digest, &component)
    }

    /// The plugin with this digest, if this node compiled it before and still has it in its cache.
    pub fn from_cache(engine: &Engine, name: &str, digest: &str) -> Option<Self> {
        let component = engine.cached(digest)?;
        // If it cannot be used, the caller compiles it again, and that says why.
        Self::checked(engine, name, digest.to_owned(), &component).ok()
    }

    /// Checks that a component is a plugin, and starts an instance: a component that cannot start is refused now, and not at
    /// the first write.
    fn checked(engine: &Engine, name: &str, digest: String, compiled: &Component) -> Result<Self, Error> {
        component::check_resources(compiled).map_err(Error::WorldMismatch)?;
        let imports = component::check_imports(compiled).map_err(Error::WorldMismatch)?;
        let component = LinkedComponent::new(compiled).map_err(Error::WorldMismatch)?;
        let source = LogSource { hook: String::new(), plugin: name.to_owned(), digest };
        let limits = CallLimits {
            deadline: limits::PLUGIN_CONFIGURE_DEADLINE,
            memory_bytes: limits::PLUGIN_MEMORY_BYTES_MAX,
            output_bytes: limits::PLUGIN_OUTPUT_BYTES_MAX,
            is_provisional: false,
        };
        let began = Instant::now();
        let target = Target {
            ticker: &engine.ticker,
            log_sink: &*engine.log_sink,
            component: &component,
            pool: None,
            source: &source,
            random_seed: 0,
        };
        let (start_time, start_memory_bytes) = target.invoke(limits, |invocation| {
            let start = (began.elapsed(), invocation.memory_bytes());
            invocation.check_types().map_err(|error| Error::WorldMismatch(component::signature(error)))?;
            Ok(start)
        })??;
        Ok(Self(Arc::new(Compiled { source, imports, component, start_time, start_memory_bytes })))
    }

    pub(super) fn component(&self) -> &LinkedComponent<R> {
        &self.0.component
    }
}

impl<R: 'static> Plugin<R> {
    /// The name it was compiled under.
    pub fn name(&self) -> &str {
        &self.0.source.plugin
    }

    /// SHA-256 of the component's bytes, in lower-case hexadecimal.
    pub fn digest(&self) -> &str {
        &self.0.source.digest
    }

    /// Whether it has a role.
    pub fn has(&self, role: Role) -> bool {
        let component = &self.0.component;
        match role {
            Role::Transformer => component.transformer.is_some(),
            Role::Validator => component.validator.is_some(),
        }
    }

    /// Its roles: `transformer`, `validator` or both.
    pub fn roles(&self) -> Vec<&'static str> {
        let roles = [Role::Transformer, Role::Validator].into_iter().filter(|role| self.has(*role));
        roles.map(Role::into).collect()
    }

    /// How long its first instance took to start on this machine, before any configuration.
    pub fn start_time(&self) -> Duration {
        self.0.start_time
    }

    /// The linear memory of an instance that has just started, in bytes.
    pub fn start_memory_bytes(&self) -> usize {
        self.0.start_memory_bytes
    }

    /// The functions of `brink:hooks` it imports, such as `store.get`, sorted.
    pub fn imports(&self) -> &[String] {
        &self.0.imports
    }

    /// Whether it may read other keys.
    pub fn can_read(&self) -> bool {
        self.0.imports.iter().any(|import| import.starts_with("store."))
    }
}

impl<R: 'static> Clone for Plugin<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: 'static> std::fmt::Debug for Plugin<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("name", &self.name()).field("digest", &self.digest()).finish_non_exhaustive()
    }
}
