//! What a compiler has to do, as it is handed over; and doing it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use wasmtime::component::Component;

use super::super::bindings::brink::hooks::store::ReadError;
use super::super::bindings::brink::hooks::types::Entry;
use super::super::component::LinkedComponent;
use super::super::host_state::HostReads;
use super::super::instance::Instrumented;
use super::super::invocation::Target;
use super::super::limiter::CallLimits;
use super::super::lines::LogSource;
use super::super::settings;
use super::super::ticker::Ticker;
use super::shape::{self, Refusal};
use crate::limits;

/// Memory of an instrumented instance beyond the limit of its calls: a page of each memory, to read the state through.
const HEADROOM_BYTES: usize = limits::PLUGIN_MEMORIES_MAX * 64 * 1024;

/// What to make of a component.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::sandbox) enum Job {
    /// Its code.
    Compile,
    /// The code of its copy that has this configuration in its initial memory.
    PreInitialize(Configuration),
}

/// The configuration of a plugin, with all that its effect depends on.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::sandbox) struct Configuration {
    /// JSON text.
    pub(in crate::sandbox) config: String,
    pub(in crate::sandbox) random_seed: u64,
    /// The limits of the plugin's calls.
    pub(in crate::sandbox) memory_bytes: usize,
    pub(in crate::sandbox) output_bytes: usize,
}

impl Job {
    /// The job in bytes, which its component follows.
    pub(super) fn encode(&self, component: &[u8]) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_stdvec(&(self, component.len()))
    }

    /// Reads what [`Job::encode`] wrote, and the component. `None` if they are not complete.
    pub(super) fn decode(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let ((job, len), component): ((Self, usize), _) = postcard::take_from_bytes(bytes).ok()?;
        (component.len() == len).then_some((job, component))
    }
}

/// Does a job with an engine. An instance that is configured gets `deadline` for each step.
pub(in crate::sandbox) fn build(
    engine: &wasmtime::Engine,
    job: &Job,
    component: &[u8],
    deadline: Duration,
) -> Result<Component, Refusal> {
    match job {
        Job::Compile => {
            shape::check(component)?;
            compile(engine, component)
        }
        Job::PreInitialize(configuration) => compile(engine, &snapshot(configuration, component, deadline)?),
    }
}

fn compile(engine: &wasmtime::Engine, component: &[u8]) -> Result<Component, Refusal> {
    Component::from_binary(engine, component).map_err(|error| Refusal::Invalid(format!("{error:#}")))
}

/// The component with the configuration in its initial memory.
fn snapshot(configuration: &Configuration, component: &[u8], deadline: Duration) -> Result<Vec<u8>, Refusal> {
    let instrumented = Instrumented::new(component, deadline).map_err(Refusal::Invalid)?;
    let engine = wasmtime::Engine::new(&settings::scratch()).map_err(|error| Refusal::Unable(error.to_string()))?;
    let ticker = Ticker::start(&engine).map_err(|error| Refusal::Unable(error.to_string()))?;
    let component = compile(&engine, &instrumented.component)?;
    let component = LinkedComponent::<NoReads>::new(&component);
    let component = component.map_err(|mismatch| Refusal::Invalid(mismatch.to_string()))?;
    let limits = CallLimits {
        deadline,
        memory_bytes: configuration.memory_bytes.saturating_add(HEADROOM_BYTES),
        output_bytes: configuration.output_bytes,
        is_provisional: false,
    };
    // What it logs now was logged when the hook was bound.
    let source = LogSource { hook: String::new(), plugin: String::new(), digest: String::new() };
    let target = Target {
        ticker: &ticker,
        log_sink: &(),
        component: &component,
        pool: None,
        source: &source,
        random_seed: configuration.random_seed,
    };
    let snapshot = target.invoke(limits, |invocation| {
        invocation.configure(&configuration.config).map_err(|error| format!("it {error}"))?;
        instrumented.snapshot(&mut invocation.instance)
    });
    snapshot.map_err(|error| format!("it {error}")).flatten().map_err(Refusal::Invalid)
}

/// A plugin cannot read while it is configured.
#[derive(Default)]
struct NoReads;

impl HostReads for NoReads {
    fn get(&mut self, _: &str) -> Result<Option<Entry>, ReadError> {
        Err(not_now())
    }

    fn exists(&mut self, _: &str) -> Result<bool, ReadError> {
        Err(not_now())
    }

    fn list(&mut self, _: &str, _: &str, _: u32) -> Result<Vec<String>, ReadError> {
        Err(not_now())
    }
}

fn not_now() -> ReadError {
    ReadError::Unavailable("the store cannot be read during `configure`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_read_as_it_was_written_and_never_in_part() {
        let configuration = Configuration { config: "{}".to_owned(), random_seed: 7, memory_bytes: 1, output_bytes: 2 };
        let component = vec![3; 1000];
        for job in [Job::Compile, Job::PreInitialize(configuration)] {
            let bytes = [job.encode(&component).unwrap(), component.clone()].concat();
            assert_eq!(Job::decode(&bytes), Some((job, &component[..])));
            assert_eq!(Job::decode(&bytes[..bytes.len() - 1]), None);
        }
    }
}
