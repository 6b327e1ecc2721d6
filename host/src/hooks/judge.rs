//! The judgement of one request: all transformers, then all validators. Each hook is asked once about all writes that it
//! matches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::{self, NewValues};
use super::binding::{Mode, OnFailure};
use super::error::Error;
use super::hook::Hook;
use super::scheduler::{INLINE_DEADLINE, INLINE_MEMORY_BYTES, INLINE_OUTPUT_BYTES};
use super::set::Set;
use super::view::{Facts, Reads, View};
use crate::sandbox::{CallLimits, CallOutcome, wit};
use crate::storage::command::{Action, Operation, Precondition};
use crate::telemetry::names;

/// A call that had this much time and missed its deadline says that the plugin is slow, even if the hook's deadline is longer:
/// a write has only a few times this long in all.
const TELLING: Duration = Duration::from_millis(500);

/// A request that no hook refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The operations, with the values that transformers gave them.
    pub operations: Vec<Operation>,
    /// What plugins read to decide: it must still hold when the write is applied.
    pub reads: Vec<Precondition>,
    /// The epoch of the hooks that judged.
    pub epoch: u64,
}

/// Judges the operations of one request on this thread, which blocks until all hooks have answered.
///
/// # Errors
///
/// [`Error::Rejected`] if a hook refuses, [`Error::Busy`] if the deadline passes before all hooks were asked,
/// [`Error::Store`] if the view failed, or how a plugin failed.
pub fn judge(
    set: &Arc<Set>,
    operations: Vec<Operation>,
    view: Arc<dyn View>,
    deadline: Instant,
) -> Result<Judged, Error> {
    let mut judgement = Judgement::new(Arc::clone(set), operations, view, deadline);
    while judgement.next().is_some() {
        judgement.step()?;
    }
    Ok(judgement.finish())
}

/// A judgement under way. It advances hook by hook, so that it can wait for room between two hooks without holding any.
pub(super) struct Judgement {
    set: Arc<Set>,
    operations: Vec<Operation>,
    view: Arc<dyn View>,
    deadline: Instant,
    steps: std::vec::IntoIter<Step>,
    facts: Facts,
}

/// One call of one hook, by its index in the set.
#[derive(Clone, Copy)]
struct Step {
    index: usize,
    role: Role,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Transformer,
    Validator,
}

/// A hook's answer: the new values, and what it read.
type Answer = Result<(NewValues, Facts), Error>;

impl Judgement {
    pub(super) fn new(set: Arc<Set>, operations: Vec<Operation>, view: Arc<dyn View>, deadline: Instant) -> Self {
        let mut steps = Vec::new();
        for role in [Role::Transformer, Role::Validator] {
            for (index, hook) in set.hooks().iter().enumerate() {
                let has_role = match role {
                    Role::Transformer => hook.plugin().is_transformer(),
                    Role::Validator => hook.plugin().is_validator(),
                };
                // Whether a hook matches a write depends on its key and kind, which transformers cannot change.
                if has_role && operations.iter().any(|operation| hook.binding().matches(operation)) {
                    steps.push(Step { index, role });
                }
            }
        }
        Self { set, operations, view, deadline, steps: steps.into_iter(), facts: Facts::default() }
    }

    /// The hook that is asked next.
    pub(super) fn next(&self) -> Option<&Hook> {
        self.set.hooks().get(self.steps.as_slice().first()?.index)
    }

    /// Whether the next hook may be asked inline. A hook that can read may not, because reads may wait for a disk; nor one
    /// whose plugin starts with more memory than an inline call may have.
    pub(super) fn allows_inline(&self) -> bool {
        let Some(hook) = self.next().filter(|hook| !hook.plugin().can_read()) else { return false };
        if hook.plugin().start_memory_bytes() > INLINE_MEMORY_BYTES {
            return false;
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.min(hook.limits().deadline) <= INLINE_DEADLINE {
            return false;
        }
        let matching = self.operations.iter().filter(|operation| hook.binding().matches(operation));
        let (writes, bytes) = matching.fold((0, 0), |(writes, bytes), operation| match &operation.action {
            Action::Put(value) => (writes + 1, bytes + value.bytes.len()),
            Action::Delete => (writes + 1, bytes),
        });
        hook.share().history().allows_inline(writes, bytes)
    }

    /// Leaves out the next hook.
    pub(super) fn skip(&mut self) {
        self.steps.next();
    }

    /// Asks the next hook, and acts on its answer.
    pub(super) fn step(&mut self) -> Result<(), Error> {
        self.advance(false).unwrap_or(Ok(()))
    }

    /// The same inline, if [`Self::allows_inline`]. `None`: the call was interrupted, and the hook is still the next one.
    pub(super) fn step_inline(&mut self) -> Option<Result<(), Error>> {
        self.advance(true)
    }

    /// The outcome, once all hooks were asked.
    pub(super) fn finish(self) -> Judged {
        let epoch = self.set.epoch();
        Judged { operations: self.operations, reads: self.facts.into_preconditions(), epoch }
    }

    /// Asks the next hook, and acts on its answer. `None`: there is no next hook, or the inline call was interrupted.
    fn advance(&mut self, is_inline: bool) -> Option<Result<(), Error>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let Step { index, role } = *self.steps.as_slice().first()?;
        let hook = self.set.hooks().get(index)?;
        if left.is_zero() {
            return Some(Err(Error::Busy { hook: Some(hook.name().to_owned()) }));
        }
        let matching = self.operations.iter().enumerate().filter(|(_, operation)| hook.binding().matches(operation));
        let positions: Vec<usize> = matching.map(|(position, _)| position).collect();
        let answer = self.ask(hook, role, &positions, left, is_inline)?;
        self.steps.next();
        Some(applied(hook, answer).map(|(values, facts)| {
            self.replace(values);
            self.facts.absorb(facts);
        }))
    }

