//! The concerns of a node's part in the cluster, connected with each other.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cluster::formation::Formation;
use super::cluster::founders::Founders;
use super::cluster::hello::Greeter;
use super::cluster::identity::Identity;
use super::cluster::leadership::Leadership;
use super::cluster::membership::Membership;
use super::cluster::peer_table::PeerTable;
use super::cluster::prepared::Prepared;
use super::cluster::silence::RestartSilence;
use super::cluster::status::StatusReport;
use super::cluster::view::ClusterView;
use super::freshness::Freshness;
use super::lease::Lease;
use super::options::Options;
use super::peer::protocol::Transport;
use super::proposer::{Proposals, Proposer};
use super::raft::engine::RaftHandle;
use super::reads::{Gate, Reads};
use super::server::Server;
use crate::telemetry::Telemetry;

/// The concerns of replication that the rest of the node uses.
pub(super) struct Parts {
    pub(super) leadership: Arc<Leadership>,
    pub(super) status: Arc<StatusReport>,
    /// Also the owner of the concerns that other nodes reach through calls.
    pub(super) server: Server,
    pub(super) proposals: Proposals,
    pub(super) gate: Gate,
    /// Long-running tasks, which end when `server.stop` is cancelled.
    pub(super) tasks: TaskTracker,
}

impl Parts {
    /// Connects the concerns of a node whose engine has started.
    pub(super) fn new(
        options: &Options,
        founders: Arc<Founders>,
        identity: Arc<Identity>,
        raft: Arc<RaftHandle>,
        transport: Arc<dyn Transport>,
        telemetry: Telemetry,
    ) -> Self {
        let peers = Arc::new(PeerTable::default());
        let lease = Arc::new(Lease::new(options.timing.election_max));
        let freshness = Arc::new(Freshness::new(raft.clone()));
        let silence = Arc::new(RestartSilence::default());
        let prepared = Arc::new(Prepared::new(peers.clone()));
        let view = Arc::new(ClusterView::new(raft, founders, peers));
        let leadership = Arc::new(Leadership::new(view.clone(), lease.clone()));
        let greeter = Arc::new(Greeter {
            identity: identity.clone(),
            view: view.clone(),
            silence: silence.clone(),
            prepared,
            free_space: options.free_space.clone(),
            transport: transport.clone(),
        });
        let formation = Arc::new(Formation {
            may_found: options.may_found,
            identity: identity.clone(),
            view: view.clone(),
            transport: transport.clone(),
        });
        let membership = Arc::new(Membership {
            identity: identity.clone(),
            view: view.clone(),
            greeter: greeter.clone(),
            leadership: leadership.clone(),
            transport: transport.clone(),
            changing: tokio::sync::Mutex::new(()),
        });
        let lease_length = options.timing.election_max;
        let status = Arc::new(StatusReport { identity: identity.clone(), view: view.clone(), lease: lease_length });
        let proposer = Arc::new(Proposer {
            view: view.clone(),
            leadership: leadership.clone(),
            free_space: options.free_space.clone(),
            transport: transport.clone(),
            telemetry,
        });
        let reads = Arc::new(Reads { view: view.clone(), lease, transport });
        let (proposals, gate) = (Proposals::start(proposer.clone()), Gate::start(reads.clone()));
        let (free_space, spool_dir) = (options.free_space.clone(), options.spool_dir.clone());
        let (blocking, stop) = (options.blocking.clone(), CancellationToken::new());
        let server = Server {
            identity,
            view,
            greeter,
            formation,
            membership,
            silence,
            proposer,
            reads,
            freshness,
            free_space,
            spool_dir,
            blocking,
            stop,
        };
        Self { leadership, status, server, proposals, gate, tasks: TaskTracker::new() }
    }
}
