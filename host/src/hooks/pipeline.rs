//! The way of writes through the hooks: off the async threads, in turn, and fair among hooks.
//!
//! Plugins are computation, so a node runs a few at once per core and no more. A judgement takes its hooks one by one.
//! For each it first waits for the hook's own share, then for room on the node, and holds neither while it waits for
//! the other hook's: a hook whose plugin is slow keeps its own writes waiting and nobody else's. Where a call runs depends on
//! how fast the hook's calls have been (see `pace`): where the request is handled if it takes less than waking another thread
//! and being woken by it, on a blocking thread, or on one that stands back behind the threads that serve.

use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{sleep, timeout_at};
use tracing::{Instrument, Span};

use super::binding::{Mode, OnFailure};
use super::error::Error;
use super::hook::Hook;
use super::judge::{Judged, Judgement};
use super::set::Active;
use super::view::View;
use crate::limits;
use crate::storage::command::Operation;
use crate::telemetry::{names, request_trace_id, within_request_sync};

/// Plugin instances that run at once, per core. More than one, since plugins may wait for reads.
pub(super) const INSTANCES_PER_CORE: usize = 4;

/// Runs judgements for a node. Cheap to clone; all clones share the same room.
#[derive(Clone)]
pub struct Pipeline {
    active: Active,
    room: Arc<Semaphore>,
    /// Room of heavy hooks: their calls wait for one another, and nobody else's for them.
    background_room: Arc<Semaphore>,
    queue: Arc<Semaphore>,
}

/// Room for calls of one hook, given back when dropped.
struct Admission {
    _share: OwnedSemaphorePermit,
}

/// Plugin instances that run at once on this machine.
pub(super) fn instances_max() -> usize {
    let cores = available_parallelism().map_or(1, NonZero::get);
    cores.saturating_mul(INSTANCES_PER_CORE).min(limits::PLUGIN_INSTANCES_MAX)
}

/// Calls of heavy hooks that run at once, apart from those: one a core.
pub(super) fn background_max() -> usize {
    (instances_max() / INSTANCES_PER_CORE).max(1)
}

impl Pipeline {
    /// A pipeline for the hooks that are in force at `active`.
    pub fn new(active: Active) -> Self {
        let room = Arc::new(Semaphore::new(instances_max()));
        let background_room = Arc::new(Semaphore::new(background_max()));
        let queue = Arc::new(Semaphore::new(limits::PLUGIN_QUEUE_MAX));
        Self { active, room, background_room, queue }
    }

    /// Where the hooks in force are found.
    pub fn active(&self) -> &Active {
        &self.active
    }

    /// Judges the operations of one request under the hooks in force now. If no hook is for them, returns at once.
    ///
    /// # Errors
    ///
    /// As for [`Set::judge`](super::Set::judge); [`Error::Busy`] also if too many writes are waiting already.
    pub async fn judge(
        &self,
        operations: Vec<Operation>,
        view: Arc<dyn View>,
        deadline: Instant,
    ) -> Result<Judged, Error> {
        let set = self.active.current();
        if !set.matches(&operations) {
            return Ok(Judged { operations, reads: Vec::new(), epoch: set.epoch() });
        }
        let request = Span::current();
        let judgement = Judgement::new(set, operations, view, deadline);
        self.ask_all(judgement, deadline, &request).instrument(names::hooks_span()).await
    }

    /// Asks the hooks one by one.
    async fn ask_all(&self, mut judgement: Judgement, deadline: Instant, request: &Span) -> Result<Judged, Error> {
        let _place = Arc::clone(&self.queue).try_acquire_owned().map_err(|_| Error::Busy { hook: None })?;
        while let Some(hook) = judgement.next() {
            let Some(admission) = admit(hook, deadline).await? else {
                tracing::debug!(hook = hook.name(), "no room for the hook; left out");
                judgement.skip();
                continue;
            };
            let background = hook.share().pace.is_heavy().then(|| Arc::clone(hook.core().background()));
            let room = if background.is_some() { &self.background_room } else { &self.room };
            let room = timeout_at(deadline.into(), Arc::clone(room).acquire_owned()).await;
            let Ok(Ok(room)) = room else { return Err(Error::Busy { hook: None }) };
            if background.is_none()
                && judgement.is_quick()
                && let Some(answer) = guard(|| judgement.step_quickly())?
            {
                answer?;
                continue;
            }
            judgement = run(judgement, background, admission, room, request.clone()).await?;
        }
        Ok(judgement.finish())
    }
}

