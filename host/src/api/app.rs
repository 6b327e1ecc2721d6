//! The parts of a node that handlers work with.

use tokio_util::sync::CancellationToken;

use crate::hooks::Record;
use crate::registry::Registry;
use crate::replication;
use crate::storage::Data;
use crate::telemetry::Telemetry;
use crate::write_path::WritePath;

/// The state of the router: the parts of a node that handlers work with.
pub struct App {
    /// Takes writes to their commit.
    pub write_path: WritePath,
    /// The node's part in the cluster.
    pub replication: replication::Handle,
    /// Plugins and hooks.
    pub registry: Registry,
    /// Lines and figures of the plugins on this node.
    pub plugin_record: Record,
    /// Cancelled once the node stops; endless responses end then.
    pub draining: CancellationToken,
    /// The node's own state.
    pub data: Data,
    /// Metrics and traces.
    pub telemetry: Telemetry,
}
