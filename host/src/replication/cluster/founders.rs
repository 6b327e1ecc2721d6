//! The nodes this one was started with.

use std::collections::{BTreeMap, BTreeSet};

use crate::replication::ids::node_id;

/// The nodes this one was started with, itself included.
pub(crate) struct Founders {
    own_url: String,
    /// URLs by the ids that these nodes have if they form a cluster together.
    nodes: BTreeMap<u64, String>,
}

impl Founders {
    /// None if the list names a node twice, or this node itself.
    pub(crate) fn new(own_url: &str, peer_urls: &[String]) -> Option<Self> {
        let urls = std::iter::once(own_url).chain(peer_urls.iter().map(String::as_str));
        let nodes: BTreeMap<u64, String> = urls.map(|url| (node_id(url), url.to_owned())).collect();
        (nodes.len() == peer_urls.len() + 1).then(|| Self { own_url: own_url.to_owned(), nodes })
    }

    /// This node's base URL.
    pub(crate) fn own_url(&self) -> &str {
        &self.own_url
    }

    /// This node's id if it forms a cluster with the others.
    pub(crate) fn own_id(&self) -> u64 {
        node_id(&self.own_url)
    }

    /// The URLs of all founders by their ids.
    pub(crate) fn nodes(&self) -> &BTreeMap<u64, String> {
        &self.nodes
    }

    /// The URLs of the others.
    pub(crate) fn peer_urls(&self) -> BTreeSet<String> {
        self.nodes.values().filter(|url| **url != self.own_url).cloned().collect()
    }

    /// Whether there are no others.
    pub(crate) fn is_alone(&self) -> bool {
        self.nodes.len() == 1
    }

    /// Whether so many founders are a majority.
    pub(crate) fn is_majority(&self, count: usize) -> bool {
        count > self.nodes.len() / 2
    }
}
