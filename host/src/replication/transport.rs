//! How nodes reach each other.
//!
//! [`Transport`] is the one door: everything a node sends to another passes through it, so that replication can run
//! under a simulated network. [`HttpTransport`] is the real one: calls with postcard bodies on [lines](super::line), one
//! for Raft's messages and one for the rest, so that a slow forward never delays a heartbeat; snapshots as the body of a
//! `POST`, each on a connection to itself.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use openraft::alias::SnapshotOf;
use openraft::error::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, entry::RaftEntry};
use serde::{Serialize, de::DeserializeOwned};

use super::Error;
use super::blocking::Blocking;
use super::identity::ClusterId;
use super::line::{self, Line};
use super::shared::lock;
use super::snapshot::{Outgoing, RESUME_PAUSE, RESUME_TRIES_MAX, SnapshotSource};
use super::types::{TypeConfig, Vote, decode, encode};
use crate::limits::SNAPSHOT_BYTES_PER_SECOND_MAX;
use crate::net::{self, HttpClientOptions};
use crate::telemetry::Telemetry;

/// What a node can ask of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Call {
    /// Raft's AppendEntries, heartbeats included.
    Append,
    /// Raft's RequestVote.
    Vote,
    /// A vote that binds nobody: would you elect me?
    PreVote,
    /// The leader asks this node to take over.
    TransferLeader,
    /// A snapshot, or the rest of one, streamed.
    Snapshot,
    /// How much of a snapshot has come?
    SnapshotOffset,
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
    const ALL: [Self; 11] = [
        Self::Append,
        Self::Vote,
        Self::PreVote,
        Self::TransferLeader,
        Self::Snapshot,
        Self::SnapshotOffset,
        Self::Propose,
        Self::ReadIndex,
        Self::Hello,
        Self::Form,
        Self::Members,
    ];

    /// The name of a stream in the path.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Vote => "vote",
            Self::PreVote => "pre-vote",
            Self::TransferLeader => "transfer-leader",
            Self::Snapshot => "snapshot",
            Self::SnapshotOffset => "snapshot-offset",
            Self::Propose => "propose",
            Self::ReadIndex => "read-index",
            Self::Hello => "hello",
            Self::Form => "form",
            Self::Members => "members",
        }
    }

    /// The number that stands for the call on a line.
    pub(super) const fn number(self) -> u8 {
        self as u8
    }

    /// The call that a number stands for.
    pub(super) fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|call| call.number() == number)
    }

    /// Whether the call is one of Raft's own. They are small or must be quick, and they come often: a peer that does not
    /// answer one in time is better asked again on a new line.
    const fn is_rafts(self) -> bool {
        match self {
            Self::Append | Self::Vote | Self::PreVote | Self::TransferLeader => true,
            Self::Snapshot
            | Self::SnapshotOffset
            | Self::Propose
            | Self::ReadIndex
            | Self::Hello
            | Self::Form
            | Self::Members => false,
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

/// Carries calls between nodes. Implementations must not repeat a call by themselves once it may have been seen, and must
/// notice within seconds that a peer has vanished, however long a call may take.
pub trait Transport: Send + Sync + 'static {
    /// Names the cluster that all calls come from, from now on.
    fn set_cluster(&self, cluster: ClusterId);

    /// Sends a call to the node `to`, at the base URL `url`, and waits up to `timeout` for the answer. The call is on its
    /// way when this returns, before the future is polled: calls of one kind are sent in the order in which they were
    /// made, and as a rule arrive so.
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

/// The header that names the node a snapshot is meant for, so that a node that took over an address does not take it for
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
    /// For snapshots.
    http: reqwest::Client,
    cluster: OnceLock<ClusterId>,
    /// The lines in use, by the node's URL and whether they are for Raft's own calls.
    lines: Mutex<HashMap<(String, bool), Line>>,
}

/// After how long a connection to a peer that has vanished breaks, whatever the call's timeout: a snapshot's is long, and
/// one whose receiver lost its power would else hold up replication to it until then.
pub(super) const VANISHED_AFTER: Duration = Duration::from_secs(3);

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

impl HttpTransport {
    /// A transport with its own connections.
    pub fn new() -> Result<Self, reqwest::Error> {
        let options = HttpClientOptions {
            connect_timeout: CONNECT_TIMEOUT,
            timeout: None,
            vanished_after: Some(VANISHED_AFTER),
            uses_proxy: false,
        };
        let http = net::http_client(options).build()?;
        Ok(Self { http, cluster: OnceLock::new(), lines: Mutex::new(HashMap::new()) })
    }

    fn line(&self, url: &str, call: Call) -> Line {
        let mut lines = lock(&self.lines);
        lines.entry((url.to_owned(), call.is_rafts())).or_insert_with(|| Line::to(url)).clone()
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
        let line = self.line(url, call);
        let answer = line.call(call, Envelope { to, cluster: self.cluster.get().copied() }, body);
        let url = url.to_owned();
        Box::pin(async move {
            match tokio::time::timeout(timeout, answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    if call.is_rafts() {
                        line.reset();
                    }
                    Err(line::no_answer(&url, &format!("not within {timeout:?}")))
                }
            }
        })
    }

    fn stream(
        &self,
        to: u64,
        url: &str,
        call: Call,
        body: BoxStream<'static, std::io::Result<Bytes>>,
        timeout: Duration,
    ) -> BoxFuture<'_, Result<Bytes, CallError>> {
        let request = self.http.post(format!("{url}/peer/{}", call.name())).header(TO_HEADER, to).timeout(timeout);
        let request = match self.cluster.get() {
            Some(cluster) => request.header(CLUSTER_HEADER, cluster.to_string()),
            None => request,
        };
        Box::pin(Self::send(request.body(reqwest::Body::wrap_stream(body)), url.to_owned()))
    }
}

