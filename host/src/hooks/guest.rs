//! One call of a plugin: an instance that nobody has used, configured, asked once.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{HasSelf, Instance, Lift, Linker};
use wasmtime::{PoolConcurrencyLimitError, Store, Trap};

use super::bindings::brink::hooks::types::{Rejection, Replacement, Write};
use super::bindings::brink::hooks::{log, store, types};
use super::bindings::exports::brink::hooks::configuration::Invalid;
use super::error::Error;
use super::limiter::{Limiter, Refused};
use super::lines::{Lines, Speaker};
use super::plugin::Code;
use super::rewind::{Rewinder, WayBack};
use super::runtime::Core;
use super::text::{cut, one_line};
use super::ticker::Ticker;
use super::view::{Reads, Refusal, View};
use super::wasi::{Exit, Random};
use crate::limits;

/// What one call may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    /// How long each step (start, `configure`, the call itself) may take.
    pub(super) deadline: Duration,
    /// Linear memory, in bytes.
    pub(super) memory_bytes: usize,
    /// What it may pass to the host, in bytes.
    pub(super) output_bytes: usize,
    /// Where its random numbers start.
    pub(super) seed: u64,
    /// Whether the call is made again if it meets a limit: what it logged is then forgotten, and all its steps share one
    /// deadline.
    pub(super) is_provisional: bool,
}

/// What the host keeps beside one instance.
pub(super) struct Call {
    pub(super) lines: Lines,
    pub(super) random: Random,
    /// Whether the plugin was given a handle of WASI. What it refers to ends with the instance.
    pub(super) has_handles: bool,
    limiter: Limiter,
    reads: Reads,
}

/// An instance, and what belongs to it.
pub(super) struct Live {
    pub(super) instance: Instance,
    pub(super) store: Store<Call>,
    pub(super) way_back: Option<WayBack>,
}

/// An instance in use.
pub(super) struct Guest<'a> {
    code: &'a Code,
    speaker: &'a Speaker,
    allowance: Allowance,
    live: Live,
    has_failed: bool,
}

impl Live {
    /// A new instance. Its initialisation runs under the same limits as its calls.
    fn start(core: &Core, code: &Code, speaker: &Speaker, allowance: Allowance) -> Result<Self, Error> {
        let mut store = Store::new(core.engine(), Call::new(allowance));
        store.limiter(|call| &mut call.limiter);
        store.set_hostcall_fuel(allowance.output_bytes);
        // IMPORTANT: without a deadline the first check of the epoch traps.
        store.set_epoch_deadline(Ticker::ticks(allowance.deadline));
        match code.pre.instantiate(&mut store) {
            Ok(instance) => Ok(Self { instance, store, way_back: None }),
            Err(error) => {
                let error = explain(&error, speaker, allowance, &mut store);
                store.data_mut().lines.say(speaker, core.observer());
                Err(error)
            }
        }
    }

    /// One that was put back, with what a new one would be given. `None`: a new one could not start.
    fn renewed(mut self, allowance: Allowance) -> Option<Self> {
        self.store.set_hostcall_fuel(allowance.output_bytes);
        self.store.set_epoch_deadline(Ticker::ticks(allowance.deadline));
        let call = self.store.data_mut();
        call.lines = Lines::new();
        call.random = Random::new(allowance.seed);
        call.limiter.renew(allowance.memory_bytes).then_some(self)
    }

    /// Lets the host read the whole memory from now on, which is no output of the plugin's.
    pub(super) fn expect_reading(&mut self) {
        self.store.set_hostcall_fuel(usize::MAX);
    }
}

impl Call {
    fn new(allowance: Allowance) -> Self {
        Self {
            lines: Lines::new(),
            random: Random::new(allowance.seed),
            has_handles: false,
            limiter: Limiter::new(allowance.memory_bytes),
            reads: Reads::default(),
        }
    }

    /// Whether an instance has what it did not begin with and that cannot be taken from it. It began with this much memory.
    pub(super) fn has_more_than(&self, memory_bytes: usize) -> bool {
        self.has_handles || self.limiter.refused().is_some() || self.limiter.memory_bytes() != memory_bytes
    }
}

