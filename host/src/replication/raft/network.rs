//! openraft's network on [`Transport`].

use std::sync::Arc;
use std::time::Duration;

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
use tokio::time::Instant;

use crate::replication::addresses::AddressBook;
use crate::replication::peer::claims;
use crate::replication::peer::protocol::{Call, CallError, Failure, Transport};
use crate::replication::peer::snapshot::{
    Awaited, Outgoing, Progress, RESUME_PAUSE, RESUME_TRIES_MAX, STALL_MAX, SnapshotSource, Transfers,
};
use crate::replication::types::{TypeConfig, Vote, decode, encode, encode_with_rounds, encoded_bytes, url_of};
use crate::replication::{blocking::Blocking, error::Error};
use crate::{limits::SNAPSHOT_BYTES_PER_SECOND_MAX, telemetry::Telemetry};

/// Maximum duration of a small append before the follower counts as unreachable: longer than a slow disk's fsync, shorter
/// than a writer's deadline.
const APPEND_TIMEOUT: Duration = Duration::from_secs(1);

/// Least throughput of network and disk for a large append to succeed, in bytes per second.
const APPEND_BYTES_PER_SECOND_MIN: u32 = 8 * 1024 * 1024;

/// Pause after a receiver has refused a snapshot, because its disk is full or the snapshot is damaged.
const REFUSAL_PAUSE: Duration = Duration::from_secs(1);

