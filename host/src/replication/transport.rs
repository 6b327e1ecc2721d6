//! How nodes reach each other.
//!
//! [`Transport`] is the one door: everything a node sends to another passes through it, so that replication can run
//! under a simulated network. [`HttpTransport`] is the real one: a `POST` to `<peer>/peer/<call>` with a postcard
//! body. It speaks HTTP/1.1 on kept-alive connections: each call has a connection to itself, so a long snapshot or a
//! slow forward never delays a heartbeat.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use openraft::alias::SnapshotOf;
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use serde::{Serialize, de::DeserializeOwned};

use super::Error;
use super::blocking::Blocking;
use super::identity::ClusterId;
use super::snapshot::SnapshotSource;
use super::types::{TypeConfig, Vote, decode, encode};
use crate::telemetry::Telemetry;

/// What a node can ask of another. The name is the last segment of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Raft's AppendEntries, heartbeats included.
    Append,
    /// Raft's RequestVote.
    Vote,
    /// A vote that binds nobody: would you elect me?
    PreVote,
    /// The leader asks this node to take over.
    TransferLeader,
    /// A whole snapshot, streamed.
    Snapshot,
    /// A round of finished writes for the leader.
    Propose,
    /// Up to where must a linearizable read see?
    ReadIndex,
    /// Who are you, and how are you?
    Hello,
    /// Will you form a cluster with us?
    Form,
    /// Take a change of the membership one step further.
    Members,
}

impl Call {
    /// Every call.
    pub const ALL: [Self; 10] = [
        Self::Append,
        Self::Vote,
        Self::PreVote,
        Self::TransferLeader,
        Self::Snapshot,
        Self::Propose,
        Self::ReadIndex,
        Self::Hello,
        Self::Form,
        Self::Members,
    ];

    /// The name in the path.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Vote => "vote",
            Self::PreVote => "pre-vote",
            Self::TransferLeader => "transfer-leader",
            Self::Snapshot => "snapshot",
            Self::Propose => "propose",
            Self::ReadIndex => "read-index",
            Self::Hello => "hello",
            Self::Form => "form",
            Self::Members => "members",
        }
    }
}

/// Why a call brought no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// No connection could be made: the peer has not seen the call.
    #[error("{url} cannot be reached: {reason}")]
    NotSent {
        /// The peer.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// The call was sent, and no whole answer came: the peer may have acted on it.
    #[error("{url} did not answer: {reason}")]
    NoAnswer {
        /// The peer.
        url: String,
        /// What the network said.
        reason: String,
    },
    /// The peer itself answered that it does not do this: it has not acted on the call.
    #[error("{url} refused: {reason}")]
    Refused {
        /// The peer.
        url: String,
        /// What it said.
        reason: String,
    },
}

/// Whom a call is meant for, and where it comes from.
#[derive(Debug, Clone, Copy)]
pub struct Envelope {
    /// The id of the node that it is meant for.
    pub to: u64,
    /// The cluster of the node that it comes from, if that belongs to one.
    pub cluster: Option<ClusterId>,
}

/// Carries calls between nodes. Implementations must not repeat a call by themselves once it may have been seen.
pub trait Transport: Send + Sync + 'static {
    /// Names the cluster that all calls come from, from now on.
    fn set_cluster(&self, cluster: ClusterId);

    /// Sends a call to the node `to`, at the base URL `url`, and waits up to `timeout` for the answer.
    fn call(
        &self,
        to: u64,
        url: &str,
        call: Call,
        body: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>>;

    /// Like [`Transport::call`], with a body that is produced while it is sent.
    fn stream(
        &self,
        to: u64,
        url: &str,
        call: Call,
        body: BoxStream<'static, std::io::Result<Bytes>>,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>>;
}

/// The header that names the node a call is meant for, so that a node that took over an address does not answer for
/// the one that had it.
pub const TO_HEADER: &str = "brink-peer-to";

/// The header that names the cluster a call comes from, as sixteen hexadecimal digits. It is absent while the caller
/// looks for a cluster, or forms one.
pub const CLUSTER_HEADER: &str = "brink-cluster";

/// The header of a refusal that comes from a node itself. An error without it may come from something in between, and
/// the node may have acted on the call.
pub const REFUSAL_HEADER: &str = "brink-peer-refusal";

/// Whoever is at the URL: for calls to nodes whose id is not known.
pub(super) const ANYONE: u64 = 0;

/// Calls over HTTP.
pub struct HttpTransport {
    http: reqwest::Client,
    cluster: OnceLock<ClusterId>,
}

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

impl HttpTransport {
    /// A transport with its own connection pool.
    pub fn new() -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder()
            .http1_only()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .no_proxy()
            .build()?;
        Ok(Self { http, cluster: OnceLock::new() })
    }

    async fn send(request: reqwest::RequestBuilder, url: String) -> Result<Bytes, CallError> {
        let reason = |error: reqwest::Error| {
            std::error::Error::source(&error).map_or_else(|| error.to_string(), |e| e.to_string())
        };
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => return Err(CallError::NotSent { url, reason: reason(error) }),
            Err(error) => return Err(CallError::NoAnswer { url, reason: reason(error) }),
        };
        let status = response.status();
        let is_refusal = response.headers().contains_key(REFUSAL_HEADER);
        match response.bytes().await {
            Ok(body) if status.is_success() => Ok(body),
            Ok(body) => {
                let text: String = String::from_utf8_lossy(&body).chars().take(200).collect();
                let reason = format!("{status}: {text}");
                Err(if is_refusal { CallError::Refused { url, reason } } else { CallError::NoAnswer { url, reason } })
            }
            Err(error) => Err(CallError::NoAnswer { url, reason: reason(error) }),
        }
    }

    fn request(&self, to: u64, url: &str, call: Call, timeout: Duration) -> reqwest::RequestBuilder {
        let request = self.http.post(format!("{url}/peer/{}", call.name())).header(TO_HEADER, to).timeout(timeout);
        match self.cluster.get() {
            Some(cluster) => request.header(CLUSTER_HEADER, cluster.to_string()),
            None => request,
        }
    }
}

