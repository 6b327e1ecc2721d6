//! One call of a guest: an instance is taken, used within the limits of the call, and reset or dropped.

use wasmtime::{PoolConcurrencyLimitError, Store, Trap};

use super::bindings::brink::hooks::types::{Rejection, Replacement, Write};
use super::component::{Exports, LinkedComponent, Role};
use super::error::Error;
use super::host_state::{HostReads, HostState};
use super::instance::{Instance, Pool};
use super::limiter::CallLimits;
use super::lines::{LogSink, LogSource, cut, one_line};
use super::ticker::Ticker;
use super::wasi::Exit;
use crate::limits;

/// wasmtime's message when a guest passes too much to the host. The error's type is private to wasmtime, so its text has
/// to do; a test fails if it changes.
const FUEL_EXHAUSTED: &str = "fuel allocated for hostcalls has been exhausted";

/// The outcome of one call.
pub struct CallOutcome<R> {
    /// What the guest answered, or how it failed. A validator gives no new values.
    pub answer: Result<Result<Vec<Replacement>, Rejection>, Error>,
    /// The reads as the guest left them.
    pub reads: R,
    /// The linear memory of the instance, in bytes; 0 if it did not start.
    pub memory_bytes: usize,
    /// Whether a limit was met. The answer may then differ from that of a call with more.
    pub has_met_limit: bool,
}

/// What invocations get their instances from.
pub(super) struct Target<'a, R: 'static> {
    pub(super) ticker: &'a Ticker,
    pub(super) log_sink: &'a dyn LogSink,
    pub(super) component: &'a LinkedComponent<R>,
    /// Reset instances; `None` if the component's instances cannot be reset.
    pub(super) pool: Option<&'a Pool<R>>,
    pub(super) source: &'a LogSource,
    pub(super) random_seed: u64,
}

/// An instance in use.
pub(super) struct Invocation<'a, R: 'static> {
    component: &'a LinkedComponent<R>,
    limits: CallLimits,
    pub(super) instance: Instance<R>,
    has_failed: bool,
    has_met_limit: bool,
}

impl<R: HostReads> Target<'_, R> {
    /// Lets `ask` use an instance. When it returns, the log lines are written, and the instance waits for another call or
    /// ends. An error says how the instance failed to start.
    pub(super) fn invoke<T>(
        &self,
        limits: CallLimits,
        ask: impl FnOnce(&mut Invocation<'_, R>) -> T,
    ) -> Result<T, Error> {
        let _running = self.ticker.run();
        let waiting = self.pool.and_then(Pool::take).and_then(|instance| instance.renew(limits, self.random_seed));
        let instance = match waiting {
            Some(instance) => instance,
            None => self.start(limits)?,
        };
        let component = self.component;
        let mut invocation = Invocation { component, limits, instance, has_failed: false, has_met_limit: false };
        let answer = ask(&mut invocation);
        let is_repeated = limits.is_provisional && invocation.has_met_limit();
        let Invocation { mut instance, has_failed, .. } = invocation;
        self.write_lines(instance.store.data_mut(), is_repeated);
        if let Some(pool) = self.pool
            && !has_failed
        {
            pool.put(instance);
        }
        Ok(answer)
    }

    fn start(&self, limits: CallLimits) -> Result<Instance<R>, Error> {
        Instance::start(self.component, limits, self.random_seed).map_err(|(error, mut store)| {
            let state = store.data_mut();
            let error = explain(&error, limits, state);
            self.write_lines(state, limits.is_provisional && error.is_limit());
            error
        })
    }

    /// Writes the log lines of a call, unless it will be repeated.
    fn write_lines(&self, state: &mut HostState<R>, is_repeated: bool) {
        if is_repeated {
            state.lines.discard();
        }
        state.lines.flush(self.source, self.log_sink);
    }
}

