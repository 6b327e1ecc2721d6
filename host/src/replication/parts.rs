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
    pub(super) founders: Arc<Founders>,
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
        telemetry: &Telemetry,
    ) -> Self {
        let peers = Arc::new(PeerTable::default());
        let lease = Arc::new(Lease::new(options.timing.election_max));
        let view = Arc::new(ClusterView::new(raft.clone(), founders.clone(), peers.clone()));
        let leadership = Arc::new(Leadership::new(raft.clone(), peers.clone(), lease.clone()));
        let proposer = Arc::new(Proposer {
            raft: raft.clone(),
            view: view.clone(),
            leadership: leadership.clone(),
            free_space: options.free_space.clone(),
            transport: transport.clone(),
            telemetry: telemetry.clone(),
        });
        let reads = Arc::new(Reads { raft: raft.clone(), view: view.clone(), lease, transport: transport.clone() });
        let status = Arc::new(StatusReport {
            founders: founders.clone(),
            identity: identity.clone(),
            raft: raft.clone(),
            view: view.clone(),
            peers: peers.clone(),
            lease: options.timing.election_max,
        });
        let greeter = Arc::new(Greeter {
            founders: founders.clone(),
            identity,
            raft,
            silence: Arc::new(RestartSilence::default()),
            prepared: Arc::new(Prepared::new(peers.clone())),
            free_space: options.free_space.clone(),
            peers,
            transport,
        });
        let (proposals, gate) = (Proposals::start(proposer.clone()), Gate::start(reads.clone()));
        let server = server(options, greeter, view, leadership.clone(), proposer, reads);
        Self { founders, leadership, status, server, proposals, gate, tasks: TaskTracker::new() }
    }
}

fn server(
    options: &Options,
    greeter: Arc<Greeter>,
    view: Arc<ClusterView>,
    leadership: Arc<Leadership>,
    proposer: Arc<Proposer>,
    reads: Arc<Reads>,
) -> Server {
    let (founders, identity, raft) = (&greeter.founders, &greeter.identity, &greeter.raft);
    let formation = Formation {
        may_found: options.may_found,
        founders: founders.clone(),
        identity: identity.clone(),
        raft: raft.clone(),
        peers: greeter.peers.clone(),
        transport: greeter.transport.clone(),
    };
    let membership = Membership {
        founders: founders.clone(),
        identity: identity.clone(),
        raft: raft.clone(),
        view: view.clone(),
        greeter: greeter.clone(),
        leadership,
        transport: greeter.transport.clone(),
        changing: tokio::sync::Mutex::new(()),
    };
    Server {
        identity: identity.clone(),
        raft: raft.clone(),
        silence: greeter.silence.clone(),
        freshness: Arc::new(Freshness::new(raft.clone())),
        formation: Arc::new(formation),
        membership: Arc::new(membership),
        view,
        greeter,
        proposer,
        reads,
        free_space: options.free_space.clone(),
        spool_dir: options.spool_dir.clone(),
        blocking: options.blocking.clone(),
        stop: CancellationToken::new(),
    }
}