impl Transport for HttpTransport {
    fn set_cluster(&self, cluster: ClusterId) {
        // A node belongs to one cluster for good.
        let _ = self.cluster.set(cluster);
    }

    fn call(
        &self,
        to: u64,
        url: &str,
        call: Call,
        body: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>> {
        Box::pin(Self::send(self.request(to, url, call, timeout).body(body), url.to_owned()))
    }

    fn stream(
        &self,
        to: u64,
        url: &str,
        call: Call,
        body: BoxStream<'static, std::io::Result<Bytes>>,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>> {
        let body = reqwest::Body::wrap_stream(body);
        Box::pin(Self::send(self.request(to, url, call, timeout).body(body), url.to_owned()))
    }
}

/// How long a small append may take before the follower counts as unreachable. Longer than a slow disk's fsync,
/// shorter than a writer's patience.
const APPEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The slowest network and disk on which a large append still gets through, in bytes per second.
const APPEND_BYTES_PER_SECOND_MIN: u32 = 8 * 1024 * 1024;

/// How long an append of this many bytes may take.
fn append_timeout(bytes: usize) -> Duration {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    APPEND_TIMEOUT + Duration::from_secs(u64::from(bytes / APPEND_BYTES_PER_SECOND_MIN))
}

/// Makes openraft's connections.
#[derive(Clone)]
pub struct Network {
    transport: Arc<dyn Transport>,
    telemetry: Telemetry,
    blocking: Blocking,
}

impl Network {
    /// Connections over a transport.
    pub fn new(transport: Arc<dyn Transport>, telemetry: Telemetry, blocking: Blocking) -> Self {
        Self { transport, telemetry, blocking }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, node: &openraft::BasicNode) -> Connection {
        Connection {
            to: target,
            url: node.addr.clone(),
            transport: self.transport.clone(),
            telemetry: self.telemetry.clone(),
            blocking: self.blocking.clone(),
        }
    }
}

/// openraft's way to one peer.
pub struct Connection {
    to: u64,
    url: String,
    transport: Arc<dyn Transport>,
    telemetry: Telemetry,
    blocking: Blocking,
}

impl Connection {
    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        call: Call,
        request: &Q,
        timeout: impl FnOnce(usize) -> Duration,
    ) -> Result<A, RPCError<TypeConfig>> {
        let network = |error: Error| RPCError::Network(NetworkError::new(&error));
        let body = encode(request).map_err(network)?;
        let timeout = timeout(body.len());
        let answer = self.transport.call(self.to, &self.url, call, body, timeout).await.map_err(rpc_error)?;
        decode(&answer).map_err(network)
    }
}

fn rpc_error(error: CallError) -> RPCError<TypeConfig> {
    match error {
        CallError::NotSent { .. } | CallError::NoAnswer { .. } => RPCError::Unreachable(Unreachable::new(&error)),
        CallError::Refused { .. } => RPCError::Network(NetworkError::new(&error)),
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = SnapshotSource;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let began = Instant::now();
        let answer = self.call(Call::Append, &request, append_timeout).await;
        if answer.is_ok() {
            self.telemetry.metrics().replication_rtt(&self.url, began.elapsed());
        }
        answer
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(Call::Vote, &request, |_| option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(Call::PreVote, &request, |_| option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotSource>,
        cancel: impl Future<Output = ReplicationClosed> + openraft::OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let network = |error: &dyn std::fmt::Display| {
            StreamingError::Network(NetworkError::new(&std::io::Error::other(error.to_string())))
        };
        let body = snapshot.snapshot.into_body(vote, &snapshot.meta, &self.blocking);
        let body = body.map_err(|error| network(&error))?;
        let transfer = self.transport.stream(self.to, &self.url, Call::Snapshot, body, option.hard_ttl());
        tokio::select! {
            biased;
            answer = transfer => match answer {
                Ok(answer) => decode(&answer).map_err(|error| network(&error)),
                Err(error @ CallError::Refused { .. }) => Err(network(&error)),
                Err(error) => Err(StreamingError::Unreachable(Unreachable::new(&error))),
            },
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(Call::TransferLeader, &request, |_| option.soft_ttl()).await
    }

    fn backoff(&self) -> Option<Backoff> {
        // A peer that comes back should be noticed within a fraction of an election.
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(100))))
    }
}
