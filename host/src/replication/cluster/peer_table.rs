//! The state of the other nodes, as their last hellos reported it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::time::ClockReading;
use crate::limits::{HELLO_BYTES_MAX, MEMBER_URL_BYTES_MAX, MEMBERS_MAX};
use crate::replication::error::Error;
use crate::replication::types::ClusterId;
use crate::storage::FeatureLevel;

/// A peer that was silent for this long counts as down. Monotonic time: after a suspension of the machine, peers that were heard
/// before count for the rest of it. No promise rests on that, and what a leader would do wrongly for it needs a majority to commit.
const PEER_SILENCE_MAX: Duration = Duration::from_millis(1_500);

/// Most nodes that a hello names in one list.
const NAMED_MAX: usize = MEMBERS_MAX + 1;

/// Failed attempts in a row after which a peer counts as gone: the first may have met it during its start.
const FAILURES_MIN: u32 = 2;

/// A node's report of its own state.
///
/// Encoded, each version of brink appends a part of its own to those of the versions before, and ignores the parts that it does not
/// know.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(super) id: u64,
    /// Whether the node is identified, so that the id is its own.
    pub(super) decided: bool,
    pub(super) url: String,
    /// Whether it knows a membership.
    pub(super) initialized: bool,
    pub(super) cluster: Option<ClusterId>,
    /// Whether it keeps silent after a restart.
    pub(super) silent: bool,
    /// The URLs it was started with.
    pub(super) knows: BTreeSet<String>,
    pub(super) last_log_index: Option<u64>,
    /// If it leads: for each node, the index up to which its log is known to match the leader's.
    pub(super) matched: BTreeMap<u64, u64>,
    /// The revision of the store up to which it has compiled plugins and put hooks in force.
    pub(super) prepared_revision: u64,
    pub(super) is_full: bool,
    /// The second part; none from a version before feature levels.
    #[serde(skip)]
    pub(super) more: Option<HelloMore>,
}

/// The second part of a [`Hello`].
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct HelloMore {
    /// The highest feature level that the node supports.
    pub(super) supports: FeatureLevel,
    /// A random number of this run of the process.
    pub(super) run: u64,
    /// Its wall time when it said this, as Unix time in milliseconds.
    pub(super) time_ms: u64,
    /// The newest membership that it knows to be committed.
    pub(super) membership: Option<KnownMembership>,
}

/// The nodes of a membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KnownMembership {
    /// Its position in the log: of two that are committed, the one with the higher index is in force.
    pub(super) index: u64,
    /// The URLs of its nodes, by id.
    pub(super) nodes: BTreeMap<u64, String>,
}

impl Hello {
    pub(super) fn encode(&self) -> Result<Bytes, Error> {
        let first = postcard::to_stdvec(self).map_err(Error::Codec)?;
        match &self.more {
            Some(more) => Ok(postcard::to_extend(more, first).map_err(Error::Codec)?.into()),
            None => Ok(first.into()),
        }
    }

    /// Decodes a hello of bounded size: its sender may be anybody.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > HELLO_BYTES_MAX {
            return Err(Error::Refused("the hello is too large".to_owned()));
        }
        let (hello, rest) = postcard::take_from_bytes::<Self>(bytes).map_err(Error::Codec)?;
        let more = (!rest.is_empty()).then(|| postcard::from_bytes(rest)).transpose().map_err(Error::Codec)?;
        let hello = Self { more, ..hello };
        if hello.is_in_bounds() { Ok(hello) } else { Err(Error::Refused("the hello names too much".to_owned())) }
    }

    /// Whether it names no more nodes than a cluster may have, with one that takes the place of another. All of them may be called.
    fn is_in_bounds(&self) -> bool {
        let nodes = self.more.iter().filter_map(|more| more.membership.as_ref()).flat_map(|known| known.nodes.values());
        let is_short = |url: &String| url.len() <= MEMBER_URL_BYTES_MAX;
        self.knows.len() <= NAMED_MAX
            && self.matched.len() <= NAMED_MAX
            && nodes.clone().count() <= NAMED_MAX
            && self.knows.iter().chain(nodes).chain([&self.url]).all(is_short)
    }

    /// Its wall time when it said this.
    pub(super) fn time_ms(&self) -> Option<u64> {
        self.more.as_ref().map(|more| more.time_ms)
    }

    /// The highest feature level that the node supports.
    pub(super) fn supports(&self) -> FeatureLevel {
        self.more.as_ref().map_or(FeatureLevel::FIRST, |more| more.supports)
    }

    /// Whether it comes from another process than `other`. Unknown for earlier versions, which are taken for the same.
    pub(super) fn is_of_another_run(&self, other: &Self) -> bool {
        self.more.as_ref().zip(other.more.as_ref()).is_some_and(|(one, other)| one.run != other.run)
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct PeerState {
    /// Its last hello; empty before the first.
    pub(super) hello: Hello,
    /// When it was last heard; none if the last attempt failed.
    seen: Option<Instant>,
    /// Round trip of the last exchange.
    pub(super) rtt: Option<Duration>,
    /// What its wall clock showed.
    clock: Option<ClockReading>,
    /// Failed attempts in a row.
    failures: u32,
}

impl PeerState {
    pub(crate) fn is_healthy(&self) -> bool {
        self.seen.is_some_and(|seen| seen.elapsed() < PEER_SILENCE_MAX)
    }

    /// Whether the node with this id was heard lately. A node that lost its disk returns under its URL with another id.
    pub(crate) fn is_healthy_as(&self, id: u64) -> bool {
        self.is_healthy() && self.hello.id == id
    }

    /// Whether it is certain enough that it cannot be reached.
    fn is_gone(&self) -> bool {
        self.failures >= FAILURES_MIN
    }
}

/// The peers that can be reached, by cluster.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    pub(crate) without_cluster: Vec<String>,
    /// Those that belong to a cluster, whether or not they know its membership yet.
    pub(crate) in_cluster: Vec<String>,
    /// The URLs of all nodes in the memberships that they know. A node that was added later may lead, and is in no list.
    pub(crate) named: BTreeSet<String>,
    /// Those that belong to this node's cluster.
    pub(crate) fellows: Vec<String>,
    /// Whether one of the fellows knows a membership.
    pub(crate) is_initialized: bool,
}