/// How long a small append may take before the follower counts as unreachable. Longer than a slow disk's fsync,
/// shorter than a writer's patience.
const APPEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The slowest network and disk on which a large append still gets through, in bytes per second.
const APPEND_BYTES_PER_SECOND_MIN: u32 = 8 * 1024 * 1024;

/// How long an append of this many bytes may take.
fn append_timeout(bytes: usize, _option: &RPCOption) -> Duration {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    APPEND_TIMEOUT + Duration::from_secs(u64::from(bytes / APPEND_BYTES_PER_SECOND_MIN))
}

/// How long a call that changes who leads may take.
fn short_timeout(_bytes: usize, option: &RPCOption) -> Duration {
    option.soft_ttl()
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

/// What became of one append of a stream.
type AppendResult = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

/// openraft's way to one peer.
pub struct Connection {
    to: u64,
    url: String,
    transport: Arc<dyn Transport>,
    telemetry: Telemetry,
    blocking: Blocking,
}

/// How long the news of a commit waits for entries to go with: followers apply a little later, so that a writer who
/// waits for each write pays one exchange for it and not two.
const COMMIT_PATIENCE: Duration = Duration::from_millis(1);

/// The appends of a stream, where one that only tells of a commit is left out if the next comes soon, which tells of it
/// too.
struct Appends<S> {
    input: S,
    is_first: bool,
}

impl<S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin> Appends<S> {
    async fn next(&mut self) -> Option<AppendEntriesRequest<TypeConfig>> {
        let mut request = self.input.next().await?;
        // The first may be a question whether the logs match, and somebody waits for the answer.
        if std::mem::take(&mut self.is_first) {
            return Some(request);
        }
        while request.entries.is_empty()
            && let Ok(Some(next)) = tokio::time::timeout(COMMIT_PATIENCE, self.input.next()).await
        {
            request = next;
        }
        Some(request)
    }
}

impl Connection {
    /// Makes a call. It is on its way when this returns.
    fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        call: Call,
        request: &Q,
        timeout: fn(usize, &RPCOption) -> Duration,
        option: &RPCOption,
    ) -> impl Future<Output = Result<A, RPCError<TypeConfig>>> + use<'_, Q, A> {
        let network = |error: Error| RPCError::Network(NetworkError::new(&error));
        let sent = encode(request).map(|body| {
            let timeout = timeout(body.len(), option);
            self.transport.call(self.to, &self.url, call, body, timeout)
        });
        async move {
            let answer = sent.map_err(network)?.await.map_err(rpc_error)?;
            decode(&answer).map_err(network)
        }
    }

    /// Sends an append, and tells how long its answer took.
    fn append(
        &self,
        request: &AppendEntriesRequest<TypeConfig>,
        option: &RPCOption,
    ) -> impl Future<Output = Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>>> + use<'_> {
        let began = Instant::now();
        let answer = self.call(Call::Append, request, append_timeout, option);
        async move {
            let answer = answer.await;
            if answer.is_ok() {
                self.telemetry.metrics().replication_rtt(&self.url, began.elapsed());
            }
            answer
        }
    }
}

