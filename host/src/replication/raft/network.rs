//! openraft's network on [`Transport`].

use std::sync::Arc;
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
use serde::de::DeserializeOwned;

use crate::replication::addresses::AddressBook;
use crate::replication::peer::protocol::{Call, CallError, Failure, Transport};
use crate::replication::peer::snapshot::{Outgoing, RESUME_PAUSE, RESUME_TRIES_MAX, SnapshotSource};
use crate::replication::types::{TypeConfig, Vote, decode, encode, url_of};
use crate::replication::{blocking::Blocking, error::Error};
use crate::{limits::SNAPSHOT_BYTES_PER_SECOND_MAX, telemetry::Telemetry};

/// Maximum duration of a small append before the follower counts as unreachable: longer than a slow disk's fsync, shorter
/// than a writer's deadline.
const APPEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Least throughput of network and disk for a large append to succeed, in bytes per second.
const APPEND_BYTES_PER_SECOND_MIN: u32 = 8 * 1024 * 1024;

/// Maximum duration of an append, given its size.
fn append_timeout(bytes: usize) -> Duration {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    APPEND_TIMEOUT + Duration::from_secs(u64::from(bytes / APPEND_BYTES_PER_SECOND_MIN))
}

#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) telemetry: Telemetry,
    pub(crate) blocking: Blocking,
    pub(crate) addresses: Arc<AddressBook>,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: u64, node: &openraft::BasicNode) -> PeerNetwork {
        PeerNetwork { to: target, stored_url: url_of(node), network: self.clone() }
    }
}

type Answer<A> = Result<A, RPCError<TypeConfig>>;

pub(crate) struct PeerNetwork {
    to: u64,
    /// The peer's URL in the membership.
    stored_url: String,
    network: Network,
}

/// Time for which an append without entries, which only reports a commit, waits for entries to travel with. Followers apply
/// a little later for it, and a client that waits for each write pays for one exchange per write instead of two.
const COMMIT_PATIENCE: Duration = Duration::from_millis(1);

/// The next append of a stream. An append that only reports a commit is dropped if another follows soon, which reports the
/// commit as well.
async fn next_append<S>(input: &mut S, is_first: bool) -> Option<AppendEntriesRequest<TypeConfig>>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    let mut request = input.next().await?;
    // The first append may be a probe for the matching log position, and openraft waits for its answer.
    while !is_first
        && request.entries.is_empty()
        && let Ok(Some(next)) = tokio::time::timeout(COMMIT_PATIENCE, input.next()).await
    {
        request = next;
    }
    Some(request)
}

impl PeerNetwork {
    /// The URL at which the peer is reached now.
    fn url(&self) -> String {
        self.network.addresses.current(self.to, self.stored_url.clone())
    }

