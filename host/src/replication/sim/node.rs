//! A node of a simulation: its disks, and while it runs a runtime of its own with a clock of its own.
//!
//! All that a node does happens on its runtime, so that dropping the runtime is the node's death: every task ends at the
//! await point it has come to, with nothing cleaned up beyond what its destructors do. The clock of the runtime moves
//! only when the world lets the node run, by as much as the node's own rate makes of the time that has passed.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::network::{Outbox, SimTransport};
use crate::replication::blocking::Blocking;
use crate::replication::shared::lock;
use crate::replication::{Handle, Options, StartError, Timing};
use crate::storage::memory::SimDisk;
use crate::storage::{Data, FreeSpace, Log, simulated_data, simulated_log};
use crate::telemetry::Telemetry;

/// Memory for entries that were read lately.
const CACHE_BYTES: u64 = 64 * 1024;

/// A node, running or not.
pub(super) struct Node {
    pub(super) number: usize,
    pub(super) url: String,
    peer_urls: Vec<String>,
    pub(super) log_disk: SimDisk,
    pub(super) data_disk: SimDisk,
    /// How fast the node's clock runs, in parts per thousand.
    pub(super) clock_permille: u64,
    pub(super) running: Option<Running>,
    /// Until when a paused node stands still.
    pub(super) paused_until_ms: Option<u64>,
    /// A node that is down refuses connections; one whose host is down says nothing.
    pub(super) is_host_up: bool,
    /// How often it was started.
    pub(super) starts: u64,
    snapshot_entries: u64,
    /// Where it spools snapshots: on a real disk, which loses nothing.
    spool_dir: tempfile::TempDir,
}

/// A node that runs.
pub(super) struct Running {
    runtime: tokio::runtime::Runtime,
    /// Its clock when it was started, and when that was.
    clock_start: Instant,
    started_ms: u64,
    clock_permille: u64,
    pub(super) log: Log,
    pub(super) data: Data,
    start: Arc<Mutex<Option<Result<Handle, StartError>>>>,
    pub(super) handle: Option<Handle>,
}

impl Node {
    pub(super) fn new(number: usize, peers: &[usize], seed: u64, clock_permille: u64, snapshot_entries: u64) -> Self {
        Self {
            number,
            url: url(number),
            peer_urls: peers.iter().filter(|peer| **peer != number).map(|peer| url(*peer)).collect(),
            log_disk: SimDisk::new(seed),
            data_disk: SimDisk::new(!seed),
            clock_permille,
            running: None,
            paused_until_ms: None,
            is_host_up: true,
            starts: 0,
            snapshot_entries,
            spool_dir: tempfile::tempdir().unwrap(),
        }
    }

    /// Starts the node on what its disks hold.
    pub(super) fn start(&mut self, now_ms: u64, outbox: Arc<Mutex<Outbox>>, telemetry: Telemetry) {
        // After each poll of a task the runtime looks around, so that it can be stopped between any two.
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).event_interval(1).build().unwrap();
        let start = Arc::new(Mutex::new(None));
        let entered = runtime.enter();
        let clock_start = Instant::now();
        let log = simulated_log::open(&self.log_disk).unwrap();
        let data = simulated_data::open(&self.data_disk, CACHE_BYTES).unwrap();
        let options = Options {
            self_url: self.url.clone(),
            peer_urls: self.peer_urls.clone(),
            spool_dir: self.spool_dir.path().to_path_buf(),
            timing: Timing::LAN,
            snapshot_entries: self.snapshot_entries,
            blocking: Blocking::Simulated,
            may_found: true,
            free_space: FreeSpace::unlimited(),
        };
        let transport = Arc::new(SimTransport::new(self.number, outbox));
        let (started, parts) = (start.clone(), (log.clone(), data.clone()));
        runtime.spawn(async move {
            let handle = Handle::start(options, parts.0, parts.1, transport, telemetry).await;
            *lock(&started) = Some(handle);
        });
        drop(entered);
        self.starts += 1;
        self.is_host_up = true;
        self.paused_until_ms = None;
        self.running = Some(Running {
            runtime,
            clock_start,
            started_ms: now_ms,
            clock_permille: self.clock_permille,
            log,
            data,
            start,
            handle: None,
        });
    }

    /// Ends the node after it has polled its tasks `polls` times more, and takes the power from its disks.
    pub(super) fn crash(&mut self, polls: u32) {
        if let Some(running) = self.running.take() {
            running.runtime.block_on(Polls(polls));
            drop(running);
        }
        self.log_disk.lose_power();
        self.data_disk.lose_power();
        self.paused_until_ms = None;
    }

    /// Replaces the disks of a node that does not run by empty ones.
    pub(super) fn wipe(&mut self) {
        self.log_disk.wipe();
        self.data_disk.wipe();
    }

    pub(super) fn is_paused(&self, now_ms: u64) -> bool {
        self.paused_until_ms.is_some_and(|until| now_ms < until)
    }

    /// The node's door, if it runs and has opened it.
    pub(super) fn handle(&self) -> Option<&Handle> {
        self.running.as_ref().and_then(|running| running.handle.as_ref())
    }
}

impl Running {
    /// Lets the node run until the world's clock shows `now_ms`.
    pub(super) fn run_until(&mut self, now_ms: u64, was_paused: bool) -> Result<(), StartError> {
        let passed_ms = (now_ms - self.started_ms) * self.clock_permille / 1_000;
        let target = self.clock_start + Duration::from_millis(passed_ms);
        self.runtime.block_on(async {
            if was_paused {
                // Its clock went on, and all that was to happen meanwhile is late.
                tokio::time::advance(target.saturating_duration_since(Instant::now())).await;
            }
            tokio::time::sleep_until(target).await;
        });
        if let Some(handle) = lock(&self.start).take() {
            self.handle = Some(handle?);
        }
        Ok(())
    }

    /// Does something on the node.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }
}

/// Waits until the runtime has polled so many tasks, without letting time pass.
struct Polls(u32);

impl Future for Polls {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// The URL of a node.
pub(super) fn url(number: usize) -> String {
    format!("http://node{number}")
}
