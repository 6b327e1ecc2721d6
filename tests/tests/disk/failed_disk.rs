//! A node whose disk has failed stops, says so, and comes back once the disk is good again. The others go on.

use std::time::Duration;

use brink_tests::{Load, Operation, Options, entries, eventually};

use crate::OnDisks;

/// Exit code of `brink serve` if the disk failed.
const DISK_FAILED: i32 = 3;

/// How long a node may take to notice.
const NOTICE_LIMIT: Duration = Duration::from_secs(10);

/// Lets one operation on one part of a node's data fail, under load.
async fn fail_under_load(operation: Operation, under: &str, database: &str, of_leader: bool) {
    let mut on = OnDisks::start(3, Options::default()).await;
    let load = Load::start(&on.cluster, "load", 2);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let leader = on.cluster.leader().await;
    let victim = if of_leader { leader } else { (leader + 1) % 3 };
    on.disks[victim].fail(operation, under);
    assert_eq!(on.cluster.nodes[victim].ended(NOTICE_LIMIT).await, DISK_FAILED);
    assert_eq!(on.disks[victim].failed(), 1, "what failed was not tried again");

    let log = on.cluster.nodes[victim].log();
    // Other threads may log until the process is gone.
    let last = log.lines().rev().find(|line| line.starts_with("brink: ")).unwrap();
    let path = on.disks[victim].path().join("data").join(database);
    assert!(last.starts_with(&format!("brink: {}: ", path.display())), "{last}");
    assert!(last.contains("Input/output error"), "{last}");

    let before = load.count();
    eventually(NOTICE_LIMIT, "the others go on", || async { (load.count() > before + 50).then_some(()) }).await;
    on.disks[victim].heal();
    on.cluster.nodes[victim].start();
    on.cluster.ready().await;
    let acknowledged = load.stop().await;
    let found = entries(on.cluster.client(victim), "load/", "strong").await;
    for (key, number) in &acknowledged {
        assert_eq!(found.get(key).and_then(serde_json::Value::as_u64), Some(*number), "{key}");
    }
    assert!(!on.cluster.nodes[victim].log().contains("set aside"), "it has lost nothing");
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