impl<R: HostReads> Invocation<'_, R> {
    /// Checks that every export of the plugin has the type it should have.
    pub(super) fn check_types(&mut self) -> wasmtime::Result<()> {
        self.instance.exports(self.component).map(drop)
    }

    pub(super) fn configure(&mut self, config: &str) -> Result<(), Error> {
        let answer = self.step(|store, exports| exports.configuration.call_configure(store, config))?;
        answer.map_err(|invalid| Error::ConfigRefused {
            path: cut(&invalid.path, limits::PLUGIN_TEXT_BYTES_MAX).to_owned(),
            message: cut(&invalid.message, limits::PLUGIN_TEXT_BYTES_MAX).to_owned(),
        })
    }

    /// Asks the guest about writes, and lets it read meanwhile. Without the role it accepts everything and changes nothing.
    pub(super) fn call(&mut self, role: Role, reads: R, writes: &[Write<'_>]) -> CallOutcome<R> {
        self.instance.store.data_mut().reads = reads;
        let answer = self.ask(role, writes);
        let reads = std::mem::take(&mut self.instance.store.data_mut().reads);
        let (memory_bytes, has_met_limit) = (self.memory_bytes(), self.has_met_limit());
        CallOutcome { answer, reads, memory_bytes, has_met_limit }
    }

    fn ask(&mut self, role: Role, writes: &[Write<'_>]) -> Result<Result<Vec<Replacement>, Rejection>, Error> {
        self.step(|store, exports| match role {
            Role::Transformer => {
                let Some(transformer) = &exports.transformer else { return Ok(Ok(Vec::new())) };
                transformer.call_transform(store, writes)
            }
            Role::Validator => {
                let Some(validator) = &exports.validator else { return Ok(Ok(Vec::new())) };
                Ok(validator.call_validate(store, writes)?.map(|()| Vec::new()))
            }
        })
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.instance.store.data().limiter.memory_bytes()
    }

    /// Whether a limit was met, so that the answer may not be what it would have been without it.
    pub(super) fn has_met_limit(&self) -> bool {
        self.has_met_limit || self.instance.store.data().limiter.refused().is_some()
    }

    /// Runs the guest. Each step gets the whole deadline, unless the call is provisional.
    fn step<T>(
        &mut self,
        run: impl FnOnce(&mut Store<HostState<R>>, &Exports) -> wasmtime::Result<T>,
    ) -> Result<T, Error> {
        if !self.limits.is_provisional {
            self.instance.set_deadline(self.limits.deadline);
        }
        let answer = self.instance.exports(self.component).and_then(|(store, exports)| run(store, exports));
        answer.map_err(|error| {
            let error = explain(&error, self.limits, self.instance.store.data_mut());
            self.has_failed = true;
            self.has_met_limit |= error.is_limit();
            error
        })
    }
}

/// Why the instance of this state stopped, from wasmtime's error and what the state knows beside it.
fn explain<R: HostReads>(error: &wasmtime::Error, limits: CallLimits, state: &mut HostState<R>) -> Error {
    let trap = error.downcast_ref::<Trap>();
    if trap == Some(&Trap::Interrupt) {
        let deadline_ms = u64::try_from(limits.deadline.as_millis()).unwrap_or(u64::MAX);
        return Error::TimedOut { deadline_ms };
    }
    if error.is::<PoolConcurrencyLimitError>() {
        return Error::Busy;
    }
    if let Some(error) = state.limiter.refused() {
        return error;
    }
    let reason = format!("{error:#}");
    if reason.contains(FUEL_EXHAUSTED) {
        return Error::OutputLimit(limits.output_bytes);
    }
    let reason = match trap {
        Some(Trap::UnreachableCodeReached) => "it aborted".to_owned(),
        Some(Trap::StackOverflow) => "its stack is full".to_owned(),
        Some(trap) => trap.to_string(),
        None if error.is::<Exit>() => Exit.to_string(),
        None => match forbidden_import(&reason) {
            Some(import) => format!("it called `{import}`, which plugins do not have"),
            None => one_line(cut(&reason, limits::PLUGIN_TEXT_BYTES_MAX)),
        },
    };
    let last_words = state.lines.last_words();
    Error::Trapped(if last_words.is_empty() { reason } else { format!("{reason}: {last_words}") })
}

/// The import named by wasmtime's message for an import that traps.
fn forbidden_import(reason: &str) -> Option<&str> {
    let (_, rest) = reason.split_once("unknown import: `")?;
    Some(rest.split_once('`')?.0)
}
