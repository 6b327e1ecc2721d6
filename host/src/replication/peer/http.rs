//! The transport of production.
//!
//! Calls have postcard bodies and travel on kept [connections](super::connection). A snapshot is the body of a `POST`, on
//! a connection of its own.

use std::{collections::HashMap, sync::OnceLock, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use parking_lot::Mutex;
use tokio::time::timeout;

use super::connection::PeerConnection;
use super::credential::Credentials;
use super::dial::{Body, NOT_ACCEPTED, dial, empty, headers_of};
use super::protocol::{
    ANYONE, Answer, CLUSTER_HEADER, Call, CallError, Envelope, Failure, Fetched, INDEX_MIN_HEADER, REFUSAL_HEADER,
    SnapshotBody, TO_HEADER, Transport, VANISHED_AFTER,
};
use crate::net::Vanished;
use crate::replication::types::ClusterId;

/// Maximum time to connect for a snapshot.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Most bytes of the answer to a snapshot, and of a refusal.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Characters of a refusal that are shown.
const REASON_CHARS_MAX: usize = 200;

/// Path of snapshots below the base URL.
const SNAPSHOT_PATH: &str = "/peer/snapshot";

/// Calls over HTTP.
pub struct HttpTransport {
    credentials: Credentials,
    cluster: OnceLock<ClusterId>,
    /// The connections in use, by URL and whether they carry Raft's own calls.
    connections: Mutex<HashMap<(String, bool), Kept>>,
}

struct Kept {
    connection: PeerConnection,
    /// The secret by which this node proves itself on it.
    proved_by: Option<[u8; 4]>,
}

impl HttpTransport {
    /// A transport with its own connections.
    pub fn new(credentials: Credentials) -> Self {
        Self { credentials, cluster: OnceLock::new(), connections: Mutex::default() }
    }

    fn connection(&self, url: &str, call: Call) -> PeerConnection {
        let proved_by = self.credentials.proves_by();
        let connect = || Kept { connection: PeerConnection::to(url, self.credentials.clone()), proved_by };
        let mut connections = self.connections.lock();
        let kept = connections.entry((url.to_owned(), call.is_raft_call())).or_insert_with(connect);
        if kept.proved_by != proved_by {
            // The former connection ends with the last call that waits for its answer.
            *kept = connect();
        }
        kept.connection.clone()
    }

    /// Sends a request for a snapshot. The body of the answer is not read yet, unless it is an error.
    async fn send(
        &self,
        url: &str,
        method: Method,
        headers: std::io::Result<HeaderMap>,
        body: Body,
    ) -> Result<Response<Incoming>, CallError> {
        let not_sent = |reason: &dyn ToString| CallError::new(Failure::NotSent, url, reason.to_string());
        let mut headers = headers.map_err(|error| not_sent(&error))?;
        if let Some(cluster) = self.cluster.get() {
            let cluster = HeaderValue::try_from(cluster.to_string()).map_err(|error| not_sent(&error))?;
            headers.insert(CLUSTER_HEADER, cluster);
        }
        let dialed = timeout(CONNECT_TIMEOUT, dial(&self.credentials, url, Vanished::Silent(VANISHED_AFTER))).await;
        let dialed = dialed.unwrap_or_else(|elapsed| Err(not_sent(&elapsed)))?;
        let withdrawn = self.credentials.withdrawn(dialed.secret());
        let answer = tokio::select! {
            answer = dialed.send(method, SNAPSHOT_PATH, headers, body) => answer,
            () = withdrawn => Err(std::io::Error::other("the secret by which it proved itself is gone")),
        };
        let answer = answer.map_err(|error| CallError::new(Failure::NoAnswer, url, error))?;
        let status = answer.status();
        if status == StatusCode::UNAUTHORIZED {
            return Err(not_sent(&NOT_ACCEPTED));
        }
        if status.is_success() {
            return Ok(answer);
        }
        let is_refusal = answer.headers().contains_key(REFUSAL_HEADER);
        let text: String = String::from_utf8_lossy(&read(url, answer).await?).chars().take(REASON_CHARS_MAX).collect();
        let failure = if is_refusal { Failure::Refused } else { Failure::NoAnswer };
        Err(CallError::new(failure, url, format!("{status}: {text}")))
    }
}

impl Transport for HttpTransport {
    fn set_cluster(&self, cluster: ClusterId) {
        // Setting fails if it is set: a node never changes its cluster.
        let _ = self.cluster.set(cluster);
    }

    fn call(&self, to: u64, url: &str, call: Call, body: Bytes, timeout: Duration) -> Answer<'_> {
        let connection = self.connection(url, call);
        let answer = connection.call(call, Envelope { to, cluster: self.cluster.get().copied() }, body);
        let url = url.to_owned();
        Box::pin(async move {
            match tokio::time::timeout(timeout, answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    if call.is_raft_call() {
                        connection.reset();
                    }
                    Err(CallError::new(Failure::NoAnswer, url, format!("not within {timeout:?}")))
                }
            }
        })
    }

    fn send_snapshot(&self, to: u64, url: &str, body: SnapshotBody) -> Answer<'_> {
        let headers = headers_of([(TO_HEADER, to.to_string())]);
        let url = url.to_owned();
        Box::pin(async move {
            let body = StreamBody::new(body.map_ok(Frame::data)).boxed_unsync();
            let answer = self.send(&url, Method::POST, headers, body).await?;
            read(&url, answer).await
        })
    }

    fn fetch_snapshot(&self, url: &str, index_min: u64) -> Fetched<'_> {
        let headers = headers_of([(TO_HEADER, ANYONE.to_string()), (INDEX_MIN_HEADER, index_min.to_string())]);
        let url = url.to_owned();
        Box::pin(async move {
            let answer = self.send(&url, Method::GET, headers, empty()).await?;
            Ok(answer.into_body().into_data_stream().map_err(std::io::Error::other).boxed())
        })
    }
}

/// Reads the body of an answer.
async fn read(url: &str, answer: Response<Incoming>) -> Result<Bytes, CallError> {
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    Ok(body.map_err(|error| CallError::new(Failure::NoAnswer, url, error))?.to_bytes())
}