impl Guest<'_> {
    /// Has `ask` use an instance that nobody has used, or that cannot be told from one. When `ask` returns, what the plugin
    /// logged is said, and the instance ends.
    pub(super) fn with<T>(
        core: &Core,
        code: &Code,
        speaker: &Speaker,
        allowance: Allowance,
        ask: impl FnOnce(&mut Guest<'_>) -> T,
    ) -> Result<T, Error> {
        let _running = core.ticker().run();
        let waiting = code.rewinder.as_ref().ok().and_then(Rewinder::take);
        let live = match waiting.and_then(|live| live.renewed(allowance)) {
            Some(live) => live,
            None => Live::start(core, code, speaker, allowance)?,
        };
        let mut guest = Guest { code, speaker, allowance, live, has_failed: false };
        let answer = ask(&mut guest);
        let Guest { mut live, has_failed, .. } = guest;
        let call = live.store.data_mut();
        call.lines.say(speaker, core.observer());
        call.reads = Reads::default();
        if let Ok(rewinder) = &code.rewinder
            && !has_failed
        {
            rewinder.keep(live);
        }
        Ok(answer)
    }

    pub(super) fn live(&mut self) -> &mut Live {
        &mut self.live
    }

    /// Checks that every export of the plugin has the type it should have.
    pub(super) fn check_types(&mut self) -> wasmtime::Result<()> {
        let exports = &self.code.exports;
        exports.configuration.load(&mut self.live.store, &self.live.instance)?;
        if let Some(validator) = &exports.validator {
            validator.load(&mut self.live.store, &self.live.instance)?;
        }
        if let Some(transformer) = &exports.transformer {
            transformer.load(&mut self.live.store, &self.live.instance)?;
        }
        Ok(())
    }

    /// Gives the plugin its configuration, as JSON text.
    pub(super) fn configure(&mut self, config: &str) -> Result<Result<(), Invalid>, Error> {
        self.wind_up();
        let exports = &self.code.exports;
        let answer = exports
            .configuration
            .load(&mut self.live.store, &self.live.instance)
            .and_then(|guest| guest.call_configure(&mut self.live.store, config));
        self.settle(answer)
    }

    /// Lets the plugin read from `view` from now on.
    pub(super) fn open(&mut self, view: Arc<dyn View>) {
        self.live.store.data_mut().reads.open(view);
    }

    /// Asks the transformer. A plugin without that role changes nothing.
    pub(super) fn transform(&mut self, writes: &[Write<'_>]) -> Result<Result<Vec<Replacement>, Rejection>, Error> {
        self.wind_up();
        let Some(transformer) = &self.code.exports.transformer else { return Ok(Ok(Vec::new())) };
        let answer = transformer
            .load(&mut self.live.store, &self.live.instance)
            .and_then(|guest| guest.call_transform(&mut self.live.store, writes));
        self.settle(answer)
    }

    /// Asks the validator. A plugin without that role accepts everything.
    pub(super) fn validate(&mut self, writes: &[Write<'_>]) -> Result<Result<(), Rejection>, Error> {
        self.wind_up();
        let Some(validator) = &self.code.exports.validator else { return Ok(Ok(())) };
        let answer = validator
            .load(&mut self.live.store, &self.live.instance)
            .and_then(|guest| guest.call_validate(&mut self.live.store, writes));
        self.settle(answer)
    }

    /// Whether the plugin has been given handles of WASI.
    pub(super) fn has_handles(&self) -> bool {
        self.live.store.data().has_handles
    }

    /// What a function without arguments of an exported instance returns.
    pub(super) fn read<R: Lift + 'static, T>(
        &mut self,
        instance: &str,
        function: &str,
        take: impl FnOnce(R, &Store<Call>) -> T,
    ) -> wasmtime::Result<T> {
        self.wind_up();
        let missing = || wasmtime::format_err!("there is no {instance}#{function}");
        let (_, exports) = self.live.instance.get_export(&mut self.live.store, None, instance).ok_or_else(missing)?;
        let found =
            self.live.instance.get_export(&mut self.live.store, Some(&exports), function).ok_or_else(missing)?;
        let function = self.live.instance.get_typed_func::<(), (R,)>(&mut self.live.store, found.1)?;
        let (answer,) = function.call(&mut self.live.store, ())?;
        Ok(take(answer, &self.live.store))
    }

    /// The memory the instance has, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        self.live.store.data().limiter.memory_bytes()
    }

    /// What it has read.
    pub(super) fn take_reads(&mut self) -> Reads {
        std::mem::take(&mut self.live.store.data_mut().reads)
    }

    /// Whether growth was refused, so that the answer may not be what it would have been. What was logged is then forgotten.
    pub(super) fn is_cut_short(&mut self) -> bool {
        let call = self.live.store.data_mut();
        let is_refused = call.limiter.refused().is_some();
        if is_refused {
            call.lines.forget();
        }
        is_refused
    }

    /// Each step gets the whole deadline, unless the call is provisional.
    fn wind_up(&mut self) {
        if self.allowance.is_provisional {
            return;
        }
        self.live.store.set_epoch_deadline(Ticker::ticks(self.allowance.deadline));
    }

    fn settle<T>(&mut self, answer: wasmtime::Result<T>) -> Result<T, Error> {
        self.has_failed |= answer.is_err();
        answer.map_err(|error| explain(&error, self.speaker, self.allowance, &mut self.live.store))
    }
}

