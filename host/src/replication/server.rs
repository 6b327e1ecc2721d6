//! What this node answers to the others.

use std::sync::Arc;

use bytes::Bytes;
use futures::Stream;
use openraft::alias::SnapshotOf;
use tokio::time::Instant;

use super::error::Error;
use super::shared::{Shared, lock};
use super::snapshot::Spool;
use super::transport::Call;
use super::types::{TypeConfig, decode, encode};
use super::{identity, membership, peers, proposer, reads};

/// Answers one call.
pub(super) async fn serve(shared: &Arc<Shared>, call: Call, to: u64, body: Bytes) -> Result<Bytes, Error> {
    if !matches!(call, Call::Hello | Call::Form | Call::Members) {
        check_address(shared, to)?;
    }
    match call {
        Call::Hello => encode(&peers::answer(shared, &decode(&body)?)),
        Call::Form => encode(&identity::promise(shared, &decode(&body)?).await?),
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
        Call::TransferLeader => encode(&shared.raft().handle_transfer_leader(decode(&body)?).await.map_err(refused)?),
        Call::Propose => encode(&proposer::serve(shared, &body).await?),
        Call::ReadIndex => {
            let deadline = Instant::now() + decode::<std::time::Duration>(&body)?;
            encode(&reads::read_index(shared, deadline).await?)
        }
        Call::Snapshot => Err(Error::Refused("a snapshot is a stream".to_owned())),
    }
}

/// Receives a whole snapshot, then installs it.
pub(super) async fn serve_snapshot<S, E>(shared: &Arc<Shared>, to: u64, body: S) -> Result<Bytes, Error>
where
    S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
    E: std::error::Error + Send + Sync + 'static,
{
    check_address(shared, to)?;
    let blocking = &shared.options.blocking;
    let spool = Spool::receive(&shared.options.spool_dir, body, blocking).await.map_err(refused)?;
    let opened = blocking.run(move || spool.open()).await.map_err(refused)?;
    let (vote, meta, source) = opened.map_err(refused)?;
    let snapshot = SnapshotOf::<TypeConfig, _> { meta, snapshot: source };
    encode(&shared.raft().install_full_snapshot(vote, snapshot).await.map_err(refused)?)
}

async fn append(shared: &Arc<Shared>, body: &[u8]) -> Result<Bytes, Error> {
    let request: openraft::raft::AppendEntriesRequest<TypeConfig> = decode(body)?;
    let committed = request.leader_commit.map(|log_id| log_id.index());
    let answer = shared.raft().append_entries(request).await.map_err(refused)?;
    if answer.is_success() && committed.is_none_or(|committed| *shared.applied.borrow() >= committed) {
        shared.note_fresh();
    }
    encode(&answer)
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
    if lock(&shared.silent_until).is_some_and(|until| Instant::now() < until) {
        return Err(Error::Refused("this node has just restarted and does not vote yet".to_owned()));
    }
    Ok(())
}

fn refused(error: impl std::error::Error) -> Error {
    tracing::debug!(%error, "a call from another node was not served");
    Error::Refused(error.to_string())
}