/// Interval at which the progress of a snapshot is checked.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

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
    pub(crate) transfers: Arc<Transfers>,
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
        self.network.addresses.current(self.to, &self.stored_url)
    }

    /// Makes a call. It is on its way when this returns.
    fn call<A: DeserializeOwned>(
        &self,
        call: Call,
        body: Result<Bytes, Error>,
        timeout: Duration,
    ) -> impl Future<Output = Answer<A>> + use<'_, A> {
        let sent = body.map(|body| self.network.transport.call(self.to, &self.url(), call, body, timeout));
        async move {
            let answer = sent.map_err(network_error)?.await.map_err(rpc_error)?;
            decode(&answer).map_err(network_error)
        }
    }

    /// Asks for a vote, binding or not.
    async fn ask_for_vote(
        &self,
        call: Call,
        request: &VoteRequest<TypeConfig>,
        timeout: Duration,
    ) -> Answer<VoteResponse<TypeConfig>> {
        let answer = self.call(call, encode(request), timeout).await?;
        claims::vote_answer(&answer, &request.vote).map_err(network_error)?;
        Ok(answer)
    }

    /// Sends an append and records its round trip.
    fn append(
        &self,
        request: &AppendEntriesRequest<TypeConfig>,
    ) -> impl Future<Output = Answer<AppendEntriesResponse<TypeConfig>>> + use<'_> {
        let began = std::time::Instant::now();
        let body = encode_with_rounds(request, request.entries.iter().map(encoded_bytes).sum());
        let timeout = append_timeout(body.as_ref().map_or(0, Bytes::len));
        let answer = self.call(Call::Append, body, timeout);
        let (own, previous) = (request.vote, request.prev_log_id);
        let last = request.entries.last().map(|entry| entry.log_id()).or(previous);
        async move {
            let answer = answer.await?;
            self.network.telemetry.metrics().replication_rtt(&self.url(), began.elapsed());
            claims::append_answer(answer, (&own, self.to), (previous, last)).map_err(network_error)
        }
    }

    /// Sends a snapshot. If the stream breaks it is resumed where it stopped, as long as each attempt makes progress.
    async fn send_snapshot(&self, outgoing: &Outgoing) -> Result<Bytes, CallError> {
        let (mut most, mut tries, mut under_way) = (0, 0, None);
        loop {
            let error = match self.held_by_peer(outgoing).await {
                Ok(offset) => {
                    // The log is kept for it from now on, and not before: the peer may be down for long.
                    under_way.get_or_insert_with(|| self.network.transfers.begin(self.to, outgoing.covered()));
                    if offset > most {
                        (most, tries) = (offset, 0);
                    }
                    match self.send_rest(outgoing, offset).await {
                        Ok(answer) => return Ok(answer),
                        Err(error) if error.failure == Failure::Refused => {
                            tracing::warn!(url = self.url(), %error, "a snapshot was refused");
                            tokio::time::sleep(REFUSAL_PAUSE).await;
                            return Err(error);
                        }
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            tracing::debug!(url = self.url(), %error, "a snapshot did not arrive as a whole");
            tries += 1;
            if tries > RESUME_TRIES_MAX {
                return Err(error);
            }
            tokio::time::sleep(RESUME_PAUSE).await;
        }
    }

    /// Number of bytes of a snapshot that the peer has already.
    async fn held_by_peer(&self, outgoing: &Outgoing) -> Result<u64, CallError> {
        let id = encode(&outgoing.id).map_err(|error| CallError::new(Failure::NoAnswer, self.url(), error))?;
        let held = self.network.transport.call(self.to, &self.url(), Call::SnapshotOffset, id, APPEND_TIMEOUT).await?;
        decode(&held).map_err(|error| CallError::new(Failure::NoAnswer, self.url(), error))
    }

    async fn send_rest(&self, outgoing: &Outgoing, offset: u64) -> Result<Bytes, CallError> {
        tracing::info!(url = self.url(), id = format!("{:016x}", outgoing.id), offset, "sending a snapshot");
        let body = outgoing.body(offset, SNAPSHOT_BYTES_PER_SECOND_MAX, &self.network.blocking);
        let body = body.map_err(|error| CallError::new(Failure::NoAnswer, self.url(), error))?;
        let progress = Progress::new();
        tokio::select! {
            biased;
            answer = self.network.transport.send_snapshot(self.to, &self.url(), progress.watch(body)) => answer,
            error = self.stalled(outgoing, &progress) => Err(error),
        }
    }

    /// Returns when a stream makes no progress any more.
    async fn stalled(&self, outgoing: &Outgoing, progress: &Progress) -> CallError {
        let mut alive = Instant::now();
        loop {
            tokio::time::sleep(PROGRESS_INTERVAL).await;
            let silent_since = match progress.awaited() {
                Awaited::Read => Instant::now(),
                Awaited::Taking(since) => since,
                // It may install the snapshot for minutes. Any answer shows that it does.
                Awaited::Answer => match self.held_by_peer(outgoing).await {
                    Ok(_) => Instant::now(),
                    Err(_) => alive,
                },
            };
            alive = alive.max(silent_since);
            if alive.elapsed() > STALL_MAX {
                let reason = format!("no progress of a snapshot for {STALL_MAX:?}");
                return CallError::new(Failure::NoAnswer, self.url(), reason);
            }
        }
    }
}

fn network_error(error: Error) -> RPCError<TypeConfig> {
    RPCError::Network(NetworkError::new(&error))
}

fn rpc_error(error: CallError) -> RPCError<TypeConfig> {
    match error.failure {
        Failure::NotSent | Failure::Starting | Failure::NoAnswer => RPCError::Unreachable(Unreachable::new(&error)),
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
        self.ask_for_vote(Call::Vote, &request, option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Answer<VoteResponse<TypeConfig>> {
        self.ask_for_vote(Call::PreVote, &request, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotSource>,
        cancel: impl Future<Output = ReplicationClosed> + openraft::OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let network = |error: &dyn std::fmt::Display| {
            StreamingError::Network(NetworkError::new(&std::io::Error::other(error.to_string())))
        };
        let outgoing = Outgoing::new(vote, snapshot.meta, snapshot.snapshot);
        tokio::select! {
            biased;
            answer = self.send_snapshot(&outgoing) => match answer {
                Ok(answer) => {
                    let answer: SnapshotResponse<TypeConfig> = decode(&answer).map_err(|error| network(&error))?;
                    let vote = claims::higher_vote(answer.vote, &vote, self.to).map_err(|error| network(&error))?;
                    Ok(SnapshotResponse::new(vote))
                }
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use parking_lot::Mutex;

    use super::*;
    use crate::replication::peer::protocol::{Answer, Fetched, SnapshotBody};
    use crate::replication::types::{ClusterId, SnapshotMeta};
    use crate::storage::Data;

    /// A peer that deals with streams as a test wants it, and says that nothing has arrived.
    struct Peer {
        is_alive: bool,
        take: fn(SnapshotBody) -> BoxFuture<'static, Result<Bytes, CallError>>,
        streams: Mutex<u32>,
    }

    impl Transport for Peer {
        fn set_cluster(&self, _cluster: ClusterId) {}

        fn call(&self, _to: u64, _url: &str, _call: Call, _body: Bytes, timeout: Duration) -> Answer<'_> {
            let is_alive = self.is_alive || *self.streams.lock() == 0;
            Box::pin(async move {
                if is_alive {
                    return Ok(encode(&0_u64).unwrap());
                }
                tokio::time::sleep(timeout).await;
                Err(CallError::new(Failure::NoAnswer, "peer", "no answer"))
            })
        }

        fn send_snapshot(&self, _to: u64, _url: &str, body: SnapshotBody) -> Answer<'_> {
            *self.streams.lock() += 1;
            (self.take)(body)
        }

        fn fetch_snapshot(&self, url: &str, _index_min: u64) -> Fetched<'_> {
            let refused = CallError::new(Failure::Refused, url, "it gives no snapshots");
            Box::pin(async { Err(refused) })
        }
    }

    async fn send(peer: Peer) -> (Result<Bytes, CallError>, u32, Duration) {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::open(dir.path(), 1024 * 1024).unwrap();
        data.apply(&[], &[("a", vec![7; 1_000_000].into())]).unwrap();
        let outgoing = Outgoing::new(Vote::new(1, 1), SnapshotMeta::default(), SnapshotSource::Live(data.snapshot()));
        let peer = Arc::new(peer);
        let network = Network {
            transport: peer.clone(),
            telemetry: Telemetry::disabled(),
            blocking: Blocking::InPlace(|| futures::future::ready(()).boxed()),
            addresses: Arc::default(),
            transfers: Arc::default(),
        };
        let network = PeerNetwork { to: 1, stored_url: "peer".to_owned(), network };
        let began = Instant::now();
        let answer = network.send_snapshot(&outgoing).await;
        let streams = *peer.streams.lock();
        (answer, streams, began.elapsed())
    }

    const HOURS: Duration = Duration::from_secs(10 * 3_600);

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_takes_as_long_as_it_makes_progress() {
        let slow_line = |mut body: SnapshotBody| {
            async move {
                while body.next().await.is_some() {
                    tokio::time::sleep(STALL_MAX - Duration::from_secs(1)).await;
                }
                Ok(Bytes::new())
            }
            .boxed()
        };
        let (answer, streams, lasted) = send(Peer { is_alive: true, take: slow_line, streams: Mutex::new(0) }).await;
        assert!(answer.is_ok() && streams == 1 && lasted > 3 * STALL_MAX, "{answer:?} after {lasted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_may_install_for_hours_as_long_as_it_lives() {
        let slow_disk =
            |body: SnapshotBody| body.count().then(|_| tokio::time::sleep(HOURS)).map(|()| Ok(Bytes::new())).boxed();
        let (answer, streams, lasted) = send(Peer { is_alive: true, take: slow_disk, streams: Mutex::new(0) }).await;
        assert!(answer.is_ok() && streams == 1 && lasted >= HOURS, "{answer:?} after {lasted:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_receiver_that_takes_nothing_or_gives_no_sign_of_life_is_given_up() {
        let takes_nothing = |mut body: SnapshotBody| {
            async move {
                drop(body.next().await);
                std::future::pending().await
            }
            .boxed()
        };
        let never_answers = |body: SnapshotBody| body.count().then(|_| std::future::pending()).boxed();
        for take in [takes_nothing, never_answers] {
            let (answer, streams, lasted) = send(Peer { is_alive: false, take, streams: Mutex::new(0) }).await;
            assert!(answer.is_err() && streams == 1 && lasted < HOURS, "{streams} streams in {lasted:?}");
        }
    }
}
