//! The cluster as this node sees it: nodes, voters, the leader, and whether a majority can be reached.
//!
//! It combines the sources of that knowledge: the membership in the log, the founders, and the hellos of the peers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::ServerState;
use parking_lot::Mutex;

use super::peer_table::PeerTable;
use super::time::{ClockReading, ClusterTime};
use crate::replication::addresses::AddressBook;
use crate::replication::error::{Error, WriteOutcome};
use crate::replication::raft::engine::RaftHandle;
use crate::replication::types::{Metrics, Vote, node_id, url_of};

pub(crate) struct ClusterView {
    pub(crate) raft: RaftHandle,
    pub(crate) founders: Founders,
    pub(crate) peers: PeerTable,
    pub(crate) time: ClusterTime,
    pub(crate) addresses: Arc<AddressBook>,
    /// The leader that was last heard since this node started: term and id.
    pub(crate) heard: Mutex<Option<(u64, u64)>>,
    /// Whether this node still is a member, as far as it knows.
    pub(crate) standing: Mutex<Standing>,
}

/// Whether this node still is a member (see `standing`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing speaks against its membership.
    #[default]
    Regular,
    /// The cluster has removed it.
    Removed,
    /// Another process runs under this node's id, at this URL.
    Copied { url: String },
}

impl Standing {
    /// Why the node takes no part; none if it does.
    pub(crate) fn reason(&self) -> Option<String> {
        match self {
            Self::Regular => None,
            Self::Removed => Some("this node was removed from its cluster".to_owned()),
            Self::Copied { url } => Some(format!(
                "another process runs under this node's id at {url}: one data directory is a copy of the other"
            )),
        }
    }
}

impl ClusterView {
    /// The leader's id and URL, if this node knows one.
    pub(crate) fn leader(&self) -> Option<(u64, String)> {
        self.raft.with_metrics(|metrics| {
            let leader = self.known_leader(metrics)?;
            let node = metrics.membership_config.membership().get_node(&leader)?;
            Some((leader, self.addresses.current(leader, &url_of(node))))
        })
    }

    /// Whether this node leads, as far as it knows.
    pub(crate) fn leads(&self) -> bool {
        self.raft.with_metrics(|metrics| self.known_leader(metrics) == Some(metrics.id))
    }

    /// Fails if this node is no member of its cluster any more.
    pub(crate) fn check_standing(&self) -> Result<(), Error> {
        self.standing.lock().reason().map_or(Ok(()), |reason| Err(Error::Barred(reason)))
    }

    /// The leader, if it is this node or was heard since this node started. A vote from before a restart does not tell who
    /// leads now, and a node that is no member any more does not hear of the next leader.
    pub(crate) fn known_leader(&self, metrics: &Metrics) -> Option<u64> {
        let leader = metrics.current_leader.filter(|_| *self.standing.lock() == Standing::Regular)?;
        let is_known = match leader == metrics.id {
            true => metrics.state == ServerState::Leader,
            false => *self.heard.lock() == Some((metrics.current_term, leader)),
        };
        is_known.then_some(leader)
    }

    /// Records that a leader was heard and obeyed.
    pub(crate) fn note_leader(&self, vote: &Vote) {
        *self.heard.lock() = Some((vote.leader_id.term, vote.leader_id.node_id));
    }

    /// The URLs of the cluster's nodes by id; before it is formed, of its founders.
    pub(crate) fn nodes(&self, metrics: &Metrics) -> BTreeMap<u64, String> {
        let current = |(id, node): (&u64, _)| (*id, self.addresses.current(*id, &url_of(node)));
        let nodes: BTreeMap<u64, String> = metrics.membership_config.nodes().map(current).collect();
        if nodes.is_empty() { self.founders.nodes.clone() } else { nodes }
    }

    /// The URLs of the voters by id; before the cluster is formed, of its founders.
    pub(crate) fn voters(&self, metrics: &Metrics) -> BTreeMap<u64, String> {
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        self.nodes(metrics).into_iter().filter(|(id, _)| voters.is_empty() || voters.contains(id)).collect()
    }

    /// The time of a round that this node proposes now, in milliseconds since the Unix epoch: not earlier than the newest one that it
    /// has applied. If the clocks of too few voters were heard, time stands still.
    pub(crate) fn stamp_ms(&self) -> u64 {
        self.time.bounded_ms().unwrap_or(0).max(self.raft.applied().time_ms())
    }

    /// The time now for people, in milliseconds since the Unix epoch.
    pub(crate) fn time_ms(&self) -> u64 {
        let stamp_ms = self.stamp_ms();
        if stamp_ms > 0 { stamp_ms } else { self.time.clock().unix_ms() }
    }