/// Why an instance stopped.
fn explain(error: &wasmtime::Error, speaker: &Speaker, allowance: Allowance, store: &mut Store<Call>) -> Error {
    let error = reason(error, speaker, allowance, store);
    if allowance.is_provisional && error.is_limit() {
        store.data_mut().lines.forget();
    }
    error
}

fn reason(error: &wasmtime::Error, speaker: &Speaker, allowance: Allowance, store: &mut Store<Call>) -> Error {
    let (hook, plugin) = (speaker.hook.clone(), speaker.plugin.clone());
    let call = store.data_mut();
    let trap = error.downcast_ref::<Trap>();
    if trap == Some(&Trap::Interrupt) {
        let deadline_ms = u64::try_from(allowance.deadline.as_millis()).unwrap_or(u64::MAX);
        return Error::TimedOut { hook, plugin, deadline_ms };
    }
    if error.is::<PoolConcurrencyLimitError>() {
        return Error::Busy { hook: None };
    }
    if let Some(Refused { what, asked, limit }) = call.limiter.refused() {
        return Error::MemoryLimit { hook, plugin, what, asked, limit };
    }
    let reason = format!("{:#}", error);
    if reason.contains(FUEL_EXHAUSTED) {
        return Error::OutputLimit { hook, plugin, limit_bytes: allowance.output_bytes };
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
    let last_words = call.lines.last_words();
    let message = if last_words.is_empty() { reason } else { format!("{reason}: {last_words}") };
    Error::Trapped { hook, plugin, message }
}

/// What the engine says when a plugin passes too much to the host. The error's type is private to the engine, so its
/// text has to do; a test fails if it changes.
const FUEL_EXHAUSTED: &str = "fuel allocated for hostcalls has been exhausted";

/// The import named by the engine's message for an import that traps.
fn forbidden_import(reason: &str) -> Option<&str> {
    let (_, rest) = reason.split_once("unknown import: `")?;
    Some(rest.split_once('`')?.0)
}

/// Adds the interfaces of `brink:hooks` that plugins import.
pub(super) fn add_to_linker(linker: &mut Linker<Call>) -> wasmtime::Result<()> {
    types::add_to_linker::<_, HasSelf<Call>>(linker, |call| call)?;
    store::add_to_linker::<_, HasSelf<Call>>(linker, |call| call)?;
    log::add_to_linker::<_, HasSelf<Call>>(linker, |call| call)
}

impl types::Host for Call {}

impl store::Host for Call {
    fn get(&mut self, key: String) -> Result<Option<types::Entry>, store::ReadError> {
        Ok(self.reads.get(&key)?.map(|entry| types::Entry {
            key: entry.key,
            content_type: entry.value.content_type,
            value: entry.value.bytes.to_vec(),
            version: entry.meta.version,
            revision: entry.meta.revision,
        }))
    }

    fn exists(&mut self, key: String) -> Result<bool, store::ReadError> {
        Ok(self.reads.exists(&key)?)
    }

    fn list(&mut self, start: String, end: String, limit: u32) -> Result<Vec<String>, store::ReadError> {
        Ok(self.reads.list(&start, &end, limit)?)
    }
}

impl From<Refusal> for store::ReadError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Limit(why) => Self::Limit(why),
            Refusal::Unavailable(why) => Self::Unavailable(why),
        }
    }
}

impl log::Host for Call {
    fn write(&mut self, level: log::Level, message: String) {
        self.lines.log(level, &message);
    }
}
