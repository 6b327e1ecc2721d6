//! The judgement of one request: all transformers, then all validators, each asked once about all writes it is for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::binding::{Mode, OnFailure};
use super::bindings::brink::hooks::log::Level;
use super::bindings::brink::hooks::types::{self, Replacement, Write};
use super::error::{Error, Rejection, Violation};
use super::guest::Allowance;
use super::hook::Hook;
use super::pace::{QUICK_MEMORY_BYTES, QUICK_OUTPUT_BYTES, STOP_AFTER};
use super::set::Set;
use super::text::{compact_json, cut, one_line};
use super::view::{Facts, Reads, View};
use crate::limits;
use crate::storage::command::{Action, Operation, Precondition, Value};
use crate::telemetry::names;

/// A call that took so long and did not end is its plugin's fault, however long its deadline is: a write does not have more
/// than some times that in all.
const TELLING: Duration = Duration::from_millis(500);

/// What the hooks made of a request that they let through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The operations, with the values that transformers gave them.
    pub operations: Vec<Operation>,
    /// What plugins read to decide: it must still hold when the write is applied.
    pub reads: Vec<Precondition>,
    /// The epoch of the hooks that judged.
    pub epoch: u64,
}

impl Set {
    /// Judges the operations of one request on this thread, which blocks until all hooks have answered.
    ///
    /// # Errors
    ///
    /// [`Error::Rejected`] if a hook refuses, [`Error::Busy`] if the deadline passes before all hooks were asked,
    /// [`Error::Store`] if the view failed, or how a plugin failed.
    pub fn judge(
        self: &Arc<Self>,
        operations: Vec<Operation>,
        view: Arc<dyn View>,
        deadline: Instant,
    ) -> Result<Judged, Error> {
        let mut judgement = Judgement::new(Arc::clone(self), operations, view, deadline);
        while judgement.next().is_some() {
            judgement.step()?;
        }
        Ok(judgement.finish())
    }
}

/// A judgement under way. It advances hook by hook, so that between two hooks it can wait for room without holding
/// any.
pub(super) struct Judgement {
    set: Arc<Set>,
    operations: Vec<Operation>,
    view: Arc<dyn View>,
    deadline: Instant,
    steps: std::vec::IntoIter<Step>,
    facts: Facts,
}

/// One call of one hook, by its place in the set.
#[derive(Clone, Copy)]
struct Step {
    index: usize,
    role: Role,
}

/// What a hook says: the new values by position, and what it read.
type Answer = Result<(Vec<(usize, Bytes)>, Facts), Error>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Transformer,
    Validator,
}