    /// What is known of the clocks of the other voters, by id.
    pub(super) fn other_clocks(&self, voters: &BTreeMap<u64, String>) -> BTreeMap<u64, Option<ClockReading>> {
        let others = voters.iter().filter(|(id, _)| **id != self.raft.id());
        others.map(|(id, url)| (*id, self.peers.clock_of(*id, url))).collect()
    }

    /// Takes over what was heard of the voters' clocks.
    pub(super) fn note_clocks(&self) {
        let voters = self.raft.with_metrics(|metrics| self.voters(metrics));
        let others: Vec<_> = self.other_clocks(&voters).into_values().collect();
        self.time.set_others(&others);
    }

    /// Whether the membership has this node, and no other under its URL. A node that replaces another gets its place once
    /// it has caught up.
    pub(crate) fn has_its_place(&self, metrics: &Metrics) -> bool {
        let own_url = &self.founders.own_url;
        let mut with_url = metrics.membership_config.nodes().filter(|(_, node)| url_of(node) == *own_url);
        with_url.next().is_some_and(|(id, _)| *id == metrics.id) && with_url.next().is_none()
    }

    /// The URLs of the nodes that this one watches.
    pub(crate) fn watched_urls(&self) -> BTreeSet<String> {
        let (mut nodes, knows_leader) =
            self.raft.with_metrics(|metrics| (self.nodes(metrics), self.known_leader(metrics).is_some()));
        let stored = nodes.remove(&self.raft.id());
        let mut urls: BTreeSet<String> = nodes.into_values().collect();
        // A node that waits for its place, or has moved, also watches the nodes it was started with. So does one that hears no
        // leader: the membership in its log may be old, or never have been committed, while all have moved.
        if !knows_leader || stored.is_none_or(|stored| stored != self.founders.own_url) {
            urls.extend(self.founders.peer_urls());
        }
        urls.remove(&self.founders.own_url);
        urls
    }

    /// Whether a node should answer at a URL that this one watches: not if its list is old, and only looked at for want of a leader.
    pub(super) fn expects(&self, url: &str) -> bool {
        let nodes = self.raft.with_metrics(|metrics| self.nodes(metrics));
        let has_its_place = nodes.get(&self.raft.id()).is_some_and(|stored| *stored == self.founders.own_url);
        !has_its_place || nodes.values().any(|member| member == url)
    }

    /// Number of these nodes that can be reached, this one included.
    pub(crate) fn reachable_of(&self, nodes: &BTreeMap<u64, String>) -> usize {
        let own = self.raft.id();
        let others = nodes.iter().map(|(id, url)| (*id, url)).filter(|(id, _)| *id != own);
        usize::from(nodes.contains_key(&own)) + self.peers.count_healthy(others)
    }

    /// Whether it is certain enough that no majority can be reached, so that waiting is in vain.
    pub(crate) fn quorum_is_out_of_reach(&self) -> bool {
        // Asked for each strong read: nearly always there is nothing to count.
        if !self.peers.is_any_gone() {
            return false;
        }
        let voters = self.raft.with_metrics(|metrics| self.voters(metrics));
        let gone = self.peers.count_gone(voters.values());
        voters.len() - gone <= voters.len() / 2
    }

    pub(crate) fn no_quorum(&self, outcome: WriteOutcome) -> Error {
        let voters = self.raft.with_metrics(|metrics| self.voters(metrics));
        Error::NoQuorum { successful: self.reachable_of(&voters), outcome }
    }
}

/// The nodes this one was started with, itself included.
pub(crate) struct Founders {
    pub(crate) own_url: String,
    /// URLs by the ids that these nodes have if they form a cluster together.
    pub(crate) nodes: BTreeMap<u64, String>,
}

impl Founders {
    /// None if the list names a node twice, or this node itself.
    pub(crate) fn new(own_url: &str, peer_urls: &[String]) -> Option<Self> {
        let urls = std::iter::once(own_url).chain(peer_urls.iter().map(String::as_str));
        let nodes: BTreeMap<u64, String> = urls.map(|url| (node_id(url), url.to_owned())).collect();
        (nodes.len() == peer_urls.len() + 1).then(|| Self { own_url: own_url.to_owned(), nodes })
    }

    /// This node's id if it forms a cluster with the others.
    pub(crate) fn own_id(&self) -> u64 {
        node_id(&self.own_url)
    }

    pub(crate) fn peer_urls(&self) -> BTreeSet<String> {
        self.nodes.values().filter(|url| **url != self.own_url).cloned().collect()
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.nodes.len() == 1
    }

    pub(crate) fn is_majority(&self, count: usize) -> bool {
        count > self.nodes.len() / 2
    }
}
