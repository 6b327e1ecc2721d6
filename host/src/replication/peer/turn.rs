//! One snapshot at a time.
//!
//! A stream that begins takes the place of the one before, which may be one whose sender has vanished; so a node never waits for a
//! dead sender, and any number of streams takes the space of one. A snapshot that has arrived as a whole keeps its place until it is
//! installed.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::replication::error::Error;

/// Time that a stream waits for the one before to end: longer than the write that it may be in.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Turns {
    /// Ends the newest stream.
    newest: Mutex<CancellationToken>,
    place: Arc<Semaphore>,
}

/// The place of one snapshot, until this is dropped. Work that goes on when its stream has ended holds it, too.
pub(super) struct Turn {
    displaced: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { newest: Mutex::default(), place: Arc::new(Semaphore::new(1)) }
    }

    /// Ends the newest stream and takes its place. Fails if the place does not get free soon, or another stream takes it.
    pub(super) async fn take(&self) -> Result<Turn, Error> {
        let displaced = CancellationToken::new();
        std::mem::replace(&mut *self.newest.lock(), displaced.clone()).cancel();
        let place = displaced.run_until_cancelled(self.place.clone().acquire_owned());
        match tokio::time::timeout(PATIENCE, place).await {
            Ok(Some(Ok(place))) => Ok(Turn { displaced, _place: place }),
            Ok(None) => Err(taken()),
            Err(_) | Ok(Some(Err(_))) => Err(Error::Refused("another snapshot is being installed".to_owned())),
        }
    }
}

impl Turn {
    /// Receives a stream, unless another one takes its place.
    pub(super) async fn run<T>(&self, receive: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        self.displaced.run_until_cancelled(receive).await.unwrap_or_else(|| Err(taken()))
    }
}

fn taken() -> Error {
    Error::Refused("another snapshot arrives".to_owned())
}
