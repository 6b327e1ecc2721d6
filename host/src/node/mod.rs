//! One node: its parts put together, its start and its end.

mod settings;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use self::settings::{Error as SettingsError, Given, Settings};
use crate::api;
use crate::hooks;
use crate::limits::DRAIN_DEADLINE;
use crate::registry::Registry;
use crate::replication::{self, HttpTransport};
use crate::storage::{self, Data, Log};
use crate::telemetry::Telemetry;
use crate::write_path::WritePath;

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
    /// The data directory cannot be used.
    #[error("--data-dir: {}: {source}", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data in the directory cannot be opened.
    #[error("--data-dir: {}: {source}", path.display())]
    Storage {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        source: storage::Error,
    },
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
    replication: replication::Handle,
    registry: Registry,
    /// Tells the server to take no more connections.
    draining: watch::Sender<bool>,
    server: JoinHandle<std::io::Result<()>>,
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
        let options = replication::Options {
            self_url: url.clone(),
            peer_urls: settings.peer_urls.clone(),
            spool_dir: spool_dir(&settings.data_dir),
            timing: settings.timing,
            snapshot_entries: settings.snapshot_entries,
            blocking: replication::Blocking::Threads,
        };
        let transport = Arc::new(HttpTransport::new()?);
        let replication =
            replication::Handle::start(options, log.clone(), data.clone(), transport, telemetry.clone()).await?;
        let runtime = hooks::Runtime::new(Arc::new(HookMetrics(telemetry.clone())))?;
        let pipeline = hooks::Pipeline::new(hooks::Active::default());
        let write_path = WritePath::new(pipeline.clone(), replication.clone(), data.clone(), telemetry.clone());
        let registry = Registry::start(runtime, pipeline, write_path.clone(), replication.clone(), data.clone());

        let draining = watch::Sender::new(false);
        let app =
            api::App { write_path, replication: replication.clone(), registry: registry.clone(), data, telemetry };
        let server = tokio::spawn(serve(listener, app, draining.subscribe()));
        tracing::info!(%url, %address, peers = settings.peer_urls.len(), data_dir = %settings.data_dir.display(), "started");
        Ok(Self { url, address, log, replication, registry, draining, server })
    }

    /// The base URL under which others reach this node.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Hands the leadership over if this node has it, takes no more requests, answers those it has for a bounded time, and stops. What was acknowledged is on disk.
    pub async fn stop(self) {
        // First, so that writes go on elsewhere while the requests of this node are answered.
        self.replication.hand_over().await;
        self.draining.send_replace(true);
        if tokio::time::timeout(DRAIN_DEADLINE, self.server).await.is_err() {
            tracing::warn!(deadline = ?DRAIN_DEADLINE, "some requests were cut off");
        }
        self.registry.stop();
        self.replication.shutdown().await;
        let log = self.log;
        if tokio::task::spawn_blocking(move || log.close()).await.is_err() {
            tracing::error!("the log was not closed cleanly");
        }
    }
}

/// Counts what plugins do.
struct HookMetrics(Telemetry);

impl hooks::Observer for HookMetrics {
    fn called(&self, hook: &str, plugin: &str, took: Duration, result: &'static str, memory_bytes: usize) {
        self.0.metrics().hook_called(hook, plugin, took, result, memory_bytes);
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

fn spool_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("spool")
}

/// Opens both databases, creating what is missing.
async fn open_storage(settings: &Settings, telemetry: &Telemetry) -> Result<(Log, Data), StartError> {
    let dir = settings.data_dir.clone();
    let cache_bytes = settings.cache_bytes;
    let metrics = telemetry.metrics().clone();
    tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(spool_dir(&dir)).map_err(|source| StartError::DataDir { path: dir.clone(), source })?;
        let unusable = |source| StartError::Storage { path: dir.clone(), source };
        let on_fsync = Box::new(move |duration, entries| metrics.fsync(duration, entries));
        let log = Log::open(&dir.join("log"), on_fsync).map_err(unusable)?;
        let data = Data::open(&dir.join("data"), cache_bytes).map_err(unusable)?;
        Ok((log, data))
    })
    .await?
}
