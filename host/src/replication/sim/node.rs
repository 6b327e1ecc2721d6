//! A node of a simulation: its disks, and while it runs a runtime of its own with a clock of its own.
//!
//! A node runs entirely on its runtime, so dropping the runtime kills the node: every task ends at its current await point,
//! and nothing but destructors runs. The runtime's clock moves only when the world lets the node run, by the time that has
//! passed multiplied by the node's clock rate.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::{pin::Pin, time::Duration};

use futures::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::network::{Outbox, SimTransport};
use crate::clock::{Clock, Clocks};
use crate::replication::cluster::identity::Stage;
use crate::replication::{Error, Handle, Options, StartError, Status, accept_loss, check_storage};
use crate::replication::{blocking::Blocking, types::Metrics};
use crate::storage::{self, Data, FreeSpace, Log, simulated_data, simulated_log};
use crate::{storage::memory::SimDisk, telemetry::Telemetry};

const CACHE_BYTES: u64 = 64 * 1024;

/// The wall time at which a simulation starts, in milliseconds since the Unix epoch.
pub(super) const WALL_START_MS: u64 = 1_700_000_000_000;

/// Maximum number of records that a lying disk loses.
const LOST_RECORDS_MAX: usize = 4;

/// Free space below which a node refuses writes.
pub(super) const RESERVE_BYTES: u64 = 1_000;

pub(super) struct Node {
    pub(super) number: usize,
    pub(super) url: String,
    /// Other URLs that lead to it.
    pub(super) aliases: Vec<String>,
    /// The list of the others that it is started with.
    pub(super) peers: PeerList,
    pub(super) log_disk: SimDisk,
    pub(super) data_disk: SimDisk,
    /// Free space, of which the node keeps [`RESERVE_BYTES`]. It starts with as much as it had.
    free_bytes: u64,
    free_space: FreeSpace,
    /// Whether the log's disk loses what it has reported as synced when the node is next killed.
    pub(super) lies: bool,
    /// Whether the node is next started with `--accept-data-loss`.
    pub(super) accepts_loss: bool,
    /// Whether the node may form a cluster: not once its databases were set aside.
    may_found: bool,
    /// Why the databases were refused, though the disk is honest.
    refusal: Option<Error>,
    /// The rate of the node's clock, in parts per thousand.
    clock_permille: u64,
    pub(super) running: Option<Running>,
    /// How far its wall clock is set ahead of the world's time.
    wall_ahead_ms: Arc<AtomicI64>,
    /// The end of the node's pause.
    pub(super) paused_until_ms: Option<u64>,
    /// If the pause is a suspension of its machine: since when.
    suspended_since_ms: Option<u64>,
    /// Whether a node that is down refuses connections; if its host is down too, calls are not answered.
    pub(super) is_host_up: bool,
    pub(super) starts: u64,
    snapshot_entries: u64,
    /// Directory for arriving snapshots: on a real disk, which loses nothing.
    spool_dir: tempfile::TempDir,
}

