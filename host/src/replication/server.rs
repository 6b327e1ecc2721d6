//! What this node answers to the others.

use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use openraft::alias::SnapshotOf;
use openraft::raft::AppendEntriesResponse;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::error::Error;
use super::shared::Shared;
use super::transport::{Call, Envelope};
use super::types::{TypeConfig, decode, encode};
use super::{identity, line, membership, peers, proposer, reads, snapshot, space};

/// Answers the calls of a line.
pub(super) async fn serve_line(shared: &Arc<Shared>, io: impl AsyncRead + AsyncWrite) {
    let calls = line::serve(io, |call, envelope, body| {
        let shared = shared.clone();
        async move { serve(&shared, call, envelope, body).await }
    });
    tokio::select! {
        ended = calls => if let Err(error) = ended {
            tracing::debug!(%error, "a line from another node broke");
        },
        () = shared.stopped() => {}
    }
}

/// Answers one call.
pub(super) async fn serve(shared: &Arc<Shared>, call: Call, envelope: Envelope, body: Bytes) -> Result<Bytes, Error> {
    check_envelope(shared, call, envelope).await?;
    match call {
        Call::Hello => encode(&peers::answer(shared, &decode(&body)?)),
        Call::Form => encode(&identity::take_part(shared, &decode(&body)?).await?),
        Call::Members => encode(&membership::step(shared, &decode(&body)?).await),
        Call::Append => append(shared, &body).await,
        Call::Vote => {
            check_silence(shared)?;
            encode(&shared.raft().vote(decode(&body)?).await.map_err(refused)?)
        }
        Call::PreVote => {
            check_silence(shared)?;
            encode(&shared.raft().pre_vote(decode(&body)?).await.map_err(refused)?)
        }
        Call::TransferLeader => {
            check_silence(shared)?;
            encode(&shared.raft().handle_transfer_leader(decode(&body)?).await.map_err(refused)?)
        }
        Call::Propose => {
            let answer = proposer::serve(shared, &body).await?;
            // The round may be in the log now: whatever goes wrong is no refusal, after which it would be proposed again.
            encode(&answer).map_err(|_| Error::LeaderLost)
        }
        Call::ReadIndex => {
            let deadline = Instant::now() + decode::<std::time::Duration>(&body)?;
            encode(&reads::read_index(shared, deadline).await?)
        }
        Call::SnapshotOffset => {
            let (dir, id) = (shared.options.spool_dir.clone(), decode(&body)?);
            let held = shared.options.blocking.run(move || snapshot::held(&dir, id)).await.map_err(refused)?;
            encode(&held.map_err(refused)?)
        }
        Call::Snapshot => Err(Error::Refused("a snapshot is a stream".to_owned())),
    }
}

/// Receives a snapshot, or the rest of one, then installs it.
pub(super) async fn serve_snapshot<S, E>(shared: &Arc<Shared>, envelope: Envelope, body: S) -> Result<Bytes, Error>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: std::error::Error + Send + Sync + 'static,
{
    check_envelope(shared, Call::Snapshot, envelope).await?;
    space::check(shared)?;
    let blocking = &shared.options.blocking;
    let (header, source) = snapshot::receive(&shared.options.spool_dir, body, blocking).await.map_err(refused)?;
    let snapshot = SnapshotOf::<TypeConfig, _> { meta: header.meta, snapshot: source };
    let answer = shared.raft().install_full_snapshot(header.vote, snapshot).await.map_err(refused)?;
    if answer.vote == header.vote {
        shared.note_leader(&header.vote);
    }
    encode(&answer)
}

async fn append(shared: &Arc<Shared>, body: &[u8]) -> Result<Bytes, Error> {
    let request: openraft::raft::AppendEntriesRequest<TypeConfig> = decode(body)?;
    space::check_entries(shared, &request.entries)?;
    let committed = request.leader_commit.map(|log_id| log_id.index());
    let leader = request.vote;
    let answer = shared.raft().append_entries(request).await.map_err(refused)?;
    if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
        shared.note_leader(&leader);
    }
    if answer.is_success() && committed.is_none_or(|committed| *shared.applied.borrow() >= committed) {
        shared.note_fresh();
    }
    encode(&answer)
}

/// Whether a call comes from this node's own cluster, and is meant for this node.
async fn check_envelope(shared: &Shared, call: Call, envelope: Envelope) -> Result<(), Error> {
    // Those by which nodes find each other before they belong to one cluster.
    let is_open = matches!(call, Call::Hello | Call::Form | Call::Members);
    match (shared.cluster(), envelope.cluster) {
        (Some(own), Some(theirs)) if own != theirs => {
            shared.note_stranger(own, theirs);
            return Err(Error::Refused(identity::strange(own, theirs)));
        }
        (Some(_), Some(_)) => {}
        (_, None) if !is_open => {
            return Err(Error::Refused("the call does not say from which cluster it is".to_owned()));
        }
        // A leader that sends the log has let this node in.
        (None, Some(theirs)) if matches!(call, Call::Append | Call::Snapshot) => {
            check_address(shared, envelope.to)?;
            return identity::join(shared, theirs).await;
        }
        (None, Some(_)) if !is_open => return Err(Error::Refused("this node is in no cluster yet".to_owned())),
        _ => {}
    }
    if is_open { Ok(()) } else { check_address(shared, envelope.to) }
}

/// Whether a call is meant for this node, and this node may take part under that id.
fn check_address(shared: &Shared, to: u64) -> Result<(), Error> {
    if !shared.is_decided() {
        return Err(Error::Refused("this node does not know yet who it is".to_owned()));
    }
    if to == shared.id() {
        return Ok(());
    }
    Err(Error::Refused(format!("this is node {:016x}, not {to:016x}", shared.id())))
}

fn check_silence(shared: &Shared) -> Result<(), Error> {
    if shared.is_silent() {
        return Err(Error::Refused("this node has just restarted, and neither votes nor stands yet".to_owned()));
    }
    Ok(())
}

fn refused(error: impl std::error::Error) -> Error {
    tracing::debug!(%error, "a call from another node was not served");
    Error::Refused(error.to_string())
}
