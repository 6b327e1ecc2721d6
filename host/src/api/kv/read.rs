//! Reads: their freshness, and access to storage off the async threads.

use std::time::{Duration, Instant};

use axum::response::Response;

use crate::api::extract::Consistency;
use crate::api::problem::{Kind, Problem};
use crate::api::{App, answer};
use crate::limits::{PROMPT_READ_DEADLINE, STRONG_READ_DEADLINE};
use crate::storage::{self, Data};

/// The freshness that a read can claim. Established before the read, so that it never claims too much.
pub(super) enum Freshness {
    Linearizable { began: Instant },
    Local { began: Instant, staleness: Duration },
}

impl Freshness {
    /// Makes sure that a read will be as fresh as it must be.
    pub(super) async fn establish(app: &App, consistency: Consistency) -> Result<Self, Problem> {
        let began = Instant::now();
        let patience = match consistency {
            Consistency::Local => None,
            Consistency::Strong => Some(STRONG_READ_DEADLINE),
            Consistency::Prompt => Some(PROMPT_READ_DEADLINE),
        };
        if let Some(patience) = patience {
            match app.replication.read_barrier(tokio::time::Instant::now() + patience).await {
                Ok(()) => return Ok(Self::Linearizable { began }),
                Err(error) if consistency == Consistency::Strong => {
                    let detail = format!("a linearizable read is not possible now: {error}; consistency=local is");
                    return Err(Problem::new(Kind::QUORUM_UNAVAILABLE, detail));
                }
                Err(error) => tracing::debug!(%error, "the read falls back to local"),
            }
        }
        Ok(Self::Local { began, staleness: app.replication.staleness() })
    }

    /// States the freshness in the headers of the response.
    pub(super) fn describe(&self, revision: u64, response: &mut Response) {
        let staleness = match self {
            Self::Linearizable { .. } => None,
            Self::Local { staleness, .. } => Some(*staleness),
        };
        answer::set_freshness(response, revision, self.word(), staleness);
    }

    /// Counts the read.
    pub(super) fn count(&self, app: &App) {
        let (Self::Linearizable { began } | Self::Local { began, .. }) = self;
        app.telemetry.metrics().read(self.word(), began.elapsed());
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Linearizable { .. } => "linearizable",
            Self::Local { .. } => "local",
        }
    }
}

/// Reads from storage. Any read may wait for the disk, so none runs on an async thread.
pub(super) async fn read<T: Send + 'static>(
    app: &App,
    read: impl FnOnce(&Data) -> Result<T, storage::Error> + Send + 'static,
) -> Result<T, Problem> {
    let data = app.data.clone();
    match tokio::task::spawn_blocking(move || read(&data)).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Problem::stopping()),
    }
}