pub(super) struct Running {
    runtime: tokio::runtime::Runtime,
    /// Its clock, and the world's time, at its start.
    clock_start: Instant,
    started_ms: u64,
    clocks: Arc<NodeClocks>,
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
            aliases: Vec::new(),
            peers: PeerList::right(peers.iter().filter(|peer| **peer != number).map(|peer| url(*peer)).collect()),
            log_disk: SimDisk::new(seed),
            data_disk: SimDisk::new(!seed),
            free_bytes: u64::MAX,
            free_space: FreeSpace::new("/".as_ref(), RESERVE_BYTES),
            lies: false,
            accepts_loss: false,
            may_found: true,
            refusal: None,
            clock_permille,
            running: None,
            wall_ahead_ms: Arc::default(),
            paused_until_ms: None,
            suspended_since_ms: None,
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
        let clocks = Arc::new(NodeClocks {
            runtime_start: clock_start,
            start_ms: now_ms,
            suspended_ms: AtomicU64::new(0),
            wall_ahead_ms: self.wall_ahead_ms.clone(),
        });
        let (log, data) = self.open();
        self.free_space = FreeSpace::new("/".as_ref(), RESERVE_BYTES);
        self.free_space.set_free(self.free_bytes);
        let options = Options {
            self_url: self.url.clone(),
            peer_urls: self.peers.for_log(&log),
            spool_dir: self.spool_dir.path().to_path_buf(),
            snapshot_entries: self.snapshot_entries,
            blocking: Blocking::InPlace(random_delay),
            may_found: self.may_found,
            free_space: self.free_space.clone(),
            clock: Clock::new(clocks.clone()),
            check_proposed: |_| true,
        };
        let transport = Arc::new(SimTransport { from: self.number, outbox, cluster: OnceLock::new() });
        let (started, parts) = (start.clone(), (log.clone(), data.clone()));
        runtime.spawn(async move {
            let handle = Handle::start(options, parts.0, parts.1, transport, telemetry).await;
            *started.lock() = Some(handle);
        });
        drop(entered);
        self.starts += 1;
        self.is_host_up = true;
        self.paused_until_ms = None;
        self.suspended_since_ms = None;
        let (started_ms, handle) = (now_ms, None);
        self.running = Some(Running { runtime, clock_start, started_ms, clocks, log, data, start, handle });
    }

    /// Opens the databases. Like the node of production, it sets them aside if they have lost what they had made durable,
    /// unless the loss is accepted.
    fn open(&mut self) -> (Log, Data) {
        let has_lied = std::mem::take(&mut self.lies);
        let accepts_loss = std::mem::take(&mut self.accepts_loss);
        match self.try_open(accepts_loss) {
            Ok((log, data)) if accepts_loss && is_without_cluster(&log, &data) => {}
            Ok(opened) => return opened,
            Err(_) if has_lied => self.may_found = false,
            Err(refusal) => self.refusal = Some(refusal.into()),
        }
        self.wipe();
        self.try_open(false).unwrap()
    }

    fn try_open(&self, accepts_loss: bool) -> Result<(Log, Data), storage::Error> {
        let log = simulated_log::open(&self.log_disk, accepts_loss)?;
        let data = simulated_data::open(&self.data_disk, CACHE_BYTES)?;
        match check_storage(&log, &data, "disk".as_ref()) {
            Err(storage::Error::Lost { .. }) if accepts_loss => accept_loss(&log),
            checked => drop(checked?),
        }
        Ok((log, data))
    }

    /// Whether a URL leads to the node.
    pub(super) fn is_at(&self, url: &str) -> bool {
        self.url == url || self.aliases.iter().any(|alias| alias == url)
    }

    /// Sets the free space of the node's disk.
    pub(super) fn set_free(&mut self, bytes: u64) {
        self.free_bytes = bytes;
        self.free_space.set_free(bytes);
    }

    /// Lets the node run until the world's time is `now_ms`, unless it is paused or down.
    pub(super) fn run_until(&mut self, now_ms: u64) -> Result<(), StartError> {
        if let Some(refusal) = self.refusal.take() {
            return Err(refusal.into());
        }
        if self.is_paused(now_ms) {
            return Ok(());
        }
        let was_paused = self.paused_until_ms.take().is_some();
        let suspended_since_ms = self.suspended_since_ms.take();
        let Some(running) = &mut self.running else { return Ok(()) };
        if let Some(since_ms) = suspended_since_ms {
            // Its monotonic clock stood still since then.
            let suspended_ms = now_ms - 1 - since_ms;
            running.started_ms += suspended_ms;
            running.clocks.suspended_ms.fetch_add(suspended_ms, Ordering::Relaxed);
        }
        let passed_ms = (now_ms - running.started_ms) * self.clock_permille / 1_000;
        let target = running.clock_start + Duration::from_millis(passed_ms);
        running.runtime.block_on(async {
            if was_paused {
                // Its clock continued during the pause, and all its timers are late.
                tokio::time::advance(target.saturating_duration_since(Instant::now())).await;
            }
            tokio::time::sleep_until(target).await;
        });
        if let Some(handle) = running.start.lock().take() {
            running.handle = Some(handle?);
        }
        Ok(())
    }

    /// Ends the node after `polls` more polls of its tasks, and cuts the power of its disks.
    pub(super) fn crash(&mut self, polls: u32) {
        if let Some(running) = self.running.take() {
            running.runtime.block_on(Polls(polls));
            drop(running);
        }
        if self.lies {
            self.log_disk.lie(LOST_RECORDS_MAX);
        }
        self.log_disk.lose_power();
        self.data_disk.lose_power();
        self.paused_until_ms = None;
        self.suspended_since_ms = None;
    }

    /// Suspends the node's machine: a pause during which its monotonic clock stands still.
    pub(super) fn suspend(&mut self, now_ms: u64, until_ms: u64) {
        if self.running.is_some() && !self.is_paused(now_ms) {
            self.paused_until_ms = Some(until_ms);
            self.suspended_since_ms = Some(now_ms);
        }
    }

    /// Sets the node's wall clock to so many milliseconds ahead of the world's time.
    pub(super) fn set_wall_clock(&self, ahead_ms: i64) {
        self.wall_ahead_ms.store(ahead_ms, Ordering::Relaxed);
    }

    /// Empties the disks of a node that does not run.
    pub(super) fn wipe(&mut self) {
        self.log_disk.wipe();
        self.data_disk.wipe();
    }

    pub(super) fn is_paused(&self, now_ms: u64) -> bool {
        self.paused_until_ms.is_some_and(|until| now_ms < until)
    }

    /// The node's handle, if it runs and has started.
    pub(super) fn handle(&self) -> Option<&Handle> {
        self.running.as_ref().and_then(|running| running.handle.as_ref())
    }

    /// Whether the node has started and has an id of its own.
    pub(super) fn is_identified(&self) -> bool {
        self.handle().is_some_and(|handle| handle.0.identity.is_identified())
    }

    /// The state of a node that runs.
    pub(super) fn data(&self) -> &Data {
        &self.running.as_ref().unwrap().data
    }

    /// The metrics of the node's consensus engine, if it has started.
    pub(super) fn metrics(&self) -> Option<Metrics> {
        self.handle().map(|handle| handle.0.view.raft.metrics())
    }

    /// What the node tells of the cluster, if it has started.
    pub(super) fn status(&self) -> Option<Status> {
        self.running.as_ref()?.within(|| self.handle().map(Handle::status))
    }

    /// Starts a task on the node, if it has started.
    pub(super) fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(Handle) -> F) {
        if let (Some(running), Some(handle)) = (&self.running, self.handle()) {
            running.runtime.spawn(task(handle.clone()));
        }
    }

    /// Lets the node stand for election now, as it does at some random time once it has heard no leader for a lease.
    pub(super) fn stand(&self) {
        self.spawn(async move |handle| drop(handle.0.view.raft.raft().trigger().elect(true).await));
    }
}