    fn replace(&mut self, values: NewValues) {
        for (position, bytes) in values {
            if let Some(Operation { action: Action::Put(value), .. }) = self.operations.get_mut(position) {
                value.bytes = bytes;
            }
        }
    }

    /// Asks a hook, traced and measured. `None`: the inline call was interrupted.
    fn ask(&self, hook: &Hook, role: Role, positions: &[usize], left: Duration, is_inline: bool) -> Option<Answer> {
        let span = names::hook_span(hook.name(), hook.plugin().name(), hook.plugin().digest());
        let _entered = span.enter();
        let started_at = Instant::now();
        let outcome = self.call(hook, role, positions, call_limits(hook, left, is_inline));
        let memory_bytes = outcome.memory_bytes;
        if is_inline && outcome.has_met_limit {
            span.record("result", "stopped");
            hook.share().history().record_interrupted();
            return None;
        }
        let answer = self.read(hook, positions, outcome);
        let result = answer.as_ref().map_or_else(Error::word, |_| names::ACCEPTED);
        span.record("result", result);
        // A call that had little of the hook's own deadline left says nothing about the plugin if it ran out of time.
        let is_timed_out = answer.as_ref().is_err_and(Error::is_timed_out);
        if !is_timed_out || left >= hook.limits().deadline.min(TELLING) {
            let has_failed = answer.as_ref().is_err_and(Error::is_plugin_failure);
            hook.share().history().record(started_at.elapsed(), has_failed);
        }
        if let Err(error) = &answer
            && error.is_plugin_failure()
        {
            hook.log_error(error);
        }
        hook.calls()(started_at.elapsed(), result, memory_bytes);
        Some(answer)
    }

    fn call(&self, hook: &Hook, role: Role, positions: &[usize], limits: CallLimits) -> CallOutcome<Reads> {
        let writes = positions.iter().filter_map(|position| self.operations.get(*position)).map(answer::as_write);
        let writes: Vec<wit::Write<'_>> = writes.collect();
        let reads = Reads::of(Arc::clone(&self.view));
        match role {
            Role::Transformer => hook.configured().transform(limits, reads, &writes),
            Role::Validator => hook.configured().validate(limits, reads, &writes),
        }
    }

    /// Translates the outcome of a call.
    fn read(&self, hook: &Hook, positions: &[usize], outcome: CallOutcome<Reads>) -> Answer {
        // An answer that was found while the storage failed does not count, whatever it is.
        let has_read = !outcome.reads.is_empty();
        let facts = outcome.reads.close().map_err(Error::Store)?;
        match outcome.answer.map_err(|failure| hook.failed(failure))? {
            Ok(replacements) => {
                let values = answer::new_values(&self.operations, positions, replacements);
                let (name, plugin) = (hook.name(), hook.plugin().name());
                let values =
                    values.map_err(|what| Error::BadOutput { hook: name.into(), plugin: plugin.into(), what })?;
                Ok((values, facts))
            }
            Err(rejection) => Err(Error::Rejected(Box::new(answer::rejection(hook, positions, rejection, has_read)))),
        }
    }
}

/// The limits of one call: the hook's own, but no more time than is left for the write; less if it runs inline.
fn call_limits(hook: &Hook, left: Duration, is_inline: bool) -> CallLimits {
    let own = hook.limits();
    match is_inline {
        true => CallLimits {
            deadline: INLINE_DEADLINE,
            memory_bytes: own.memory_bytes.min(INLINE_MEMORY_BYTES),
            output_bytes: own.output_bytes.min(INLINE_OUTPUT_BYTES),
            is_provisional: true,
        },
        false => CallLimits { deadline: own.deadline.min(left), ..own },
    }
}

/// The part of an answer that takes effect: nothing of a hook in monitor mode, nor of a failed hook that is skipped.
fn applied(hook: &Hook, answer: Answer) -> Answer {
    let is_monitor = hook.binding().mode == Mode::Monitor;
    match answer {
        Ok(_) if is_monitor => Ok(Default::default()),
        Err(error) if is_monitor => {
            tracing::info!(hook = hook.name(), plugin = hook.plugin().name(), verdict = error.word(), "monitored");
            Ok(Default::default())
        }
        Err(error) if error.is_plugin_failure() && hook.binding().on_failure == OnFailure::Skip => {
            let reason = error.to_string();
            tracing::warn!(hook = hook.name(), plugin = hook.plugin().name(), reason, "failed hook skipped");
            Ok(Default::default())
        }
        answer => answer,
    }
}
