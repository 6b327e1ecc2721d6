//! Answers the calls of other nodes.

use bytes::Bytes;
use futures::{Stream, StreamExt};
use openraft::{alias::SnapshotOf, raft::AppendEntriesResponse};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::cluster::change::Change;
use super::cluster::hello::spoken_for;
use super::cluster::identity::{Stage, unidentified};
use super::peer::credential::Caller;
use super::peer::protocol::{Call, Envelope, SnapshotBody};
use super::peer::snapshot::{Header, Outgoing};
use super::peer::{claims, server};
use super::types::{TypeConfig, decode, decode_shared, encode};
use super::{disk_full, error::Error, handle::Handle};
use crate::limits::SNAPSHOT_BYTES_PER_SECOND_MAX;

impl Handle {
    /// Answers the calls of another node on a connection, until it ends or this node stops.
    pub async fn serve_connection(&self, caller: &Caller, io: impl AsyncRead + AsyncWrite) {
        let serve = |call, envelope, body| self.serve(caller, call, envelope, body);
        let calls = server::serve(io, self.0.peer_bodies.clone(), serve);
        if let Some(Err(error)) = self.0.stop.run_until_cancelled(calls).await {
            tracing::debug!(%error, "a connection from another node broke");
        }
    }

    /// Answers one call of another node.
    ///
    /// # Errors
    ///
    /// If the call is not meant for this node, or cannot be served now.
    pub async fn serve(&self, caller: &Caller, call: Call, envelope: Envelope, body: Bytes) -> Result<Bytes, Error> {
        self.check_envelope(call, envelope).await?;
        match call {
            Call::Hello => self.0.greeter.answer(&body, caller),
            Call::Form => encode(&self.0.formation.answer(&decode(&body)?).await?),
            Call::Members => {
                let change = decode(&body)?;
                if let Change::Join { url, .. } = &change
                    && !caller.may_speak_for(url)
                {
                    return Err(spoken_for(url));
                }
                encode(&self.0.membership.step(&change).await)
            }
            Call::Append => self.append(&body).await,
            Call::Vote | Call::PreVote | Call::TransferLeader if self.0.lease.is_silent() => {
                Err(Error::Refused("this node has just restarted, and neither votes nor stands yet".to_owned()))
            }
            Call::Vote | Call::PreVote => {
                let request = decode(&body)?;
                self.0.doorkeeper.check(|known| claims::vote(&request, known))?;
                let raft = self.0.view.raft.raft();
                let answer = if call == Call::Vote { raft.vote(request).await } else { raft.pre_vote(request).await };
                encode(&answer.map_err(refused)?)
            }
            Call::TransferLeader => {
                let request = decode(&body)?;
                self.0.doorkeeper.check(|known| claims::transfer(&request, known))?;
                encode(&self.0.view.raft.raft().handle_transfer_leader(request).await.map_err(refused)?)
            }
            Call::Propose => {
                let answer = self.0.proposer.serve(&body).await?;
                // The round may be in the log: an error must not be a refusal, after which it would be proposed again.
                encode(&answer).map_err(|_| Error::LeaderLost)
            }
            Call::ReadIndex => {
                let deadline = Instant::now() + decode::<std::time::Duration>(&body)?;
                encode(&self.0.reads.read_index(deadline).await?)
            }
            Call::SnapshotOffset => encode(&self.0.receiver.held(decode(&body)?).await?),
            Call::Snapshot | Call::FetchSnapshot => Err(Error::Refused("a snapshot is a stream".to_owned())),
        }
    }

    /// Receives a snapshot, or the rest of one, and installs it.
    ///
    /// # Errors
    ///
    /// If the snapshot is not meant for this node or cannot be installed now. An incomplete snapshot changes nothing.
    pub async fn serve_snapshot<S, E>(&self, envelope: Envelope, body: S) -> Result<Bytes, Error>
    where
        S: Stream<Item = Result<Bytes, E>> + Unpin + Send,
        E: std::error::Error + Send + Sync + 'static,
    {
        self.check_envelope(Call::Snapshot, envelope).await?;
        let (view, doorkeeper) = (self.0.view.clone(), self.0.doorkeeper.clone());
        let check = |header: &Header| self.0.doorkeeper.check_snapshot(header, false);
        let install = async move |header: Header, snapshot| {
            doorkeeper.check_snapshot(&header, true)?;
            let snapshot = SnapshotOf::<TypeConfig, _> { meta: header.meta, snapshot };
            let answer = view.raft.raft().install_full_snapshot(header.vote, snapshot).await.map_err(refused)?;
            if answer.vote == header.vote {
                view.note_leader(&header.vote);
            }
            encode(&answer)
        };
        self.0.receiver.receive(body, check, install).await
    }

