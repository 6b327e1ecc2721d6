//! Whether this node still is the member that its disk says it is.
//!
//! # Problem
//!
//! Nobody sends anything to a node that was removed, so it would go on as if it were only cut off. And a data directory may be
//! copied: then two processes have one id, and a member's promises would be kept by only one of them.
//!
//! # Approach
//!
//! Hellos carry the newest committed membership that a node knows. Of two memberships, the one with the higher log index is in
//! force. If a newer one than this node's own lacks it, it was removed. If the newest one has its id under another URL, and a process
//! answers there under that id, this node's directory is a copy. In either case the node neither votes nor stands, takes no
//! writes, and answers no strong reads.
//!
//! # Failure model
//!
//! A removed node that reaches nobody cannot know. It has no leader then, so it takes no writes either.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::hello::{Greeter, membership_of};
use super::peer_table::KnownMembership;
use super::view::Standing;
use crate::replication::lease::Lease;
use crate::replication::types::ClusterId;

/// Finds out where this node stands, again and again.
pub(crate) struct StandingWatch {
    pub(crate) greeter: Arc<Greeter>,
    pub(crate) lease: Arc<Lease>,
}

impl StandingWatch {
    /// Bars a node that has moved until its former URL was asked: it may be a copy.
    pub(crate) fn begin(&self) {
        let view = &self.greeter.view;
        let membership = view.raft.with_metrics(membership_of);
        let stored = membership.and_then(|membership| membership.nodes.get(&view.raft.id()).cloned());
        if stored.is_some_and(|stored| stored != view.founders.own_url) {
            self.lease.bar(true);
        }
    }

    pub(crate) async fn watch(self, stop: CancellationToken) {
        loop {
            let Some(standing) = stop.run_until_cancelled(self.look()).await else { return };
            self.take(standing);
            if stop.run_until_cancelled(tokio::time::sleep(self.greeter.interval())).await.is_none() {
                return;
            }
        }
    }

    async fn look(&self) -> Standing {
        let stage = self.greeter.identity.stage();
        let (Some(id), Some(cluster)) = (stage.id(), stage.cluster()) else { return Standing::Regular };
        let view = &self.greeter.view;
        let (theirs, ours) = (self.newest_of_peers(cluster), view.raft.with_metrics(membership_of));
        if let Some(newest) = &theirs
            && ours.as_ref().is_none_or(|ours| ours.index <= newest.index)
            && !newest.nodes.contains_key(&id)
            // A node that waits for its place may have an old log.
            && ours.as_ref().is_some_and(|ours| ours.nodes.contains_key(&id) || ours.index == newest.index)
        {
            return Standing::Removed;
        }
        let newest = theirs.into_iter().chain(ours).max_by_key(|membership| membership.index);
        match newest.and_then(|membership| membership.nodes.get(&id).cloned()) {
            Some(url) if url != view.founders.own_url && self.greeter.has_twin(&url, id).await => {
                Standing::Copied { url }
            }
            _ => Standing::Regular,
        }
    }

    fn newest_of_peers(&self, cluster: ClusterId) -> Option<KnownMembership> {
        self.greeter.view.peers.memberships(cluster).into_iter().max_by_key(|membership| membership.index)
    }

    fn take(&self, standing: Standing) {
        let view = &self.greeter.view;
        let is_barred = standing != Standing::Regular;
        let before = std::mem::replace(&mut *view.standing.lock(), standing.clone());
        if is_barred != self.lease.is_barred() {
            self.lease.bar(is_barred);
            view.raft.raft().runtime_config().elect(!self.lease.is_silent());
        }
        let url = &view.founders.own_url;
        match standing {
            _ if before == standing => {}
            Standing::Regular => tracing::info!("this node takes part in its cluster again"),
            Standing::Removed => tracing::warn!(
                "this node was removed from its cluster: it takes no writes, and its reads grow old; stop it, or let it in \
                 again by `brink cluster add {url}` on a member"
            ),
            Standing::Copied { url: other } => tracing::error!(
                other,
                "another process runs under this node's id: this data directory was copied from it, or it from this one; \
                 start the copy with an empty --data-dir"
            ),
        }
    }
}
