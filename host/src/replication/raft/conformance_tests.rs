//! openraft's own conformance suite, on the real stores.

use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::applied::Applied;
use super::log_store::LogStore;
use super::state_machine::StateMachine;
use crate::replication::blocking::Blocking;
use crate::replication::types::TypeConfig;
use crate::storage::{Data, Log};
use crate::telemetry::Telemetry;

/// Opens new stores in a directory that lives as long as the guard.
struct Disk;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Disk {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(&dir.path().join("log"), Box::new(|_, _| {})).unwrap();
        let data = Data::open(&dir.path().join("data"), 8 << 20).unwrap();
        let telemetry = Telemetry::disabled();
        let state_machine = StateMachine::new(data, Arc::new(Applied::new(0)), telemetry.clone(), Blocking::Threads);
        Ok((dir, LogStore::new(log, telemetry), state_machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stores_conform_to_what_openraft_expects() {
    Suite::test_all(Disk).await.unwrap();
}