#[derive(Default)]
pub(crate) struct PeerTable {
    peers: Mutex<BTreeMap<String, PeerState>>,
}

impl PeerTable {
    /// Adds a peer; false if it is there already.
    pub(crate) fn add(&self, url: &str) -> bool {
        let mut peers = self.peers.lock();
        let is_new = !peers.contains_key(url);
        if is_new {
            peers.insert(url.to_owned(), PeerState::default());
        }
        is_new
    }

    pub(crate) fn remove(&self, url: &str) {
        self.peers.lock().remove(url);
    }

    /// Records a peer's hello, what its clock showed, and the round trip if this node asked for it.
    pub(super) fn note_heard(&self, url: &str, hello: Hello, rtt: Option<Duration>, clock: Option<ClockReading>) {
        let mut peers = self.peers.lock();
        let Some(state) = peers.get_mut(url) else { return };
        if state.is_gone() {
            tracing::info!(url, "a node can be reached again");
        }
        let before = state.clock.filter(|_| state.hello.id == hello.id);
        let clock = ClockReading::better(before, clock, rtt.is_some());
        *state = PeerState { hello, seen: Some(Instant::now()), rtt: rtt.or(state.rtt), clock, failures: 0 };
    }

    /// Records that a peer did not answer, and reports it if it should.
    pub(crate) fn note_failure(&self, url: &str, reason: &dyn std::fmt::Display, is_expected: bool) {
        let mut peers = self.peers.lock();
        let Some(state) = peers.get_mut(url) else { return };
        state.failures = state.failures.saturating_add(1);
        state.seen = None;
        if state.failures == FAILURES_MIN && is_expected {
            tracing::warn!(url, %reason, "a node cannot be reached");
        }
    }

    pub(crate) fn all(&self) -> BTreeMap<String, PeerState> {
        self.peers.lock().clone()
    }

    pub(crate) fn get(&self, url: &str) -> Option<PeerState> {
        self.peers.lock().get(url).cloned()
    }

    /// What the clock of the node with this id showed.
    pub(super) fn clock_of(&self, id: u64, url: &str) -> Option<ClockReading> {
        self.peers.lock().get(url).filter(|peer| peer.hello.id == id)?.clock
    }

    /// Whether another process than the one of this hello answers lately under the same id.
    pub(super) fn has_twin(&self, hello: &Hello) -> bool {
        let peers = self.peers.lock();
        peers.values().any(|peer| peer.is_healthy_as(hello.id) && peer.hello.is_of_another_run(hello))
    }

    /// The committed memberships that peers of a cluster report.
    pub(super) fn memberships(&self, cluster: ClusterId) -> Vec<KnownMembership> {
        let peers = self.peers.lock();
        let fellows = peers.values().filter(|peer| peer.is_healthy() && peer.hello.cluster == Some(cluster));
        fellows.filter_map(|peer| peer.hello.more.as_ref()?.membership.clone()).collect()
    }

    /// The URLs of the peers that can be reached, with the revisions of the store that they have prepared.
    pub(crate) fn prepared(&self) -> Vec<(String, u64)> {
        let peers = self.peers.lock();
        let healthy = peers.iter().filter(|(_, peer)| peer.is_healthy());
        healthy.map(|(url, peer)| (url.clone(), peer.hello.prepared_revision)).collect()
    }