impl Connection {
    /// Sends a snapshot. If the stream breaks it goes on where it stopped, as long as the peer has more of it each time.
    async fn send_snapshot(&self, outgoing: &Outgoing, deadline: tokio::time::Instant) -> Result<Bytes, CallError> {
        let (mut most, mut tries_in_vain) = (0, 0);
        loop {
            let error = match self.held_by_peer(outgoing).await {
                Ok(offset) => {
                    if offset > most {
                        (most, tries_in_vain) = (offset, 0);
                    }
                    match self.send_rest(outgoing, offset, deadline).await {
                        Ok(answer) => return Ok(answer),
                        // The peer has read it all and does not want it.
                        Err(error @ CallError::Refused { .. }) => return Err(error),
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            tries_in_vain += 1;
            if tries_in_vain > RESUME_TRIES_MAX || tokio::time::Instant::now() >= deadline {
                return Err(error);
            }
            tokio::time::sleep(RESUME_PAUSE).await;
        }
    }

    /// How many bytes of a snapshot the peer has already.
    async fn held_by_peer(&self, outgoing: &Outgoing) -> Result<u64, CallError> {
        let id = encode(&outgoing.id).map_err(|error| self.broken(&error))?;
        let held = self.transport.call(self.to, &self.url, Call::SnapshotOffset, id, APPEND_TIMEOUT).await?;
        decode(&held).map_err(|error| self.broken(&error))
    }

    async fn send_rest(
        &self,
        outgoing: &Outgoing,
        offset: u64,
        deadline: tokio::time::Instant,
    ) -> Result<Bytes, CallError> {
        tracing::info!(url = self.url, id = format!("{:016x}", outgoing.id), offset, "sending a snapshot");
        let body = outgoing.body(offset, SNAPSHOT_BYTES_PER_SECOND_MAX, &self.blocking);
        let body = body.map_err(|error| self.broken(&error))?;
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        self.transport.stream(self.to, &self.url, Call::Snapshot, body, left).await
    }

    fn broken(&self, reason: &dyn std::fmt::Display) -> CallError {
        CallError::NoAnswer { url: self.url.clone(), reason: reason.to_string() }
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
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.append(&request, &option).await
    }

    /// One append after the other. They are not pipelined: openraft credits the answer to one with the time at which a
    /// later one that carries no entries was sent, and would believe in a longer lease than the follower has granted.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, AppendResult>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let this: &'s Self = self;
        let results = stream::unfold(Some(Appends { input, is_first: true }), move |appends| {
            let option = option.clone();
            async move {
                let mut appends = appends?;
                let request = appends.next().await?;
                let previous = request.prev_log_id;
                let last = request.entries.last().map(|entry| entry.log_id()).or(previous);
                let answer = this.append(&request, &option).await;
                let result: AppendResult = answer.map(|answer| answer.into_stream_result(previous, last));
                // After one that is no success, what would follow does not fit.
                let goes_on = matches!(result, Ok(Ok(matched)) if matched == last);
                Some((result, goes_on.then_some(appends)))
            }
        });
        Box::pin(async { Ok(results.boxed()) })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(Call::Vote, &request, short_timeout, &option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        self.call(Call::PreVote, &request, short_timeout, &option).await
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
        let outgoing = Outgoing::new(vote, snapshot.meta, snapshot.snapshot);
        tokio::select! {
            biased;
            answer = self.send_snapshot(&outgoing, tokio::time::Instant::now() + option.hard_ttl()) => match answer {
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
        self.call(Call::TransferLeader, &request, short_timeout, &option).await
    }

    fn backoff(&self) -> Option<Backoff> {
        // A peer that comes back should be noticed within a fraction of an election.
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(100))))
    }
}