impl Judgement {
    pub(super) fn new(set: Arc<Set>, operations: Vec<Operation>, view: Arc<dyn View>, deadline: Instant) -> Self {
        let mut steps = Vec::new();
        for role in [Role::Transformer, Role::Validator] {
            for (index, hook) in set.hooks().iter().enumerate() {
                let has_role = match role {
                    Role::Transformer => hook.plugin().is_transformer(),
                    Role::Validator => hook.plugin().is_validator(),
                };
                // Whether a hook is for a write depends on its key and kind, which transformers cannot change.
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

    /// Whether the next hook's answer is expected so soon that it can be waited for on an async thread. A plugin that may
    /// read is not: reads may wait for the disk. Nor is one that begins with more memory than it may have there.
    pub(super) fn is_quick(&self) -> bool {
        let Some(hook) = self.next().filter(|hook| !hook.plugin().reads()) else { return false };
        if hook.plugin().start_memory_bytes() > QUICK_MEMORY_BYTES {
            return false;
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.min(hook.allowance().deadline) <= STOP_AFTER {
            return false;
        }
        let matching = self.operations.iter().filter(|operation| hook.binding().matches(operation));
        let (writes, bytes) = matching.fold((0, 0), |(writes, bytes), operation| match &operation.action {
            Action::Put(value) => (writes + 1, bytes + value.bytes.len()),
            Action::Delete => (writes + 1, bytes),
        });
        hook.share().pace.is_quick(writes, bytes)
    }

    /// Leaves out the hook that would be asked next.
    pub(super) fn skip(&mut self) {
        self.steps.next();
    }

    /// Asks the next hook and does what it says.
    pub(super) fn step(&mut self) -> Result<(), Error> {
        self.advance(false).unwrap_or(Ok(()))
    }

    /// As above, on an async thread: for what [`Self::is_quick`] said of the next hook. `None`: it was not, and was stopped;
    /// it is still the next one.
    pub(super) fn step_quickly(&mut self) -> Option<Result<(), Error>> {
        self.advance(true)
    }

    /// Asks the next hook and does what it says. `None`: there is none, or it met a limit that was provisional.
    fn advance(&mut self, is_provisional: bool) -> Option<Result<(), Error>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let Step { index, role } = *self.steps.as_slice().first()?;
        let hook = self.set.hooks().get(index)?;
        if left.is_zero() {
            return Some(Err(Error::Busy { hook: Some(hook.name().to_owned()) }));
        }
        let matching: Vec<usize> = positions(&self.operations, hook);
        let outcome = self.ask(hook, role, &matching, left, is_provisional)?;
        self.steps.next();
        Some(match heed(hook, outcome) {
            Ok((values, facts)) => {
                self.replace(values);
                self.facts.absorb(facts);
                Ok(())
            }
            Err(error) => Err(error),
        })
    }

    pub(super) fn finish(self) -> Judged {
        let epoch = self.set.epoch();
        Judged { operations: self.operations, reads: self.facts.into_preconditions(), epoch }
    }

    fn replace(&mut self, values: Vec<(usize, Bytes)>) {
        for (position, bytes) in values {
            if let Some(Operation { action: Action::Put(value), .. }) = self.operations.get_mut(position) {
                value.bytes = bytes;
            }
        }
    }

    /// Asks a hook, traced and measured. `None` if it met a limit that was provisional.
    fn ask(&self, hook: &Hook, role: Role, matching: &[usize], left: Duration, is_provisional: bool) -> Option<Answer> {
        let span = names::hook_span(hook.name(), hook.plugin().name(), hook.plugin().digest());
        let _entered = span.enter();
        let started_at = Instant::now();
        let mut memory_bytes = 0;
        let own = hook.allowance();
        let allowance = match is_provisional {
            true => Allowance {
                deadline: STOP_AFTER,
                memory_bytes: own.memory_bytes.min(QUICK_MEMORY_BYTES),
                output_bytes: own.output_bytes.min(QUICK_OUTPUT_BYTES),
                is_provisional,
                ..own
            },
            false => Allowance { deadline: own.deadline.min(left), ..own },
        };
        let Some(outcome) = self.call(hook, role, matching, allowance, &mut memory_bytes) else {
            span.record("result", "stopped");
            hook.share().pace.note_stopped();
            return None;
        };
        let result = outcome.as_ref().map_or_else(Error::word, |_| names::ACCEPTED);
        span.record("result", result);
        // A call that had little of the hook's own deadline left says nothing about the plugin if it ran out of time.
        let is_timed_out = matches!(outcome, Err(Error::TimedOut { .. }));
        if !is_timed_out || left >= hook.allowance().deadline.min(TELLING) {
            let has_failed = outcome.as_ref().is_err_and(Error::is_plugin_failure);
            hook.share().pace.note(started_at.elapsed(), has_failed);
        }
        if let Err(error) = outcome.as_ref()
            && error.is_plugin_failure()
        {
            hook.speaker().say(hook.core().observer(), Level::Error, one_line(&error.to_string()));
        }
        hook.calls().ended(started_at.elapsed(), result, memory_bytes);
        Some(outcome)
    }

    fn call(
        &self,
        hook: &Hook,
        role: Role,
        matching: &[usize],
        allowance: Allowance,
        memory_bytes: &mut usize,
    ) -> Option<Answer> {
        let writes: Vec<Write<'_>> =
            matching.iter().filter_map(|position| self.operations.get(*position)).map(as_write).collect();
        let is_provisional = allowance.is_provisional;
        let asked = hook.with_instance(allowance, |guest| {
            guest.open(Arc::clone(&self.view));
            let answer = match role {
                Role::Transformer => guest.transform(&writes),
                Role::Validator => guest.validate(&writes).map(|verdict| verdict.map(|()| Vec::new())),
            };
            *memory_bytes = guest.memory_bytes();
            let is_stopped = is_provisional && (guest.is_cut_short() || answer.as_ref().is_err_and(Error::is_limit));
            (!is_stopped).then(|| (answer, guest.take_reads()))
        });
        match asked {
            Err(error) if is_provisional && error.is_limit() => None,
            Err(error) => Some(Err(error)),
            Ok(asked) => asked.map(|(answer, reads)| self.read_answer(hook, matching, answer, reads)),
        }
    }

    /// What a plugin's answer means.
    fn read_answer(
        &self,
        hook: &Hook,
        matching: &[usize],
        answer: Result<Result<Vec<Replacement>, types::Rejection>, Error>,
        reads: Reads,
    ) -> Answer {
        // A verdict that was reached without an answer from the store is none, whatever it says.
        let (has_read, facts) = close(reads)?;
        match answer? {
            Ok(replacements) => {
                let values = check(&self.operations, matching, replacements).map_err(|what| Error::BadOutput {
                    hook: hook.name().to_owned(),
                    plugin: hook.plugin().name().to_owned(),
                    what,
                })?;
                Ok((values, facts))
            }
            Err(rejection) => Err(Error::Rejected(Box::new(rejected(hook, matching, rejection, has_read)))),
        }
    }
}

/// What of an answer counts: nothing from a hook that only watches, nor that a hook failed which is skipped then.
fn heed(hook: &Hook, answer: Answer) -> Answer {
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

fn close(reads: Reads) -> Result<(bool, Facts), Error> {
    let has_read = !reads.is_empty();
    Ok((has_read, reads.close().map_err(Error::Store)?))
}

fn positions(operations: &[Operation], hook: &Hook) -> Vec<usize> {
    let matching = operations.iter().enumerate().filter(|(_, operation)| hook.binding().matches(operation));
    matching.map(|(position, _)| position).collect()
}

fn as_write(operation: &Operation) -> Write<'_> {
    let (content_type, value) = match &operation.action {
        Action::Put(value) => (value.content_type.as_str(), Some(&*value.bytes)),
        Action::Delete => ("", None),
    };
    Write { key: &operation.key, content_type, value }
}

/// Checks what a transformer returned: the new values, by position in the request.
fn check(
    operations: &[Operation],
    matching: &[usize],
    replacements: Vec<Replacement>,
) -> Result<Vec<(usize, Bytes)>, String> {
    let mut is_replaced = vec![false; matching.len()];
    let mut values = Vec::with_capacity(replacements.len().min(matching.len()));
    for Replacement { item, value } in replacements {
        let index = item as usize;
        let (Some(position), Some(is_replaced)) = (matching.get(index), is_replaced.get_mut(index)) else {
            return Err(format!("it replaces write {item} of {}", matching.len()));
        };
        if std::mem::replace(is_replaced, true) {
            return Err(format!("it replaces write {item} twice"));
        }
        let Some(Operation { action: Action::Put(old), .. }) = operations.get(*position) else {
            return Err(format!("it gives a value to write {item}, which is a deletion"));
        };
        values.push((*position, check_value(item, old, value)?));
    }
    Ok(values)
}

fn check_value(item: u32, old: &Value, bytes: Vec<u8>) -> Result<Bytes, String> {
    let bytes = match old.is_json() {
        true => compact_json(bytes).map_err(|error| format!("the new value of write {item} is not JSON ({error})"))?,
        false => bytes,
    };
    if bytes.len() > limits::VALUE_BYTES_MAX {
        let (found, limit) = (bytes.len(), limits::VALUE_BYTES_MAX);
        return Err(format!("the new value of write {item} has {found} bytes; at most {limit} are allowed"));
    }
    Ok(bytes.into())
}

/// A plugin's refusal in bounded form, its items counted as the client counts them.
fn rejected(hook: &Hook, matching: &[usize], rejection: types::Rejection, has_read: bool) -> Rejection {
    let text = |text: String| cut(&text, limits::PLUGIN_TEXT_BYTES_MAX).to_owned();
    let position = |item: u32| matching.get(item as usize).and_then(|position| u32::try_from(*position).ok());
    let violations = rejection.violations.into_iter().take(limits::PLUGIN_VIOLATIONS_MAX);
    Rejection {
        hook: hook.name().to_owned(),
        plugin: hook.plugin().name().to_owned(),
        code: text(rejection.code),
        message: text(rejection.message),
        violations: violations
            .map(|violation| Violation {
                item: position(violation.item),
                path: text(violation.path),
                code: text(violation.code),
                message: text(violation.message),
            })
            .collect(),
        has_read,
    }
}