    /// Makes a call. It is on its way when this returns.
    fn call<A: DeserializeOwned>(
        &self,
        call: Call,
        body: Result<Bytes, Error>,
        timeout: Duration,
    ) -> impl Future<Output = Answer<A>> + use<'_, A> {
        let network = |error: Error| RPCError::Network(NetworkError::new(&error));
        let sent = body.map(|body| self.network.transport.call(self.to, &self.url(), call, body, timeout));
        async move {
            let answer = sent.map_err(network)?.await.map_err(rpc_error)?;
            decode(&answer).map_err(network)
        }
    }

    /// Sends an append and records its round trip.
    fn append(
        &self,
        request: &AppendEntriesRequest<TypeConfig>,
    ) -> impl Future<Output = Answer<AppendEntriesResponse<TypeConfig>>> + use<'_> {
        let began = Instant::now();
        let body = encode(request);
        let timeout = append_timeout(body.as_ref().map_or(0, Bytes::len));
        let answer = self.call(Call::Append, body, timeout);
        async move {
            let answer = answer.await;
            if answer.is_ok() {
                self.network.telemetry.metrics().replication_rtt(&self.url(), began.elapsed());
            }
            answer
        }
    }

    /// Sends a snapshot. If the stream breaks it is resumed where it stopped, as long as each attempt makes progress.
    async fn send_snapshot(&self, outgoing: &Outgoing, deadline: tokio::time::Instant) -> Result<Bytes, CallError> {
        let (mut most, mut tries) = (0, 0);
        loop {
            let error = match self.held_by_peer(outgoing).await {
                Ok(offset) => {
                    if offset > most {
                        (most, tries) = (offset, 0);
                    }
                    match self.send_rest(outgoing, offset, deadline).await {
                        Ok(answer) => return Ok(answer),
                        // The peer has received it all and rejects it.
                        Err(error) if error.failure == Failure::Refused => return Err(error),
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            tries += 1;
            if tries > RESUME_TRIES_MAX || tokio::time::Instant::now() >= deadline {
                return Err(error);
            }
            tokio::time::sleep(RESUME_PAUSE).await;
        }
    }

    /// Number of bytes of a snapshot that the peer has already.
    async fn held_by_peer(&self, outgoing: &Outgoing) -> Result<u64, CallError> {
        let id = encode(&outgoing.id).map_err(|error| CallError::new(Failure::NoAnswer, &self.url(), error))?;
        let held = self.network.transport.call(self.to, &self.url(), Call::SnapshotOffset, id, APPEND_TIMEOUT).await?;
        decode(&held).map_err(|error| CallError::new(Failure::NoAnswer, &self.url(), error))
    }

    async fn send_rest(
        &self,
        outgoing: &Outgoing,
        offset: u64,
        deadline: tokio::time::Instant,
    ) -> Result<Bytes, CallError> {
        tracing::info!(url = self.url(), id = format!("{:016x}", outgoing.id), offset, "sending a snapshot");
        let body = outgoing.body(offset, SNAPSHOT_BYTES_PER_SECOND_MAX, &self.network.blocking);
        let body = body.map_err(|error| CallError::new(Failure::NoAnswer, &self.url(), error))?;
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        self.network.transport.send_snapshot(self.to, &self.url(), body, left).await
    }
}

fn rpc_error(error: CallError) -> RPCError<TypeConfig> {
    match error.failure {
        Failure::NotSent | Failure::NoAnswer => RPCError::Unreachable(Unreachable::new(&error)),
        Failure::Refused => RPCError::Network(NetworkError::new(&error)),
    }
}

impl RaftNetworkV2<TypeConfig> for PeerNetwork {
    type SnapshotData = SnapshotSource;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Answer<AppendEntriesResponse<TypeConfig>> {
        self.append(&request).await
    }

    /// Sends one append after the other. IMPORTANT: appends are not pipelined. openraft credits the answer to an append
    /// with the time at which a later append without entries was sent, and would assume a longer lease than the follower
    /// has granted.
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Answer<BoxStream<'s, Answer<StreamAppendResult<TypeConfig>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let this: &'s Self = self;
        let results = stream::unfold(Some((input, true)), move |appends| async move {
            let (mut input, is_first) = appends?;
            let request = next_append(&mut input, is_first).await?;
            let previous = request.prev_log_id;
            let last = request.entries.last().map(|entry| entry.log_id()).or(previous);
            let answer = this.append(&request).await;
            let result: Answer<StreamAppendResult<TypeConfig>> =
                answer.map(|answer| answer.into_stream_result(previous, last));
            // After a failed append, the following ones do not match the follower's log.
            let goes_on = matches!(result, Ok(Ok(matched)) if matched == last);
            Some((result, goes_on.then_some((input, false))))
        });
        Box::pin(async { Ok(results.boxed()) })
    }

    async fn vote(&mut self, request: VoteRequest<TypeConfig>, option: RPCOption) -> Answer<VoteResponse<TypeConfig>> {
        self.call(Call::Vote, encode(&request), option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Answer<VoteResponse<TypeConfig>> {
        self.call(Call::PreVote, encode(&request), option.soft_ttl()).await
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
                Err(error) if error.failure == Failure::Refused => Err(network(&error)),
                Err(error) => Err(StreamingError::Unreachable(Unreachable::new(&error))),
            },
            closed = cancel => Err(StreamingError::Closed(closed)),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Answer<TransferLeaderResponse<TypeConfig>> {
        self.call(Call::TransferLeader, encode(&request), option.soft_ttl()).await
    }

    fn backoff(&self) -> Option<Backoff> {
        // A returning peer should be noticed within a fraction of an election timeout.
        Some(Backoff::new(std::iter::repeat(Duration::from_millis(100))))
    }
}
