//! Raising the cluster's feature level, once all its nodes support a higher one.
//!
//! A cluster that nodes of this version formed raises its level by itself as soon as it has heard all of them. Any other one waits
//! for its operator, who may want to go back to the version before; from then on, that version no longer understands the log.
//!
//! The level is raised by a log entry that needs it: an empty round with a time and the level. So the level that a node knows is
//! never ahead of the log it has applied, and a node that lacks the entry still reads everything before it.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::change::{Progress, is_joint};
use super::membership::{Membership, STEP_TIMEOUT, leads};
use crate::replication::cluster::identity::{self, FOUNDED_AT};
use crate::replication::error::Error;
use crate::replication::types::{Metrics, Round};
use crate::storage::{FeatureLevel, Log};

/// Interval at which a leader looks whether all nodes support a higher level.
const INTERVAL: Duration = Duration::from_millis(100);

impl Membership {
    /// Raises the level of a cluster that this version formed, while this node runs and leads.
    pub(crate) async fn raise_level_of_new_cluster(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_some() {
            if self.view.raft.applied().level() >= FeatureLevel::NEWEST {
                return;
            }
            let is_due = self.view.raft.with_metrics(leads) && founded_at(&self.identity.log) >= FeatureLevel::NEWEST;
            if is_due && self.nodes_below(FeatureLevel::NEWEST).is_empty() {
                self.raise_level().await;
            }
        }
    }

    /// On the leader: raises the level to the highest that this version supports.
    pub(super) async fn raise_level(&self) -> Progress {
        if self.view.raft.applied().level() >= FeatureLevel::NEWEST {
            return Progress::Done;
        }
        let Ok(_changing) = self.changing.try_lock() else { return Progress::Pending };
        if self.view.raft.with_metrics(is_joint) {
            return Progress::Pending;
        }
        let below = self.nodes_below(FeatureLevel::NEWEST);
        if !below.is_empty() {
            let (newest, below) = (FeatureLevel::NEWEST, below.join(", "));
            return Progress::Refused(format!(
                "every node must answer and support feature level {newest}, and these do not: {below}"
            ));
        }
        // The first stamp: time goes on from here.
        if !self.view.time.is_complete() {
            return Progress::Pending;
        }
        let stamped_at_ms = Some(self.view.stamp_ms());
        let round = Round { stamped_at_ms, raises_to: Some(FeatureLevel::NEWEST), writes: Vec::new() };
        match tokio::time::timeout(STEP_TIMEOUT, self.view.raft.raft().client_write(round)).await {
            Ok(Ok(_)) => {
                tracing::info!(level = %FeatureLevel::NEWEST, "the cluster's feature level was raised");
                Progress::Done
            }
            Ok(Err(_)) => Progress::NotLeader,
            Err(_) => Progress::Pending,
        }
    }

    /// The URLs of the other nodes that do not support a level, or do not answer.
    fn nodes_below(&self, level: FeatureLevel) -> Vec<String> {
        let nodes = self.view.raft.with_metrics(|metrics: &Metrics| self.view.nodes(metrics));
        let own = self.view.raft.id();
        let supports = |(id, url): &(u64, String)| {
            *id == own
                || self
                    .view
                    .peers
                    .get(url)
                    .is_some_and(|peer| peer.is_healthy_as(*id) && peer.hello.supports() >= level)
        };
        nodes.into_iter().filter(|node| !supports(node)).map(|(_, url)| url).collect()
    }
}

/// The level that this node supported when it formed its cluster; the first if it did not form it.
fn founded_at(log: &Log) -> FeatureLevel {
    identity::stored(log, FOUNDED_AT).ok().flatten().unwrap_or_default()
}

/// Checks that this version understands a cluster that it already belongs to.
pub(crate) fn check_level(level: FeatureLevel) -> Result<(), Error> {
    match level <= FeatureLevel::NEWEST {
        true => Ok(()),
        false => Err(Error::Refused(format!(
            "the cluster has feature level {level}, and this version of brink supports {}: run a newer one",
            FeatureLevel::NEWEST
        ))),
    }
}
