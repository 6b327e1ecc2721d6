//! One node: its parts put together, its start and its end.
//!
//! # Start
//!
//! The order matters: the port first, since a node that cannot be reached must not touch its data; then storage,
//! replication, the hooks, the write path and the registry; the API last, since a request needs all of them. Until then, the node
//! answers its probes, and refuses all other requests at once: a start may take as long as other nodes are gone.
//!
//! # Stop
//!
//! `Node::stop` hands the leadership over, so that writes go on elsewhere, then drains the requests and the tasks for at
//! most [`DRAIN_DEADLINE`], stops replication, and closes the log.
//!
//! # Failure
//!
//! After a failed write or sync the node must not write again: `Node::failed` tells, and the process ends at once.
//! Lost or damaged data is handled before anything starts (see `databases`); a state that must come from another node is fetched
//! before the node answers requests.

mod cluster_secret;
mod databases;
mod door;
mod settings;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::cluster_secret::SecretFile;
pub(crate) use self::cluster_secret::generate as new_cluster_secret;
pub(crate) use self::databases::Error as DataError;
use self::door::Door;
pub(crate) use self::settings::{Error as SettingsError, Given, Settings};
use crate::hooks::{self, Calls, Compilers, Line, LogSink, LogSource, Observer, Record};
use crate::limits::{BODIES_BYTES_MAX, ByteBudget, DRAIN_DEADLINE};
use crate::registry::{self, Registry};
use crate::replication::{self, Credentials, HttpTransport};
use crate::storage::{self, Data, FreeSpace, Log};
use crate::telemetry::{Telemetry, request_trace_id};
use crate::write_path::WritePath;
use crate::{api, clock, net};

/// Interval between two looks at the free space.
const FREE_SPACE_INTERVAL: Duration = Duration::from_millis(500);

/// Interval at which the state's engine is asked for failures in the background.
const STATE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Time from the start to the first examination of the state, and between two.
const EXAMINE_INTERVAL: Duration = Duration::from_secs(6 * 3_600);

/// Bytes of the state that are examined at once, and the pause after them: at most 32 MiB a second.
const EXAMINE_BYTES: usize = 1024 * 1024;
const EXAMINE_PAUSE: Duration = Duration::from_millis(31);

// Why the node is starting yet.
const OPENING: &str = "the node is opening its databases";
const LACKS_STATE: &str = "the state of this node is lost; it waits for another node to give it one";

