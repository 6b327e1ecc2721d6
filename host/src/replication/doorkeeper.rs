//! Checks what other nodes claim against what this node knows and has in its log (see `peer/claims`).
//!
//! openraft trusts the sender of an append. Before an entry is committed here, another leader may replace it; after that,
//! none may, and a leader never replaces its own. An append that contradicts either would make openraft believe in entries that the
//! log does not have, and end the node when it applies them.
//!
//! # Cost
//!
//! Integers, for each append that names entries of its own leader. The log is read for the others: the first ones of a leader, and those
//! that name committed entries of earlier leaders.

use std::sync::Arc;

use openraft::entry::RaftEntry;
use openraft::raft::AppendEntriesRequest;
use parking_lot::Mutex;

use super::cluster::view::ClusterView;
use super::error::Error;
use super::peer::claims::{self, Known, Said};
use super::peer::snapshot::Header;
use super::types::{LogId, TypeConfig};

pub(super) struct Doorkeeper {
    view: Arc<ClusterView>,
    /// What the newest leader has said.
    said: Mutex<Said>,
}

impl Doorkeeper {
    pub(super) fn new(view: Arc<ClusterView>) -> Self {
        Self { view, said: Mutex::default() }
    }

    /// Checks a message by a rule.
    pub(super) fn check<T>(&self, rule: impl FnOnce(&Known) -> Result<T, Error>) -> Result<T, Error> {
        // openraft waits for whoever looks at its metrics.
        let known = self.view.raft.with_metrics(Known::of);
        rule(&known)
    }

    /// Checks an append, which may lose its commit position.
    pub(super) async fn check_append(&self, request: &mut AppendEntriesRequest<TypeConfig>) -> Result<(), Error> {
        let leader = request.vote.leader_id;
        let known = self.check(|known| claims::append(request, known).map(|()| *known))?;
        if known.is_past(leader) {
            return Ok(());
        }
        // What is committed and not applied may be entries that a snapshot is about to replace.
        for log_id in committed_of(request, known.applied) {
            let is_known = {
                let said = self.said.lock();
                said.is_its_own(leader, log_id) || said.ended_with(leader, log_id)
            };
            if !is_known {
                self.check_committed(log_id).await?;
            }
        }
        if !self.said.lock().is_of(leader) {
            let own = self.view.raft.log_store().first_of_last_leader(&leader).await.map_err(unreadable)?;
            self.said.lock().begin(leader, own);
        }
        let named = request.prev_log_id.into_iter().chain(request.entries.iter().map(RaftEntry::log_id));
        self.said.lock().add(leader, named)
    }

    /// Checks the beginning of a snapshot. `is_here`: it has arrived, and would be installed next.
    pub(super) fn check_snapshot(&self, header: &Header, is_here: bool) -> Result<(), Error> {
        self.check(|known| claims::snapshot(header, is_here, known))?;
        let leader = header.vote.leader_id;
        if is_here { self.said.lock().add(leader, header.meta.last_log_id.into_iter()) } else { Ok(()) }
    }

    /// Checks that this node has committed the same entry at a position.
    async fn check_committed(&self, log_id: LogId) -> Result<(), Error> {
        let raft = &self.view.raft;
        let agrees = match raft.log_store().log_id_at(log_id.index).await.map_err(unreadable)? {
            Some(held) => held == log_id,
            // The log was cut there, or begins after it.
            None => {
                raft.with_metrics(|metrics| metrics.purged).is_none_or(|purged| match log_id.index == purged.index {
                    true => log_id == purged,
                    false => log_id.index > purged.index || log_id.leader_id <= purged.leader_id,
                })
            }
        };
        if agrees { Ok(()) } else { claims::refused("an entry that contradicts a committed one") }
    }
}

/// The positions of an append that decide whether it agrees with what is committed: the one before its first entry, and the last of
/// its entries that this node has committed. If both agree, so do all between them: entries follow each other.
fn committed_of(request: &AppendEntriesRequest<TypeConfig>, committed: Option<LogId>) -> impl Iterator<Item = LogId> {
    let is_committed = move |log_id: &LogId| committed.is_some_and(|committed| log_id.index <= committed.index);
    let last = request.entries.iter().map(RaftEntry::log_id).take_while(is_committed).last();
    request.prev_log_id.filter(is_committed).into_iter().chain(last)
}

fn unreadable(error: std::io::Error) -> Error {
    Error::Refused(format!("this node cannot read its log: {error}"))
}
