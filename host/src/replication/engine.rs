//! The consensus engine under this node's id, and what it is built from.
//!
//! A node may have to take another id while it runs (see `identity`); the engine is built anew then, on the same
//! databases.

use std::sync::Arc;

use tokio::sync::watch;

use super::blocking::Blocking;
use super::log_store::LogStore;
use super::state_machine::StateMachine;
use super::transport::{Network, Transport};
use super::types::{Raft, TypeConfig};
use crate::storage::{Data, Log};
use crate::telemetry::Telemetry;

/// A running engine.
pub(super) struct Engine {
    /// The node's id.
    pub(super) id: u64,
    /// Whether the id is on disk, as this node's own. Until then it takes no part.
    pub(super) decided: bool,
    pub(super) raft: Raft,
}

/// What engines are built from.
pub(super) struct EngineParts {
    pub(super) config: Arc<openraft::Config>,
    pub(super) log: Log,
    pub(super) data: Data,
    pub(super) applied: watch::Sender<u64>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) telemetry: Telemetry,
    pub(super) blocking: Blocking,
}

impl EngineParts {
    /// Starts an engine under an id. It does not stand for election before that is allowed.
    pub(super) async fn build(&self, id: u64, decided: bool) -> Result<Engine, openraft::error::Fatal<TypeConfig>> {
        let log_store = LogStore::new(self.log.clone(), self.telemetry.clone());
        let (data, applied) = (self.data.clone(), self.applied.clone());
        let state_machine = StateMachine::new(data, applied, self.telemetry.clone(), self.blocking.clone());
        let network = Network::new(self.transport.clone(), self.telemetry.clone(), self.blocking.clone());
        let raft = Raft::new(id, self.config.clone(), network, log_store, state_machine).await?;
        Ok(Engine { id, decided, raft })
    }
}
