//! The listener of a node: a bounded number of connections, so that clients leave files for the disk and for other nodes.

use std::io::ErrorKind::{ConnectionAborted, ConnectionReset};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use crate::limits::FILES_RESERVED;

/// Pause after an error that another connection would meet, too.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// Accepts connections, and waits while there are as many as allowed.
pub(crate) struct BoundedListener {
    listener: TcpListener,
    permits: Arc<Semaphore>,
    max: usize,
    /// Whether the bound has been met since there was room the last time.
    is_full: bool,
}

/// What counts a connection until it is dropped.
pub(super) type Counted = OwnedSemaphorePermit;

/// Raises the number of files that the process may open as far as the system allows. Returns it.
fn raise_file_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

impl BoundedListener {
    /// Leaves [`FILES_RESERVED`] of the files that the process may open, or half of them if they are few.
    pub(super) fn new(listener: TcpListener) -> Self {
        let files = raise_file_limit();
        let max = files.saturating_sub(FILES_RESERVED).max(files / 2);
        let max = usize::try_from(max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { listener, permits: Arc::new(Semaphore::new(max)), max, is_full: false }
    }

    async fn permit(&mut self) -> Option<Counted> {
        match self.permits.clone().try_acquire_owned() {
            Err(TryAcquireError::NoPermits) => {
                if !std::mem::replace(&mut self.is_full, true) {
                    tracing::warn!(connections = self.max, "new connections wait until others end");
                }
                self.permits.clone().acquire_owned().await.ok()
            }
            permit => {
                self.is_full &= self.permits.available_permits() < self.max / 8;
                permit.ok()
            }
        }
    }

    /// The next connection. Cancel safe.
    pub(super) async fn accept(&mut self) -> (TcpStream, Counted) {
        loop {
            let Some(permit) = self.permit().await else { continue };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                // The client has gone already.
                Err(error) if [ConnectionAborted, ConnectionReset].contains(&error.kind()) => continue,
                Err(error) => {
                    tracing::error!(%error, "no connection was accepted");
                    tokio::time::sleep(ERROR_PAUSE).await;
                    continue;
                }
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "TCP_NODELAY could not be set");
            }
            return (stream, permit);
        }
    }
}