/// How long to wait for the disk's own error after consensus has stopped.
const FAILURE_PATIENCE: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("--listen: {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Hooks(#[from] hooks::Error),
    #[error(transparent)]
    Secret(#[from] cluster_secret::Error),
    #[error(transparent)]
    Replication(#[from] replication::StartError),
    /// The runtime shut down during the start.
    #[error("the start was cancelled")]
    Cancelled(#[from] tokio::task::JoinError),
}

pub(crate) struct Node {
    /// The base URL under which others reach this node.
    pub url: String,
    /// The address it listens on.
    pub address: SocketAddr,
    log: Log,
    app: Arc<api::App>,
    server: JoinHandle<()>,
    /// Stops the tasks.
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl Node {
    /// Starts a node. When this returns, it answers requests; it finds its cluster on its own. After an error, directories
    /// that were created are left behind, valid and empty.
    pub async fn start(settings: Settings, telemetry: Telemetry) -> Result<Self, StartError> {
        let (listener, address) = net::bind(settings.listen)
            .await
            .map_err(|source| StartError::Listen { address: settings.listen, source })?;
        let url = settings.self_url(address)?;

        let of_secret = settings.clone();
        let secret_file = spawn_blocking(move || secret_file(&of_secret)).await??;
        let secrets = secret_file.as_ref().map(|file| file.secrets.clone());
        let credentials = Credentials::new(&url, secrets, settings.anonymous.peers());
        let surroundings = Arc::new(api::Surroundings {
            telemetry: telemetry.clone(),
            browsers: api::Browsers::new(settings.hosts(&url), &settings.allowed_origins),
            access: api::Access::new(settings.anonymous),
            callers: api::Callers::new(credentials.clone()),
        });
        let (peer_urls, draining) = (settings.peer_urls.clone(), CancellationToken::new());
        let starting = api::Starting { reason: OPENING, peer_urls, surroundings: surroundings.clone() };
        let door = Door::serve(listener, starting, draining.clone());
        let (log, data) = open_storage(&settings, &telemetry).await?;
        let (own_log, own_data) = (log.clone(), data.clone());
        if spawn_blocking(move || replication::lacks_state(&own_log, &own_data)).await?? {
            door.refuse(LACKS_STATE);
        }
        let free_space = FreeSpace::new(&settings.data_dir, settings.disk_reserve_bytes);
        let (stopping, tasks) = (CancellationToken::new(), TaskTracker::new());
        let measured = free_space.clone();
        spawn_blocking(move || measured.measure()).await?;
        tasks.spawn(watch_free_space(free_space.clone(), stopping.clone()));
        if let Some(file) = secret_file {
            tasks.spawn(file.watch(credentials.clone(), stopping.clone()));
        }
        let options = replication::Options {
            self_url: url.clone(),
            peer_urls: settings.peer_urls.clone(),
            spool_dir: settings.data_dir.join(databases::SPOOL),
            may_found: !databases::has_log_aside(&settings.data_dir)?,
            free_space,
            snapshot_entries: settings.snapshot_entries,
            blocking: replication::Blocking::Threads,
            clock: clock::Clock::system(),
            check_proposed: registry::is_of_a_node,
        };
        let transport = Arc::new(HttpTransport::new(credentials.clone()));
        tasks.spawn(examine_state(data.clone(), stopping.clone()));
        tasks.spawn(watch_state(data.clone(), stopping.clone()));
        let replication =
            replication::Handle::start(options, log.clone(), data.clone(), transport, telemetry.clone()).await?;
        let record = Record::default();
        let observer = Arc::new(PluginObserver { telemetry: telemetry.clone(), record: record.clone() });
        let runtime = hooks::Runtime::new(observer, Compilers::Processes, Some(&settings.data_dir.join("compiled")))?;
        let pipeline = hooks::Pipeline::new(hooks::Active::default());
        let write_path = WritePath::new(pipeline.clone(), replication.clone(), data.clone(), telemetry.clone());
        let registry = Registry::start(runtime, &pipeline, write_path.clone(), replication.clone(), data.clone());

        let bodies = ByteBudget::new(BODIES_BYTES_MAX);
        let app = Arc::new(api::App {
            write_path,
            replication,
            registry,
            plugin_record: record,
            bodies,
            draining,
            data,
            telemetry,
        });
        let server = door.open(api::Api::new(app.clone(), surroundings));
        tracing::info!(%url, %address, peers = settings.peer_urls.len(), data_dir = %settings.data_dir.display(), "started");
        Ok(Self { url, address, log, app, server, stopping, tasks })
    }

    /// Waits until the node cannot go on, because its disk has failed or consensus has stopped by itself. The process must
    /// then end without another write.
    pub async fn failed(&self) -> Failure {
        tokio::select! {
            biased;
            failure = self.disk_failed() => failure,
            reason = self.app.replication.failed() => {
                // The disk's own error says more, and may arrive a moment later.
                let failed = timeout(FAILURE_PATIENCE, self.disk_failed()).await;
                failed.unwrap_or(Failure::Consensus { reason })
            }
        }
    }

    async fn disk_failed(&self) -> Failure {
        let failure = |poison: &storage::Poison, error| Failure::Disk { path: poison.path().to_path_buf(), error };
        let (log, data) = (self.log.poison(), self.app.data.poison());
        tokio::select! {
            error = log.poisoned() => failure(log, error),
            error = data.poisoned() => failure(data, error),
        }
    }

    /// Hands the leadership over, answers the requests under way for a bounded time, and stops. Everything that was
    /// acknowledged is on disk.
    pub async fn stop(self) {
        // First, so that writes go on elsewhere while this node answers its requests.
        self.app.replication.hand_over().await;
        self.app.draining.cancel();
        // Otherwise requests would wait for it.
        self.app.registry.stop_compiling();
        let deadline = Instant::now() + DRAIN_DEADLINE;
        if timeout_at(deadline, self.server).await.is_err() {
            tracing::warn!(deadline = ?DRAIN_DEADLINE, "some requests were cut off");
        }
        self.stopping.cancel();
        self.tasks.close();
        let tasks = async { tokio::join!(self.tasks.wait(), self.app.registry.stop()) };
        if timeout_at(deadline, tasks).await.is_err() {
            tracing::warn!(deadline = ?DRAIN_DEADLINE, "the registry has not stopped in time");
        }
        self.app.replication.shutdown().await;
        let log = self.log;
        if spawn_blocking(move || log.close()).await.is_err() {
            tracing::error!("the log was not closed cleanly");
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{}: {error}; this node stops, since it is unknown what its disk holds", path.display())]
    Disk { path: PathBuf, error: storage::Error },
    #[error("this node stops, since its consensus engine has: {reason}")]
    Consensus { reason: String },
}

/// The file that has the secrets by which this node proves itself to others; none if it can do without.
fn secret_file(settings: &Settings) -> Result<Option<SecretFile>, cluster_secret::Error> {
    if let Some(path) = &settings.cluster_secret_file {
        return SecretFile::named(path).map(Some);
    }
    if !settings.listen.ip().is_loopback() {
        return Ok(None);
    }
    match SecretFile::of_user() {
        Err(error) if settings.peer_urls.is_empty() || settings.anonymous.peers() => {
            tracing::warn!(%error, "this node cannot prove itself to other nodes");
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// Measures the free space at every interval until `stop`.
async fn watch_free_space(free_space: FreeSpace, stop: CancellationToken) {
    while stop.run_until_cancelled(sleep(FREE_SPACE_INTERVAL)).await.is_some() {
        let free_space = free_space.clone();
        // An error means that the runtime shuts down.
        if spawn_blocking(move || free_space.measure()).await.is_err() {
            return;
        }
    }
}

/// Looks for failures of the state's engine in the background at every interval until `stop`.
async fn watch_state(data: Data, stop: CancellationToken) {
    while stop.run_until_cancelled(sleep(STATE_CHECK_INTERVAL)).await.is_some() {
        let data = data.clone();
        // An error means that the runtime shuts down, or that the node ends (`Data::poison`).
        if !matches!(spawn_blocking(move || data.check()).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Reads the whole state at every interval until `stop`, to find damage before another node is needed that is gone by then.
async fn examine_state(data: Data, stop: CancellationToken) {
    while stop.run_until_cancelled(sleep(EXAMINE_INTERVAL)).await.is_some() {
        let mut position = Some(storage::Position::default());
        while let Some(from) = position {
            let data = data.clone();
            // An error means that the runtime shuts down.
            let Ok(read) = spawn_blocking(move || data.examine(from, EXAMINE_BYTES)).await else { return };
            // Damage is reported by `Data::poison`, and ends the node.
            let Ok(next) = read else { return };
            position = next;
            if stop.run_until_cancelled(sleep(EXAMINE_PAUSE)).await.is_none() {
                return;
            }
        }
    }
}

async fn open_storage(settings: &Settings, telemetry: &Telemetry) -> Result<(Log, Data), StartError> {
    let (settings, metrics) = (settings.clone(), telemetry.metrics().clone());
    let on_fsync = move || -> storage::OnFsync {
        let metrics = metrics.clone();
        Box::new(move |duration, entries| metrics.fsync(duration, entries))
    };
    Ok(spawn_blocking(move || databases::open(&settings, on_fsync)).await??)
}

/// Counts the calls of this node's plugins in the metrics, and keeps the lines they log.
struct PluginObserver {
    telemetry: Telemetry,
    record: Record,
}

impl Observer for PluginObserver {
    fn calls_of(&self, hook: &str, plugin: &str) -> Calls {
        let metrics = self.telemetry.metrics().of_hook(hook, plugin);
        let figures = self.record.of_hook(hook, plugin);
        Box::new(move |took, result, memory_bytes| {
            metrics.call(took, result, memory_bytes);
            if let Some(figures) = &figures {
                figures.count(took, result, memory_bytes);
            }
        })
    }
}

impl LogSink for PluginObserver {
    fn log(&self, source: &LogSource, level: &'static str, message: String) {
        let LogSource { hook, plugin, digest } = source;
        let (hook, plugin, digest) = (hook.clone(), plugin.clone(), digest.clone());
        let trace_id = request_trace_id().map(|id| id.to_string());
        self.record.say(Line { at_ms: clock::unix_ms(), hook, plugin, digest, trace_id, level, message });
    }
}
