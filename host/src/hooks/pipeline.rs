//! The way of a request through the hooks in force: hook by hook, each in its turn and where the scheduler says.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::{Instrument, Span};

use super::binding::{Mode, OnFailure};
use super::error::Error;
use super::hook::Hook;
use super::judge::{Judged, Judgement};
use super::scheduler::{Scheduler, Share};
use super::set::Active;
use super::view::View;
use crate::storage::command::Operation;
use crate::telemetry::{names, request_trace_id, within_request_sync};

/// Judges requests for a node. Cheap to clone; all clones share the same room.
#[derive(Clone)]
pub struct Pipeline {
    active: Active,
    scheduler: Scheduler,
}

impl Pipeline {
    /// A pipeline for the hooks in force.
    pub fn new(active: Active) -> Self {
        Self { active, scheduler: Scheduler::new() }
    }

    /// Where the hooks in force are found.
    pub fn active(&self) -> &Active {
        &self.active
    }

    /// Judges the operations of one request under the hooks in force now. If no hook matches, returns at once. Fails as
    /// [`judge`](super::judge()) does, and with [`Error::Busy`] if too many writes are waiting already.
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

    async fn ask_all(&self, mut judgement: Judgement, deadline: Instant, request: &Span) -> Result<Judged, Error> {
        let _place = self.scheduler.enqueue().ok_or(Error::Busy(None))?;
        while let Some(hook) = judgement.next() {
            let Some(turn) = turn_of(hook, deadline).await? else {
                tracing::debug!(hook = hook.name(), "no room for the hook; left out");
                judgement.skip();
                continue;
            };
            let background = hook.share().background();
            let room = self.scheduler.room(background.is_some(), deadline).await.ok_or(Error::Busy(None))?;
            if background.is_none()
                && judgement.allows_inline()
                && let Some(answer) = guard(|| judgement.step(true))?
            {
                answer?;
                continue;
            }
            judgement = ask_on(background, judgement, turn, room, request.clone()).await?;
        }
        Ok(judgement.finish())
    }
}

/// Waits for the hook's turn. `None`: the hook can be left out, and there was no turn in time.
async fn turn_of(hook: &Hook, deadline: Instant) -> Result<Option<OwnedSemaphorePermit>, Error> {
    if let Some(turn) = hook.share().try_turn() {
        return Ok(Some(turn));
    }
    let binding = hook.binding();
    let (until, can_skip) = match (binding.mode, binding.on_failure) {
        // A hook that only monitors must not delay writes.
        (Mode::Monitor, _) => return Ok(None),
        (Mode::Enforce, OnFailure::Skip) => {
            let patience = Duration::from_millis(binding.deadline_ms);
            (Instant::now().checked_add(patience).map_or(deadline, |until| until.min(deadline)), true)
        }
        (Mode::Enforce, OnFailure::Reject) => (deadline, false),
    };
    match hook.share().turn(until).await {
        Some(turn) => Ok(Some(turn)),
        None if can_skip && Instant::now() < deadline => Ok(None),
        None => Err(Error::Busy(Some(hook.name().to_owned()))),
    }
}

/// Asks the next hook on a background thread or a blocking one, and the hooks after it as long as they belong there and it
/// is their turn.
async fn ask_on(
    background: Option<Arc<ThreadPool>>,
    mut judgement: Judgement,
    turn: OwnedSemaphorePermit,
    room: OwnedSemaphorePermit,
    request: Span,
) -> Result<Judgement, Error> {
    let is_background = background.is_some();
    let (span, trace_id) = (Span::current(), request_trace_id());
    let ask = move || {
        // Both: a log line finds its trace id in the spans that its thread has entered, and the inner one may be hidden from it.
        let _request = request.enter();
        let _span = span.enter();
        // Held by this thread, not by the waiting task: a client that goes away must not free room that is in use.
        let _room = room;
        let mut turn = Some(turn);
        while turn.is_some()
            && let Some(answered) = judgement.step(false)
        {
            answered?;
            drop(turn.take());
            let share = judgement.next().map(Hook::share);
            turn = share.filter(|share| share.history.is_slow() == is_background).and_then(Share::try_turn);
        }
        Ok(judgement)
    };
    let ask = move || within_request_sync(trace_id, || guard(ask).and_then(|judgement| judgement));
    let (done, answer) = oneshot::channel();
    let calls = move || drop(done.send(ask()));
    match background {
        Some(threads) => threads.spawn(calls),
        None => drop(tokio::task::spawn_blocking(calls)),
    }
    answer.await.unwrap_or_else(|_| Err(Error::Interrupted("the node is stopping")))
}

/// Turns a panic of the host while it asks a plugin into an error.
fn guard<T>(ask: impl FnOnce() -> T) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(ask)).map_err(|_| Error::Interrupted("it panicked"))
}