    /// A snapshot of this node's state that covers the log up to `index_min` at least, for a node of this cluster.
    ///
    /// # Errors
    ///
    /// If the call comes from elsewhere, or there is no such snapshot now.
    pub async fn give_snapshot(&self, envelope: Envelope, index_min: u64) -> Result<SnapshotBody, Error> {
        let own = self.0.identity.stage().cluster();
        if own.is_none() || own != envelope.cluster {
            return Err(Error::Refused("snapshots are for nodes of the same cluster".to_owned()));
        }
        let raft = &self.0.view.raft;
        let applied = raft.applied().index();
        if applied < index_min {
            return Err(Error::Refused(format!("this node has applied the log up to {applied} only")));
        }
        let permit = self.0.fetches.clone().try_acquire_owned().map_err(refused)?;
        let snapshot = raft.snapshot().await.map_err(refused)?;
        let outgoing = Outgoing::new(raft.with_metrics(|metrics| metrics.vote), snapshot.meta, snapshot.snapshot);
        let body = outgoing.body(0, SNAPSHOT_BYTES_PER_SECOND_MAX, &self.0.blocking).map_err(refused)?;
        tracing::info!(id = format!("{:016x}", outgoing.id), "a node whose state is lost fetches a snapshot");
        // Held until the stream ends or is dropped.
        Ok(body
            .map(move |frame| {
                let _held = &permit;
                frame
            })
            .boxed())
    }

    async fn append(&self, body: &Bytes) -> Result<Bytes, Error> {
        let mut request: openraft::raft::AppendEntriesRequest<TypeConfig> = decode_shared(body)?;
        self.0.doorkeeper.check_append(&mut request).await?;
        disk_full::check_entries(&self.0.free_space, &request.entries)?;
        // Until it has committed an entry of its own term, a new leader does not know all that its predecessors had committed.
        let term = request.vote.leader_id.term;
        let committed =
            request.leader_commit.filter(|log_id| log_id.leader_id.term == term).map(|log_id| log_id.index());
        let leader = request.vote;
        let answer = self.0.view.raft.raft().append_entries(request).await.map_err(refused)?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.0.view.note_leader(&leader);
        }
        if answer.is_success() && committed.is_some_and(|committed| self.0.view.raft.applied().index() >= committed) {
            self.0.reads.note_up_to_date();
        }
        encode(&answer)
    }

    /// Checks that a call comes from this node's cluster and is meant for this node.
    async fn check_envelope(&self, call: Call, envelope: Envelope) -> Result<(), Error> {
        // The calls by which nodes find each other before they belong to one cluster.
        let is_open = matches!(call, Call::Hello | Call::Form | Call::Members);
        let stage = self.0.identity.stage();
        match (stage.cluster(), envelope.cluster) {
            (Some(own), Some(theirs)) if own != theirs => return Err(self.0.identity.refuse_foreign(own, theirs)),
            (Some(_), Some(_)) => {}
            (_, None) if !is_open => {
                return Err(Error::Refused("the call does not say from which cluster it is".to_owned()));
            }
            // A leader that sends the log has let this node in.
            (None, Some(theirs)) if matches!(call, Call::Append | Call::Snapshot) => {
                check_address(stage, envelope.to)?;
                return self.0.identity.join(theirs).await;
            }
            (None, Some(_)) if !is_open => return Err(Error::Refused("this node is in no cluster yet".to_owned())),
            _ => {}
        }
        if is_open { Ok(()) } else { check_address(stage, envelope.to) }
    }
}

/// Checks that a call is meant for this node under its own id.
fn check_address(stage: Stage, to: u64) -> Result<(), Error> {
    match stage.id() {
        None => Err(unidentified()),
        Some(own) if own == to => Ok(()),
        Some(own) => Err(Error::Refused(format!("this is node {own:016x}, not {to:016x}"))),
    }
}

fn refused(error: impl std::error::Error) -> Error {
    tracing::debug!(%error, "a call from another node was not served");
    Error::Refused(error.to_string())
}
