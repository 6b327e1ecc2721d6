//! One node: its parts put together, its start and its end.

mod aside;
mod databases;
mod settings;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::databases::Error as DataError;
pub use self::settings::{Error as SettingsError, Given, Settings};
use crate::api;
use crate::hooks;
use crate::limits::{DISK_POLL, DRAIN_DEADLINE};
use crate::registry::Registry;
use crate::replication::{self, HttpTransport};
use crate::storage::{self, Data, FreeSpace, Log};
use crate::telemetry::{HookMetrics, Telemetry, request_trace_id};
use crate::write_path::{WritePath, now_ms};

/// When the consensus engine stops: how long its reason may take to be told by the disk itself.
const FAILURE_PATIENCE: Duration = Duration::from_millis(200);

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The address cannot be listened on.
    #[error("--listen: {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The plugin runtime cannot start.
    #[error(transparent)]
    Hooks(#[from] hooks::Error),
    /// The HTTP client for other nodes cannot be built.
    #[error("the HTTP client cannot be built")]
    Http(#[from] reqwest::Error),
    /// Replication cannot start.
    #[error(transparent)]
    Replication(#[from] replication::StartError),
    /// A part of the start was cancelled.
    #[error("the start was cancelled")]
    Cancelled(#[from] tokio::task::JoinError),
}

/// A running node.
pub struct Node {
    url: String,
    address: SocketAddr,
    log: Log,
    data: Data,
    replication: replication::Handle,
    registry: Registry,
    /// Tells the server to take no more connections.
    draining: watch::Sender<bool>,
    server: JoinHandle<std::io::Result<()>>,
    /// Looks at the free space.
    space_watch: JoinHandle<()>,
}

impl Node {
    /// Starts a node. It answers requests when this returns, and finds its cluster on its own.
    ///
    /// # Errors
    ///
    /// See [`StartError`]. Nothing half-made stays behind: directories that were created are valid and empty.
    pub async fn start(settings: Settings, telemetry: Telemetry) -> Result<Self, StartError> {
        // The port comes first: a node that cannot be reached must not touch its data.
        let listener = TcpListener::bind(settings.listen)
            .await
            .map_err(|source| StartError::Listen { address: settings.listen, source })?;
        let address =
            listener.local_addr().map_err(|source| StartError::Listen { address: settings.listen, source })?;
        let url = settings.self_url(address)?;

        let (log, data) = open_storage(&settings, &telemetry).await?;
        let free_space = FreeSpace::new(&settings.data_dir, settings.disk_reserve_bytes);
        let space_watch = watch_free_space(free_space.clone()).await?;
        let options = replication::Options {
            self_url: url.clone(),
            peer_urls: settings.peer_urls.clone(),
            spool_dir: databases::spool_dir(&settings.data_dir),
            may_found: !has_set_data_aside(&settings.data_dir)?,
            free_space,
            timing: settings.timing,
            snapshot_entries: settings.snapshot_entries,
            blocking: replication::Blocking::Threads,
        };
        let transport = Arc::new(HttpTransport::new()?);
        let replication =
            replication::Handle::start(options, log.clone(), data.clone(), transport, telemetry.clone()).await?;
        let record = hooks::Record::default();
        let observer = Arc::new(Watch { telemetry: telemetry.clone(), record: record.clone() });
        let runtime = hooks::Runtime::on_node(observer, &settings.data_dir.join("compiled"))?;
        let pipeline = hooks::Pipeline::new(hooks::Active::default());
        let write_path = WritePath::new(pipeline.clone(), replication.clone(), data.clone(), telemetry.clone());
        let registry = Registry::start(runtime, pipeline, write_path.clone(), replication.clone(), data.clone());

        let draining = watch::Sender::new(false);
        let app = api::App {
            write_path,
            replication: replication.clone(),
            registry: registry.clone(),
            plugin_record: record,
            draining: draining.subscribe(),
            data: data.clone(),
            telemetry,
        };
        let server = tokio::spawn(serve(listener, app, draining.subscribe()));
        tracing::info!(%url, %address, peers = settings.peer_urls.len(), data_dir = %settings.data_dir.display(), "started");
        Ok(Self { url, address, log, data, replication, registry, draining, server, space_watch })
    }

    /// The base URL under which others reach this node.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the node cannot go on: its disk has failed, or its consensus engine has stopped by itself. It must be
    /// ended then, as a whole and without another write.
    pub async fn failed(&self) -> Failure {
        tokio::select! {
            biased;
            failure = self.disk_failed() => failure,
            reason = self.replication.failed() => {
                // What stopped it may be on its way here too, and says more.
                let said = tokio::time::timeout(FAILURE_PATIENCE, self.disk_failed()).await;
                said.unwrap_or(Failure::Engine { reason })
            }
        }
    }

    async fn disk_failed(&self) -> Failure {
        let failure = |poison: &storage::Poison, error| Failure::Disk { path: poison.path().to_path_buf(), error };
        let (log, data) = (self.log.poison(), self.data.poison());
        tokio::select! {
            error = log.poisoned() => failure(log, error),
            error = data.poisoned() => failure(data, error),
        }
    }

    /// Hands the leadership over if this node has it, takes no more requests, answers those it has for a bounded time, and stops. What was acknowledged is on disk.
    pub async fn stop(self) {
        // First, so that writes go on elsewhere while the requests of this node are answered.
        self.replication.hand_over().await;
        self.draining.send_replace(true);
        if tokio::time::timeout(DRAIN_DEADLINE, self.server).await.is_err() {
            tracing::warn!(deadline = ?DRAIN_DEADLINE, "some requests were cut off");
        }
        self.space_watch.abort();
        self.registry.stop();
        self.replication.shutdown().await;
        let log = self.log;
        if tokio::task::spawn_blocking(move || log.close()).await.is_err() {
            tracing::error!("the log was not closed cleanly");
        }
    }
}

/// Why a node cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Its disk has failed.
    #[error("{}: {error}; this node stops, since it is unknown what its disk holds", path.display())]
    Disk {
        /// The database.
        path: PathBuf,
        /// What failed.
        error: storage::Error,
    },
    /// Its consensus engine has stopped.
    #[error("this node stops, since its consensus engine has: {reason}")]
    Engine {
        /// What it said.
        reason: String,
    },
}

/// Looks at the free space now, and again and again in a task of its own.
async fn watch_free_space(free_space: FreeSpace) -> Result<JoinHandle<()>, StartError> {
    let look = |free_space: FreeSpace| tokio::task::spawn_blocking(move || free_space.look());
    look(free_space.clone()).await?;
    Ok(tokio::spawn(async move {
        loop {
            tokio::time::sleep(DISK_POLL).await;
            // An error means that the node is gone altogether.
            if look(free_space.clone()).await.is_err() {
                return;
            }
        }
    }))
}

/// Counts what plugins do, and keeps what they say.
struct Watch {
    telemetry: Telemetry,
    record: hooks::Record,
}

impl hooks::Observer for Watch {
    fn calls_of(&self, hook: &str, plugin: &str) -> Arc<dyn hooks::Calls> {
        let metrics = self.telemetry.metrics().of_hook(hook, plugin);
        Arc::new(WatchOfHook { metrics, figures: self.record.of_hook(hook, plugin) })
    }
}

impl hooks::LogSink for Watch {
    fn log(&self, source: &hooks::LogSource, level: &'static str, message: String) {
        let hooks::LogSource { hook, plugin, digest } = source;
        let (hook, plugin, digest) = (hook.clone(), plugin.clone(), digest.clone());
        let trace_id = request_trace_id().map(|id| id.to_string());
        self.record.say(hooks::Line { at_ms: now_ms(), hook, plugin, digest, trace_id, level, message });
    }
}

/// Counts the calls of one hook.
struct WatchOfHook {
    metrics: HookMetrics,
    figures: Option<hooks::Figures>,
}

impl hooks::Calls for WatchOfHook {
    fn ended(&self, took: Duration, result: &'static str, memory_bytes: usize) {
        self.metrics.call(took, result, memory_bytes);
        if let Some(figures) = &self.figures {
            figures.count(took, result, memory_bytes);
        }
    }
}

async fn serve(listener: TcpListener, app: api::App, mut draining: watch::Receiver<bool>) -> std::io::Result<()> {
    use axum::serve::ListenerExt;

    // Small answers must not wait for an acknowledgement of earlier ones.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
    });
    let drained = async move {
        // An error means that the node is gone altogether.
        let _ = draining.wait_for(|draining| *draining).await;
    };
    axum::serve(listener, api::router(app)).with_graceful_shutdown(drained).await
}

fn has_set_data_aside(data_dir: &std::path::Path) -> Result<bool, DataError> {
    aside::is_there(data_dir).map_err(|source| DataError::Dir { path: data_dir.to_path_buf(), source })
}

/// Opens both databases, creating what is missing.
async fn open_storage(settings: &Settings, telemetry: &Telemetry) -> Result<(Log, Data), StartError> {
    let opening = databases::Opening {
        data_dir: settings.data_dir.clone(),
        cache_bytes: settings.cache_bytes,
        has_peers: !settings.peer_urls.is_empty(),
        accepts_loss: settings.accept_data_loss,
    };
    let metrics = telemetry.metrics().clone();
    let on_fsync = move || -> storage::OnFsync {
        let metrics = metrics.clone();
        Box::new(move |duration, entries| metrics.fsync(duration, entries))
    };
    Ok(tokio::task::spawn_blocking(move || opening.open(on_fsync)).await??)
}
