//! A log that has lost durable entries must not vote: its node rejoins as a new member, or does not start.

use std::path::Path;
use std::time::Duration;

use brink_tests::{Cluster, Load, Options, Tail, entries, eventually};
use serde_json::json;

use crate::setup::{Setup, says};

/// Time for a node to rejoin, or to end. Only a guard.
const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// Bytes to cut from the end of a log: more than was written after the last watermark.
const GONE_BYTES: usize = 4_000;

/// Cuts the end of a log.
fn cut_log(data_dir: &Path) {
    change_log(data_dir, |bytes, end| bytes.truncate(end.saturating_sub(GONE_BYTES)));
}

/// Changes bytes near the end of a log, as a bad disk does.
fn scramble_log(data_dir: &Path) {
    change_log(data_dir, |bytes, end| bytes[end - GONE_BYTES..end - GONE_BYTES + 40].fill(0));
}

fn change_log(data_dir: &Path, change: impl FnOnce(&mut Vec<u8>, usize)) {
    let segments = std::fs::read_dir(data_dir.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let newest =
        segments.filter(|path| path.extension().is_some_and(|extension| extension == "segment")).max().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    change(&mut bytes, end);
    std::fs::write(&newest, bytes).unwrap();
}

#[tokio::test]
async fn a_node_whose_log_was_cut_joins_as_a_new_member() {
    let mut cluster = Cluster::start(3).await;
    let load = Load::start(&cluster, "load", 2);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = cluster.member_ids(0).await;
    cluster.nodes[2].kill();
    cut_log(&cluster.nodes[2].data_dir());
    cluster.nodes[2].start();
    cluster.ready().await;
    says(&cluster.nodes[2], &["has lost what it had made durable", "set aside"]).await;
    assert!(!cluster.nodes[0].log().contains("has lost"));

    let acknowledged = load.stop().await;
    let found = entries(cluster.client(2), "load/", "strong").await;
    assert!(acknowledged.keys().all(|key| found.contains_key(key)));
    eventually(JOIN_LIMIT, "the node has a new id", || async { (cluster.member_ids(0).await != before).then_some(()) })
        .await;
    let aside = |cluster: &Cluster| {
        let names = std::fs::read_dir(cluster.nodes[2].data_dir()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("damaged-")).collect::<Vec<_>>()
    };
    let first = aside(&cluster);
    assert_eq!(first.len(), 1);

    // Another kind of damage: only the directory of the last one is kept.
    for number in 0..50 {
        cluster.client(0).write(&format!("more/{number}"), &json!(number)).await.expect(201);
    }
    cluster.nodes[2].kill();
    scramble_log(&cluster.nodes[2].data_dir());
    cluster.nodes[2].start();
    cluster.ready().await;
    let second = aside(&cluster);
    assert!(second.len() == 1 && second != first, "{first:?} {second:?}");
}

/// A crash in the middle of a write leaves bytes that nobody was told of.
#[tokio::test]
async fn a_torn_end_of_the_log_costs_a_node_nothing() {
    for size in [1, 3] {
        let mut cluster = Cluster::start(size).await;
        for number in 0..50 {
            cluster.client(0).write(&format!("k/{number}"), &json!(number)).await.expect(201);
        }
        let before = cluster.member_ids(0).await;
        let last = size - 1;
        cluster.nodes[last].kill();
        change_log(&cluster.nodes[last].data_dir(), |bytes, end| bytes[end + 1..end + 700].fill(0x5a));
        cluster.nodes[last].start();
        cluster.ready().await;
        assert!(!cluster.nodes[last].log().contains("has lost"), "{}", cluster.nodes[last].log());
        assert_eq!(cluster.member_ids(0).await, before);
        assert_eq!(entries(cluster.client(last), "k/", "strong").await.len(), 50);
        cluster.client(last).write("k/after", &json!(1)).await.expect(201);
    }
}

/// The disk does not sync the log but syncs the watermark. A power cut exposes this.
#[tokio::test]
async fn false_syncs_are_detected_after_a_power_cut() {
    let mut setup = Setup::start(3, Options::default()).await;
    setup.disks[1].lie_about_syncs("data/log");
    for number in 0..20 {
        setup.cluster.client(0).write(&format!("k/{number}"), &json!(number)).await.expect(201);
    }
    setup.cluster.client(1).settled("/kv/k/19/?consistency=strong").await.expect(200);
    // The watermark is synced with a delay, and a sync may take long.
    tokio::time::sleep(Duration::from_secs(3)).await;
    setup.cluster.kill_all();
    for disk in &setup.disks {
        disk.cut(Tail::Lost);
    }
    setup.start_all().await;
    says(&setup.cluster.nodes[1], &["set aside"]).await;
    assert_eq!(entries(setup.cluster.client(1), "k/", "strong").await.len(), 20);
}

/// If all nodes have lost entries, the remaining data must not be replaced by an empty cluster.
#[tokio::test]
async fn nodes_that_have_all_set_their_data_aside_form_no_cluster() {
    let mut cluster = Cluster::start(3).await;
    for number in 0..100 {
        cluster.client(0).write(&format!("k/{number}"), &json!(number)).await.expect(201);
    }
    cluster.kill_all();
    let formed = |cluster: &Cluster| -> usize {
        cluster.nodes.iter().map(|node| node.log().matches("cluster formed").count()).sum()
    };
    let formed_before = formed(&cluster);
    for node in &mut cluster.nodes {
        cut_log(&node.data_dir());
        node.start();
    }
    for node in &cluster.nodes {
        node.answers().await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    for node in &cluster.nodes {
        assert_eq!(node.client.get("/readyz").await.status, 503);
        says(node, &["set aside"]).await;
    }
    assert_eq!(formed(&cluster), formed_before);
}

#[tokio::test]
async fn a_single_node_does_not_start_until_the_loss_is_accepted() {
    let mut cluster = Cluster::start(1).await;
    for number in 0..100 {
        cluster.client(0).write(&format!("k/{number}"), &json!(number)).await.expect(201);
    }
    cluster.nodes[0].kill();
    cut_log(&cluster.nodes[0].data_dir());
    cluster.nodes[0].start();
    assert_eq!(cluster.nodes[0].ended(JOIN_LIMIT).await, 3);
    let log = cluster.nodes[0].log();
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("brink: ") && last.contains("has lost"), "{last}");
    assert!(last.contains("--accept-data-loss"), "{last}");

    cluster.nodes[0].start_with(&["--accept-data-loss"]);
    cluster.ready().await;
    let left = entries(cluster.client(0), "k/", "strong").await.len();
    assert!((1..100).contains(&left), "{left}");
    cluster.client(0).write("k/99", &json!(99)).await;
    // The next start needs no flag.
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.ready().await;
}