/// Waits for the hook's share. `None`: the hook is one that can be left out, and there was no room in time.
async fn admit(hook: &Hook, deadline: Instant) -> Result<Option<Admission>, Error> {
    let binding = hook.binding();
    if let Some(admission) = try_admit(hook) {
        return Ok(Some(admission));
    }
    let can_skip = match (binding.mode, binding.on_failure) {
        // A hook that only watches must not hold writes up.
        (Mode::Monitor, _) => return Ok(None),
        (Mode::Enforce, OnFailure::Skip) => true,
        (Mode::Enforce, OnFailure::Reject) => false,
    };
    let patience = if can_skip { Duration::from_millis(binding.deadline_ms) } else { Duration::MAX };
    let until = Instant::now().checked_add(patience).map_or(deadline, |until| until.min(deadline));
    match timeout_at(until.into(), wait_for_share(hook)).await {
        Ok(Ok(admission)) => Ok(Some(admission)),
        Ok(Err(_)) | Err(_) if can_skip && Instant::now() < deadline => Ok(None),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(Error::Busy { hook: Some(hook.name().to_owned()) }),
    }
}

fn try_admit(hook: &Hook) -> Option<Admission> {
    let share = hook.share();
    if !share.pace.rest().is_zero() {
        return None;
    }
    let permits = Arc::clone(&share.permits).try_acquire_many_owned(share.permits_needed()).ok()?;
    Some(Admission { _share: permits })
}

async fn wait_for_share(hook: &Hook) -> Result<Admission, Error> {
    let busy = || Error::Busy { hook: Some(hook.name().to_owned()) };
    let share = hook.share();
    let _place = Arc::clone(&share.queue).try_acquire_owned().map_err(|_| busy())?;
    loop {
        let needed = share.permits_needed();
        let permits = Arc::clone(&share.permits).acquire_many_owned(needed).await.map_err(|_| busy())?;
        // The hook may have become stuck while this write waited, and then needs more.
        if share.permits_needed() > needed {
            continue;
        }
        let rest = share.pace.rest();
        if !rest.is_zero() {
            // All others wait behind this one.
            sleep(rest).await;
        }
        return Ok(Admission { _share: permits });
    }
}

/// Asks the next hook on another thread, and those after it as long as they belong there and their shares have room.
async fn run(
    mut judgement: Judgement,
    background: Option<Arc<ThreadPool>>,
    admission: Admission,
    room: OwnedSemaphorePermit,
    request: Span,
) -> Result<Judgement, Error> {
    let is_heavy = background.is_some();
    let (span, trace_id) = (Span::current(), request_trace_id());
    let ask = move || {
        // Both: a log line looks for its trace id in the spans that its thread has entered, and the inner one may be hidden
        // from the log.
        let _request = request.enter();
        let _span = span.enter();
        // Held by this thread, not by the waiting task: a client that goes away must not free room that is in use.
        let _room = room;
        let mut admission = Some(admission);
        while admission.is_some() && judgement.next().is_some() {
            judgement.step()?;
            drop(admission.take());
            admission = judgement.next().filter(|hook| hook.share().pace.is_heavy() == is_heavy).and_then(try_admit);
        }
        Ok(judgement)
    };
    let work = move || within_request_sync(trace_id, || guard(ask).and_then(|judgement| judgement));
    let (done, answer) = oneshot::channel();
    let work = move || drop(done.send(work()));
    match background {
        Some(background) => background.spawn(work),
        None => drop(tokio::task::spawn_blocking(work)),
    }
    answer.await.unwrap_or_else(|_| Err(Error::Interrupted { detail: "the node is stopping".to_owned() }))
}

/// A panic of the host while it asks a plugin is an error like any other.
fn guard<T>(ask: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(ask)).map_err(|_| Error::Interrupted { detail: "it panicked".to_owned() })
}
