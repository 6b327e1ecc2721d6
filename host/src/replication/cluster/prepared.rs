//! Up to which revision of the store the nodes have prepared its plugins and hooks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::peer_table::PeerTable;

/// Interval at which the peers' revisions are checked. They arrive with every hello.
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// The revision of the store up to which each node has compiled plugins and put hooks in force.
pub(crate) struct Prepared {
    own: AtomicU64,
    peers: Arc<PeerTable>,
}

impl Prepared {
    pub(crate) fn new(peers: Arc<PeerTable>) -> Self {
        Self { own: AtomicU64::new(0), peers }
    }

    /// This node's revision.
    pub(crate) fn own(&self) -> u64 {
        self.own.load(Ordering::Relaxed)
    }

    /// Sets this node's revision; the other nodes learn it with the next hello.
    pub(crate) fn set_own(&self, revision: u64) {
        self.own.store(revision, Ordering::Relaxed);
    }

    /// The URLs and revisions of the peers that can be reached.
    pub(crate) fn peers(&self) -> Vec<(String, u64)> {
        self.peers.healthy(|peer| peer.prepared_revision)
    }

    /// Waits until every peer that can be reached has prepared `revision`. Returns the URLs of those that have not by the
    /// deadline.
    pub(crate) async fn wait_for(&self, revision: u64, deadline: Instant) -> Vec<String> {
        loop {
            let late = self.peers().into_iter().filter(|(_, prepared)| *prepared < revision);
            let late: Vec<String> = late.map(|(url, _)| url).collect();
            if late.is_empty() || Instant::now() >= deadline {
                return late;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}