/// Whether a log has lost its node's id, or the cluster that its entries and the state are of. They are of no use then: the operator
/// empties the directory, as the node asks.
fn is_without_cluster(log: &Log, data: &Data) -> bool {
    let is_empty = log.first_last().is_none() && log.purged_marker().is_none() && data.revision() == 0;
    match Stage::stored(log) {
        Ok(Stage::Unidentified) => true,
        Ok(Stage::Waiting { .. }) => !is_empty,
        Ok(Stage::Member { .. }) | Err(_) => false,
    }
}

impl Running {
    /// Does something by the node's clock.
    pub(super) fn within<T>(&self, act: impl FnOnce() -> T) -> T {
        let _entered = self.runtime.enter();
        act()
    }
}

/// The clocks of a node's machine.
struct NodeClocks {
    runtime_start: Instant,
    /// The world's time at its start.
    start_ms: u64,
    /// For how long it was suspended since then.
    suspended_ms: AtomicU64,
    wall_ahead_ms: Arc<AtomicI64>,
}

impl Clocks for NodeClocks {
    fn unix_ms(&self) -> u64 {
        let uptime_ms = u64::try_from(self.uptime().as_millis()).unwrap();
        (WALL_START_MS + self.start_ms + uptime_ms).saturating_add_signed(self.wall_ahead_ms.load(Ordering::Relaxed))
    }

    fn uptime(&self) -> Duration {
        let running = Instant::now().saturating_duration_since(self.runtime_start);
        running + Duration::from_millis(self.suspended_ms.load(Ordering::Relaxed))
    }
}

/// The simulated time that a blocking job takes.
fn random_delay() -> BoxFuture<'static, ()> {
    async { tokio::time::sleep(Duration::from_millis(fastrand::u64(0..=2))).await }.boxed()
}

/// Completes after the runtime has polled this many tasks, without advancing time.
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

/// A list of the other nodes, as an operator gives it to a node.
#[derive(Clone)]
pub(super) struct PeerList {
    pub(super) urls: Vec<String>,
    /// The list without its mistakes: for a node whose log does not tell yet where the others are.
    pub(super) right: Vec<String>,
}

impl PeerList {
    pub(super) fn right(urls: Vec<String>) -> Self {
        Self { right: urls.clone(), urls }
    }

    fn for_log(&self, log: &Log) -> Vec<String> {
        let is_empty = log.first_last().is_none() && log.purged_marker().is_none();
        if is_empty { self.right.clone() } else { self.urls.clone() }
    }
}

pub(super) fn url(number: usize) -> String {
    format!("http://node{number}")
}
