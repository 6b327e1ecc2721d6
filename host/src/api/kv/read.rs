//! Reads: their freshness, and access to storage off the async threads.

use std::time::{Duration, Instant};

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

use crate::api::App;
use crate::api::problem::{Kind, Problem};
use crate::api::request::Consistency;
use crate::limits::{PROMPT_READ_DEADLINE, STRONG_READ_DEADLINE};
use crate::replication;
use crate::storage::{self, Data};

const REVISION: HeaderName = HeaderName::from_static("brink-revision");
const CONSISTENCY: HeaderName = HeaderName::from_static("brink-consistency");
const STALENESS_MS: HeaderName = HeaderName::from_static("brink-staleness-ms");

/// The freshness that a read can claim. Established before the read, so that it never claims too much.
pub(super) struct Freshness {
    began: Instant,
    /// How stale a local read may be; `None` for a linearizable one.
    staleness: Option<Duration>,
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
                Ok(()) => return Ok(Self { began, staleness: None }),
                Err(error) if consistency == Consistency::Strong => {
                    let kind = match error {
                        replication::Error::Barred(_) => Kind::NOT_TAKING_PART,
                        _ => Kind::QUORUM_UNAVAILABLE,
                    };
                    let detail = format!("a linearizable read is not possible now: {error}; consistency=local is");
                    return Err(Problem::new(kind, detail));
                }
                Err(error) => tracing::debug!(%error, "the read falls back to local"),
            }
        }
        app.replication.recover_reads().await;
        Ok(Self { began, staleness: Some(app.replication.staleness()) })
    }

    /// States the freshness and the revision of the read in the headers of its response.
    pub(super) fn describe(&self, revision: u64, response: &mut Response) {
        let headers = response.headers_mut();
        headers.insert(REVISION, HeaderValue::from(revision));
        headers.insert(CONSISTENCY, HeaderValue::from_static(self.word()));
        if let Some(staleness) = self.staleness {
            let staleness_ms = u64::try_from(staleness.as_millis()).unwrap_or(u64::MAX);
            headers.insert(STALENESS_MS, HeaderValue::from(staleness_ms));
        }
    }

    pub(super) fn count(&self, app: &App) {
        app.telemetry.metrics().read(self.staleness.is_none(), self.began.elapsed());
    }

    fn word(&self) -> &'static str {
        if self.staleness.is_none() { "linearizable" } else { "local" }
    }
}

/// Reads from storage. Any read may wait for the disk, so none runs on an async thread.
pub(super) async fn read<T: Send + 'static>(
    app: &App,
    read: impl FnOnce(&Data) -> Result<T, storage::Error> + Send + 'static,
) -> Result<T, Problem> {
    let data = app.data.clone();
    let reading = tokio::task::spawn_blocking(move || read(&data)).await;
    Ok(reading.map_err(|_| Problem::new(Kind::STOPPING, "the node is stopping"))??)
}
