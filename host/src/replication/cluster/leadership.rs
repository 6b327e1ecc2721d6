//! Handing the leadership to another voter.
//!
//! A leader that hands over stops taking writes and confirming reads at once, and does not lead again in its term, whatever
//! the outcome. So it hands over only to a voter that answers, has nearly the whole log, and may stand for election.

use std::{sync::Arc, time::Duration};

use openraft::ServerState;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::change::{Members, Progress};
use super::{peer_table::PeerState, view::ClusterView};

/// Pause between attempts to hand over.
const HAND_OVER_PAUSE: Duration = Duration::from_millis(50);

pub(crate) struct Leadership {
    pub(crate) view: Arc<ClusterView>,
    /// The node that this one has last handed over to, and the term.
    pub(crate) successor: Mutex<Option<(u64, u64)>>,
}

struct Successor {
    id: u64,
    is_full: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fitness {
    Ready,
    /// It has just restarted, or lacks too much of the log.
    NotYet,
    Unreachable,
}

impl Leadership {
    /// Makes the voter with a URL the leader.
    pub(super) async fn transfer(&self, members: &Members, url: &str) -> Progress {
        let ids = members.with_url(url);
        match ids.iter().find(|id| members.voters.contains(id)) {
            None if ids.is_empty() => Progress::Unknown,
            None => Progress::Refused("it is not a voter".to_owned()),
            Some(id) if *id == self.view.raft.id() => Progress::Done,
            Some(id) => match self.fitness(members, *id) {
                Fitness::Ready => self.hand_to(*id).await,
                Fitness::NotYet => Progress::Pending,
                Fitness::Unreachable => Progress::Refused(format!("{url} cannot be reached")),
            },
        }
    }

    /// Hands the leadership to the fittest voter.
    pub(super) async fn give_way(&self, members: &Members) -> Progress {
        match self.successor(members) {
            Some(successor) => self.hand_to(successor.id).await,
            None if self.others(members).any(|id| self.fitness(members, id) == Fitness::NotYet) => Progress::Pending,
            None => Progress::Refused("no other voter can be reached".to_owned()),
        }
    }

    /// On a leader that is about to stop: hands over, so that writes continue without an election.
    pub(crate) async fn hand_over(&self, deadline: Instant) {
        while self.leads() && Instant::now() < deadline {
            let members = self.members();
            if self.others(&members).next().is_none() || self.give_way(&members).await != Progress::Pending {
                return;
            }
            tokio::time::sleep(HAND_OVER_PAUSE).await;
        }
    }

    /// On a leader with a full disk: hands over, if there is a successor with free space.
    pub(crate) async fn hand_over_full(&self) {
        if let Some(successor) = self.successor_with_space() {
            tracing::info!(successor = format!("{successor:016x}"), "the disk is full: the leadership is handed over");
            self.hand_to(successor).await;
        }
    }

    pub(crate) fn leads(&self) -> bool {
        self.view.raft.with_metrics(|metrics| metrics.state == ServerState::Leader)
    }

    /// The successor of a leader with a full disk, if one has free space.
    pub(crate) fn successor_with_space(&self) -> Option<u64> {
        let successor = self.successor(&self.members());
        successor.filter(|successor| !successor.is_full).map(|successor| successor.id)
    }

    /// The fittest voter: among those that can take over, one with free space if there is one, and with the longest log.
    fn successor(&self, members: &Members) -> Option<Successor> {
        let ready = self.others(members).filter(|id| self.fitness(members, *id) == Fitness::Ready);
        let successors =
            ready.map(|id| Successor { id, is_full: self.peer(members, id).is_some_and(|peer| peer.hello.is_full) });
        successors.max_by_key(|successor| (!successor.is_full, members.matched.get(&successor.id)))
    }

    fn members(&self) -> Members {
        self.view.raft.with_metrics(|metrics| Members::of(metrics, &self.view.addresses))
    }

    fn others(&self, members: &Members) -> impl Iterator<Item = u64> {
        let own = self.view.raft.id();
        members.matched.keys().copied().filter(move |id| *id != own && members.voters.contains(id))
    }

    fn fitness(&self, members: &Members, id: u64) -> Fitness {
        match self.peer(members, id).filter(|peer| peer.is_healthy_as(id)) {
            Some(peer) if !peer.hello.silent && members.has_caught_up(id) => Fitness::Ready,
            Some(_) => Fitness::NotYet,
            None => Fitness::Unreachable,
        }
    }

    fn peer(&self, members: &Members, id: u64) -> Option<PeerState> {
        members.nodes.get(&id).and_then(|url| self.view.peers.get(url))
    }

    /// The successor that was named first in a term: two would compete with each other.
    fn first_successor(&self, term: u64, successor: u64) -> u64 {
        let mut named = self.successor.lock();
        match *named {
            Some((known, first)) if known == term => first,
            _ => {
                *named = Some((term, successor));
                successor
            }
        }
    }

    async fn hand_to(&self, successor: u64) -> Progress {
        let term = self.view.raft.with_metrics(|metrics| metrics.current_term);
        let successor = self.first_successor(term, successor);
        match self.view.raft.raft().trigger().transfer_leader(successor).await {
            Ok(()) => Progress::Pending,
            Err(_) => Progress::NotLeader,
        }
    }
}
