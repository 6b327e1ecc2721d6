//! A failed disk: its node stops with a message and rejoins once the disk works again. The other nodes keep serving.

use std::time::Duration;

use brink_tests::{Load, Operation, Options, entries, eventually};

use crate::setup::Setup;

/// Exit code of `brink serve` after a disk failure.
const DISK_FAILED: i32 = 3;

/// Time for a node to notice the failure. Only a guard.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);

/// Fails one kind of operation on one part of a node's data under load.
async fn fail_under_load(operation: Operation, under: &str, database: &str, of_leader: bool) {
    let mut setup = Setup::start(3, Options::default()).await;
    let load = Load::start(&setup.cluster, "load", 2);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let leader = setup.cluster.leader().await;
    let victim = if of_leader { leader } else { (leader + 1) % 3 };
    setup.disks[victim].fail(operation, under);
    assert_eq!(setup.cluster.nodes[victim].ended(NOTICE_LIMIT).await, DISK_FAILED);
    assert_eq!(setup.disks[victim].failed(), 1, "the failed operation was repeated");

    let log = setup.cluster.nodes[victim].log();
    // Other threads may log until the process ends.
    let last = log.lines().rev().find(|line| line.starts_with("brink: ")).unwrap();
    let path = setup.disks[victim].path().join("data").join(database);
    assert!(last.starts_with(&format!("brink: {}: ", path.display())), "{last}");
    assert!(last.contains("Input/output error"), "{last}");

    let before = load.count();
    eventually(NOTICE_LIMIT, "the other nodes acknowledge writes", || async {
        (load.count() > before + 50).then_some(())
    })
    .await;
    setup.disks[victim].heal();
    setup.cluster.nodes[victim].start();
    setup.cluster.ready().await;
    let acknowledged = load.stop().await;
    let found = entries(setup.cluster.client(victim), "load/", "strong").await;
    for (key, number) in &acknowledged {
        assert_eq!(found.get(key).and_then(serde_json::Value::as_u64), Some(*number), "{key}");
    }
    assert!(!setup.cluster.nodes[victim].log().contains("set aside"), "the node set its data aside");
}

#[tokio::test]
async fn a_failed_sync_of_the_log_ends_the_node() {
    fail_under_load(Operation::Sync, "data/log", "log", false).await;
}

#[tokio::test]
async fn a_failed_sync_of_the_log_ends_the_leader() {
    fail_under_load(Operation::Sync, "data/log", "log", true).await;
}

#[tokio::test]
async fn a_failed_write_of_the_log_ends_the_node() {
    fail_under_load(Operation::Write, "data/log", "log", false).await;
}

#[tokio::test]
async fn a_failed_write_of_the_state_ends_the_node() {
    fail_under_load(Operation::Write, "data/data", "data", false).await;
}

#[tokio::test]
async fn a_failed_sync_of_the_watermark_ends_the_node() {
    fail_under_load(Operation::Sync, "data/log.watermark", "log", false).await;
}
