//! The judgement of one request: all transformers, then all validators. Each hook is asked once about all writes that it
//! matches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::binding::{Mode, OnFailure};
use super::error::{Error, Rejection, Violation};
use super::hook::Hook;
use super::scheduler::{INLINE_DEADLINE, INLINE_MEMORY_BYTES, INLINE_OUTPUT_BYTES};
use super::set::Set;
use super::view::{Facts, Reads, View};
use crate::sandbox::{CallLimits, CallOutcome, Error as Failure, Role, cut, wit};
use crate::storage::command::{Action, Operation, Precondition, Value};
use crate::telemetry::names;
use crate::{json, limits};

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

/// Judges the operations of one request on this thread, which blocks until all hooks have answered. The errors are those of
/// the room's failure model; [`Error::Busy`] means that the deadline has passed.
pub fn judge(
    set: &Arc<Set>,
    operations: Vec<Operation>,
    view: Arc<dyn View>,
    deadline: Instant,
) -> Result<Judged, Error> {
    let mut judgement = Judgement::new(Arc::clone(set), operations, view, deadline);
    while let Some(answered) = judgement.step(false) {
        answered?;
    }
    Ok(judgement.finish())
}

/// A judgement under way. It advances hook by hook, so that it can wait for room between two hooks without holding any.
pub(super) struct Judgement {
    set: Arc<Set>,
    operations: Vec<Operation>,
    view: Arc<dyn View>,
    deadline: Instant,
    /// The calls to come: the index of a hook in the set, and the role in which it is asked.
    steps: std::vec::IntoIter<(usize, Role)>,
    facts: Facts,
}

/// New values of writes, by their positions in the request.
type NewValues = Vec<(usize, Bytes)>;

/// A hook's answer: the new values, and what it read.
type Answer = Result<(NewValues, Facts), Error>;

impl Judgement {
    pub(super) fn new(set: Arc<Set>, operations: Vec<Operation>, view: Arc<dyn View>, deadline: Instant) -> Self {
        let mut steps = Vec::new();
        for role in [Role::Transformer, Role::Validator] {
            for (index, hook) in set.hooks().iter().enumerate() {
                // Whether a hook matches a write depends on its key and kind, which transformers cannot change.
                if hook.plugin().has(role) && operations.iter().any(|operation| hook.binding().matches(operation)) {
                    steps.push((index, role));
                }
            }
        }
        Self { set, operations, view, deadline, steps: steps.into_iter(), facts: Facts::default() }
    }

    pub(super) fn next(&self) -> Option<&Hook> {
        self.set.hooks().get(self.steps.as_slice().first()?.0)
    }

    /// Whether the next hook may be asked inline. A hook that can read may not, because reads may wait for a disk; nor one
    /// whose plugin starts with more memory than an inline call may have.
    pub(super) fn allows_inline(&self) -> bool {
        let Some(hook) = self.next().filter(|hook| !hook.plugin().can_read()) else { return false };
        if hook.plugin().start_memory_bytes() > INLINE_MEMORY_BYTES {
            return false;
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.min(hook.limits.deadline) <= INLINE_DEADLINE {
            return false;
        }
        let matching = self.operations.iter().filter(|operation| hook.binding().matches(operation));
        let (writes, bytes) = matching.fold((0, 0), |(writes, bytes), operation| match &operation.action {
            Action::Put(value) => (writes + 1, bytes + value.bytes.len()),
            Action::Delete => (writes + 1, bytes),
        });
        hook.share().history.allows_inline(writes, bytes)
    }

    pub(super) fn skip(&mut self) {
        self.steps.next();
    }

    /// Asks the next hook, and acts on its answer. It is asked inline only if [`Self::allows_inline`].
    ///
    /// `None`: all hooks were asked; or an inline call was interrupted, and its hook is still the next one.
    pub(super) fn step(&mut self, is_inline: bool) -> Option<Result<(), Error>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let (index, role) = *self.steps.as_slice().first()?;
        let hook = self.set.hooks().get(index)?;
        if left.is_zero() {
            return Some(Err(Error::Busy(Some(hook.name().to_owned()))));
        }
        let matching = self.operations.iter().enumerate().filter(|(_, operation)| hook.binding().matches(operation));
        let positions: Vec<usize> = matching.map(|(position, _)| position).collect();
        let answer = self.ask(hook, role, &positions, left, is_inline)?;
        self.steps.next();
        Some(applied(hook, answer).and_then(|(values, facts)| {
            let is_changed = !values.is_empty();
            for (position, bytes) in values {
                if let Some(Operation { action: Action::Put(value), .. }) = self.operations.get_mut(position) {
                    value.bytes = bytes;
                }
            }
            self.facts.absorb(facts);
            if is_changed { check_size(hook, &self.operations) } else { Ok(()) }
        }))
    }

    pub(super) fn finish(self) -> Judged {
        let epoch = self.set.epoch();
        Judged { operations: self.operations, reads: self.facts.into_preconditions(), epoch }
    }

