//! The transport of production.
//!
//! Calls have postcard bodies and travel on kept [connections](super::connection). A snapshot is the body of a `POST`, on
//! a connection of its own.

use std::{collections::HashMap, sync::OnceLock, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;

use super::connection::PeerConnection;
use super::protocol::{
    ANYONE, Answer, CLUSTER_HEADER, Call, CallError, Envelope, Failure, Fetched, INDEX_MIN_HEADER, REFUSAL_HEADER,
    SnapshotBody, TO_HEADER, Transport, VANISHED_AFTER,
};
use crate::net;
use crate::replication::types::ClusterId;

/// Maximum time to connect for a snapshot.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Unanswered probes after which a silent connection breaks.
const KEEPALIVE_PROBES: u32 = 3;

/// Calls over HTTP.
pub struct HttpTransport {
    /// For snapshots.
    http: reqwest::Client,
    cluster: OnceLock<ClusterId>,
    /// The connections in use, by URL and whether they carry Raft's own calls.
    connections: Mutex<HashMap<(String, bool), PeerConnection>>,
}

impl HttpTransport {
    /// A transport with its own connections.
    pub fn new() -> Result<Self, reqwest::Error> {
        let interval = VANISHED_AFTER / (KEEPALIVE_PROBES + 1);
        let http = net::http_client(CONNECT_TIMEOUT)
            .tcp_keepalive(interval)
            .tcp_keepalive_interval(interval)
            .tcp_keepalive_retries(KEEPALIVE_PROBES)
            .no_proxy()
            .build()?;
        Ok(Self { http, cluster: OnceLock::new(), connections: Mutex::new(HashMap::new()) })
    }

    fn connection(&self, url: &str, call: Call) -> PeerConnection {
        let mut connections = self.connections.lock();
        let key = (url.to_owned(), call.is_raft_call());
        connections.entry(key).or_insert_with(|| PeerConnection::to(url)).clone()
    }

    /// A request that names this node's cluster.
    fn request(&self, request: reqwest::RequestBuilder) -> reqwest::RequestBuilder {
        match self.cluster.get() {
            Some(cluster) => request.header(CLUSTER_HEADER, cluster.to_string()),
            None => request,
        }
    }

    /// Sends a request. The body of the answer is not read yet, unless it is an error.
    async fn send(request: reqwest::RequestBuilder, url: &str) -> Result<reqwest::Response, CallError> {
        let response = request.send().await.map_err(|error| match error.is_connect() {
            true => failed(Failure::NotSent, url, &error),
            false => failed(Failure::NoAnswer, url, &error),
        })?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let is_refusal = response.headers().contains_key(REFUSAL_HEADER);
        let body = response.bytes().await.map_err(|error| failed(Failure::NoAnswer, url, &error))?;
        let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
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
        let request = self.http.post(format!("{url}/peer/snapshot")).header(TO_HEADER, to);
        let request = self.request(request).body(reqwest::Body::wrap_stream(body));
        let url = url.to_owned();
        Box::pin(async move {
            let response = Self::send(request, &url).await?;
            response.bytes().await.map_err(|error| failed(Failure::NoAnswer, &url, &error))
        })
    }

    fn fetch_snapshot(&self, url: &str, index_min: u64) -> Fetched<'_> {
        let request = self.http.get(format!("{url}/peer/snapshot"));
        let request = request.header(TO_HEADER, ANYONE).header(INDEX_MIN_HEADER, index_min);
        let (request, url) = (self.request(request), url.to_owned());
        Box::pin(async move {
            let response = Self::send(request, &url).await?;
            Ok(response.bytes_stream().map_err(std::io::Error::other).boxed())
        })
    }
}

fn failed(failure: Failure, url: &str, error: &reqwest::Error) -> CallError {
    let source = std::error::Error::source(error).map(ToString::to_string);
    CallError::new(failure, url, source.unwrap_or_else(|| error.to_string()))
}