    /// Number of these nodes, given by id and URL, that can be reached.
    pub(crate) fn count_healthy<'a>(&self, nodes: impl Iterator<Item = (u64, &'a String)>) -> usize {
        let peers = self.peers.lock();
        nodes.filter(|(id, url)| peers.get(*url).is_some_and(|peer| peer.is_healthy_as(*id))).count()
    }

    pub(crate) fn is_any_gone(&self) -> bool {
        self.peers.lock().values().any(PeerState::is_gone)
    }

    /// Number of these URLs whose nodes are gone.
    pub(crate) fn count_gone<'a>(&self, urls: impl Iterator<Item = &'a String>) -> usize {
        let peers = self.peers.lock();
        urls.filter(|url| peers.get(*url).is_some_and(PeerState::is_gone)).count()
    }

    /// The peers that can be reached, as a node of cluster `own` sees them.
    pub(crate) fn survey(&self, own: Option<ClusterId>) -> Survey {
        let mut survey = Survey::default();
        for (url, peer) in self.peers.lock().iter().filter(|(_, peer)| peer.is_healthy()) {
            let side = if peer.hello.cluster.is_some() { &mut survey.in_cluster } else { &mut survey.without_cluster };
            side.push(url.clone());
            let membership = peer.hello.more.iter().filter_map(|more| more.membership.as_ref());
            survey.named.extend(membership.flat_map(|membership| membership.nodes.values().cloned()));
            if own.is_some() && peer.hello.cluster == own {
                survey.fellows.push(url.clone());
                survey.is_initialized |= peer.hello.initialized;
            }
        }
        survey
    }

    /// Whether a peer that can be reached belongs to the cluster.
    pub(crate) fn sees_cluster(&self, cluster: ClusterId) -> bool {
        self.peers.lock().values().any(|peer| peer.is_healthy() && peer.hello.cluster == Some(cluster))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_understood_by_versions_that_know_fewer_parts_and_by_those_that_know_more() {
        let nodes = BTreeMap::from([(1, "http://a:1".to_owned())]);
        let membership = Some(KnownMembership { index: 9, nodes });
        let more = HelloMore { supports: FeatureLevel::NEWEST, run: 5, time_ms: 7, membership };
        let hello = Hello { id: 3, url: "http://a:1".to_owned(), more: Some(more.clone()), ..Hello::default() };
        let mut bytes = hello.encode().unwrap().to_vec();
        // The first version decodes the first part and ignores the rest.
        assert_eq!(postcard::from_bytes::<Hello>(&bytes).unwrap().id, 3);
        bytes.extend(b"a part of a later version");
        let decoded = Hello::decode(&bytes).unwrap();
        assert_eq!((decoded.id, decoded.more.map(|more| more.membership)), (3, Some(more.membership)));
        let first = Hello { more: None, ..hello };
        let decoded = Hello::decode(&first.encode().unwrap()).unwrap();
        assert!(decoded.more.is_none() && decoded.supports() == FeatureLevel::FIRST);
    }

    #[test]
    fn a_hello_that_names_more_than_a_cluster_has_is_refused() {
        let urls = |count| (0..count).map(|number| format!("http://{number}")).collect::<BTreeSet<_>>();
        let knows = |count| Hello { knows: urls(count), ..Hello::default() };
        let matched = |count: u64| Hello { matched: (0..count).map(|id| (id, 1)).collect(), ..Hello::default() };
        let member_of = |count: u64| {
            let nodes = (0..count).map(|id| (id, "http://a".to_owned())).collect();
            let membership = Some(KnownMembership { index: 1, nodes });
            Hello { more: Some(HelloMore { membership, ..HelloMore::default() }), ..Hello::default() }
        };
        let at = |bytes| Hello { url: "u".repeat(bytes), ..Hello::default() };
        let most = NAMED_MAX as u64;
        for (hello, is_sound) in [
            (knows(NAMED_MAX), true),
            (knows(NAMED_MAX + 1), false),
            (matched(most), true),
            (matched(most + 1), false),
            (member_of(most), true),
            (member_of(most + 1), false),
            (at(MEMBER_URL_BYTES_MAX), true),
            (at(MEMBER_URL_BYTES_MAX + 1), false),
        ] {
            assert_eq!(Hello::decode(&hello.encode().unwrap()).is_ok(), is_sound, "{hello:?}");
        }
        let mut padded = Hello::default().encode().unwrap().to_vec();
        padded.extend(HelloMore::default().supports.0.to_be_bytes());
        padded.resize(HELLO_BYTES_MAX + 1, 0);
        assert!(Hello::decode(&padded).is_err());
        padded.truncate(HELLO_BYTES_MAX);
        assert!(Hello::decode(&padded).is_ok());
    }
}