    /// Asks a hook, traced and measured. `None`: the inline call was interrupted.
    fn ask(&self, hook: &Hook, role: Role, positions: &[usize], left: Duration, is_inline: bool) -> Option<Answer> {
        let span = names::hook_span(hook.name(), hook.plugin().name(), hook.plugin().digest());
        let _entered = span.enter();
        let started_at = Instant::now();
        let writes = positions.iter().filter_map(|position| self.operations.get(*position)).map(as_write);
        let writes: Vec<wit::Write<'_>> = writes.collect();
        let reads = Reads::of(Arc::clone(&self.view), &self.facts);
        let outcome = hook.call(role, call_limits(hook, left, is_inline), reads, &writes);
        let memory_bytes = outcome.memory_bytes;
        if is_inline && outcome.has_met_limit {
            span.record("result", "stopped");
            hook.share().history.record_interrupted();
            return None;
        }
        let answer = self.read(hook, positions, outcome);
        let result = answer.as_ref().map_or_else(Error::word, |_| names::ACCEPTED);
        span.record("result", result);
        // A call that had little of the hook's own deadline left says nothing about the plugin if it ran out of time.
        let is_timed_out = matches!(&answer, Err(Error::Failed { failure: Failure::TimedOut { .. }, .. }));
        if !is_timed_out || left >= hook.limits.deadline.min(TELLING) {
            let has_failed = answer.as_ref().is_err_and(Error::is_plugin_failure);
            hook.share().history.record(started_at.elapsed(), has_failed);
        }
        if let Err(error) = &answer
            && error.is_plugin_failure()
        {
            hook.log_error(error);
        }
        hook.calls()(started_at.elapsed(), result, memory_bytes);
        Some(answer)
    }

    fn read(&self, hook: &Hook, positions: &[usize], outcome: CallOutcome<Reads>) -> Answer {
        // An answer that was found while the storage failed does not count, whatever it is.
        let has_read = !outcome.reads.is_empty();
        let facts = outcome.reads.close().map_err(Error::Store)?;
        match outcome.answer.map_err(|failure| hook.failed(failure))? {
            Ok(replacements) => {
                let values = new_values(&self.operations, positions, replacements);
                let (name, plugin) = (hook.name(), hook.plugin().name());
                let values =
                    values.map_err(|what| Error::BadOutput { hook: name.into(), plugin: plugin.into(), what })?;
                Ok((values, facts))
            }
            Err(rejection) => Err(Error::Rejected(Box::new(rejection_by(hook, positions, rejection, has_read)))),
        }
    }
}

/// The limits of one call: the hook's own, but no more time than is left for the write; less if it runs inline.
fn call_limits(hook: &Hook, left: Duration, is_inline: bool) -> CallLimits {
    let own = hook.limits;
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

/// Refuses a write as soon as it is too large to be proposed, before more hooks enlarge it.
fn check_size(hook: &Hook, operations: &[Operation]) -> Result<(), Error> {
    let values = operations.iter().filter_map(|operation| match &operation.action {
        Action::Put(value) => Some(value.bytes.len()),
        Action::Delete => None,
    });
    match values.sum() {
        0..=limits::COMMAND_BYTES_MAX => Ok(()),
        bytes => {
            let (hook, plugin) = (hook.name().to_owned(), hook.plugin().name().to_owned());
            Err(Error::Enlarged { hook, plugin, bytes })
        }
    }
}

fn as_write(operation: &Operation) -> wit::Write<'_> {
    let (content_type, value) = match &operation.action {
        Action::Put(value) => (&*value.content_type, Some(&*value.bytes)),
        Action::Delete => ("", None),
    };
    wit::Write { key: &operation.key, content_type, value }
}

/// The values that a transformer returned for the operations at these positions. An error says why they cannot be used.
fn new_values(
    operations: &[Operation],
    positions: &[usize],
    replacements: Vec<wit::Replacement>,
) -> Result<NewValues, String> {
    let mut is_replaced = vec![false; positions.len()];
    let mut values = Vec::with_capacity(replacements.len().min(positions.len()));
    for wit::Replacement { item, value } in replacements {
        let index = item as usize;
        let (Some(position), Some(is_replaced)) = (positions.get(index), is_replaced.get_mut(index)) else {
            return Err(format!("it replaces write {item} of {}", positions.len()));
        };
        if std::mem::replace(is_replaced, true) {
            return Err(format!("it replaces write {item} twice"));
        }
        let Some(Operation { action: Action::Put(old), .. }) = operations.get(*position) else {
            return Err(format!("it gives a value to write {item}, which is a deletion"));
        };
        values.push((*position, new_value(item, old, value)?));
    }
    Ok(values)
}

fn new_value(item: u32, old: &Value, bytes: Vec<u8>) -> Result<Bytes, String> {
    let mut bytes = Bytes::from(bytes);
    let not_json = |error| format!("the new value of write {item} is not JSON ({error})");
    if old.is_json() {
        bytes = json::compact(bytes).map_err(not_json)?;
    } else if old.is_json_syntax() {
        json::check(&bytes, limits::JSON_LEVELS_MAX).map_err(not_json)?;
    }
    if bytes.len() > limits::VALUE_BYTES_MAX {
        let (found, limit) = (bytes.len(), limits::VALUE_BYTES_MAX);
        return Err(format!("the new value of write {item} has {found} bytes; at most {limit} are allowed"));
    }
    Ok(bytes)
}

/// A plugin's refusal of the operations at these positions.
fn rejection_by(hook: &Hook, positions: &[usize], rejection: wit::Rejection, has_read: bool) -> Rejection {
    let text = |text: String| cut(&text, limits::PLUGIN_TEXT_BYTES_MAX).to_owned();
    let position = |item: u32| positions.get(item as usize).and_then(|position| u32::try_from(*position).ok());
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
