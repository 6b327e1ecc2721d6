//! Watches the other nodes: asks each for its state, and shows the cluster's state in the metrics.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::hello::Greeter;
use super::status::StatusReport;
use super::view::ClusterView;
use crate::telemetry::Telemetry;

/// Interval of hellos to a peer.
const HELLO_INTERVAL: Duration = Duration::from_millis(250);

/// Interval of hellos to a peer while there is no leader.
const HELLO_INTERVAL_FORMING: Duration = Duration::from_millis(25);

/// Watches the other nodes.
#[derive(Clone)]
pub(crate) struct Watch {
    pub(crate) view: Arc<ClusterView>,
    pub(crate) greeter: Arc<Greeter>,
    pub(crate) status: Arc<StatusReport>,
    pub(crate) telemetry: Telemetry,
    pub(crate) tasks: TaskTracker,
}

impl Watch {
    /// Starts a task for every node of the cluster, as nodes come and go.
    pub(crate) async fn watch_peers(self, stop: CancellationToken) {
        loop {
            for url in self.view.watched_urls() {
                if self.view.peers.add(&url) {
                    self.tasks.spawn(self.clone().watch_peer(url, stop.clone()));
                }
            }
            self.publish();
            if stop.run_until_cancelled(tokio::time::sleep(self.interval())).await.is_none() {
                return;
            }
        }
    }

    fn interval(&self) -> Duration {
        if self.view.leader().is_some() { HELLO_INTERVAL } else { HELLO_INTERVAL_FORMING }
    }

    /// Asks a node for its state again and again, as long as it belongs to the cluster.
    async fn watch_peer(self, url: String, stop: CancellationToken) {
        while self.view.watched_urls().contains(&url) {
            stop.run_until_cancelled(self.greeter.greet(&url)).await;
            if stop.run_until_cancelled(tokio::time::sleep(self.interval())).await.is_none() {
                return;
            }
        }
        self.view.peers.remove(&url);
    }

    /// Shows the cluster's state in the metrics.
    fn publish(&self) {
        let status = self.status.status();
        let metrics = self.telemetry.metrics();
        metrics.set_log_entries(self.view.raft.log_entries());
        metrics.set_cluster(status.term, self.view.leader().map(|(leader, _)| leader), status.has_quorum);
        for node in &status.nodes {
            if let Some(lag) = node.lag_entries {
                metrics.set_replication_lag(&node.url, lag);
            }
        }
    }
}
