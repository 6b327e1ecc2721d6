//! A log that lost what it had promised must not vote: the node says so, and joins as a new member, or does not start.

use std::path::Path;
use std::time::Duration;

use brink_tests::{Cluster, Load, Options, Tail, entries, eventually};
use serde_json::json;

use crate::OnDisks;

/// How long a node that joins anew may take.
const JOIN_LIMIT: Duration = Duration::from_secs(30);

/// So many bytes go with the end of a journal: more than what was written after the last promise.
const GONE_BYTES: usize = 4_000;

/// Takes the last bytes from the journal of a log, as the engine does itself if it cannot read them.
fn cut_journal(data_dir: &Path) {
    change_journal(data_dir, |bytes, end| bytes.truncate(end.saturating_sub(GONE_BYTES)));
}

/// Changes bytes near the end of the journal, as a bad disk does.
fn scramble_journal(data_dir: &Path) {
    change_journal(data_dir, |bytes, end| bytes[end - GONE_BYTES..end - GONE_BYTES + 40].fill(0));
}

fn change_journal(data_dir: &Path, change: impl FnOnce(&mut Vec<u8>, usize)) {
    let journals = std::fs::read_dir(data_dir.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let newest = journals.filter(|path| path.extension().is_some_and(|extension| extension == "jnl")).max().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    change(&mut bytes, end);
    std::fs::write(&newest, bytes).unwrap();
}

async fn member_ids(cluster: &Cluster) -> Vec<(String, String)> {
    let members = cluster.client(0).get("/cluster/members/").await.expect(200).json;
    let members = members["members"].as_array().unwrap().clone();
    members.iter().map(|member| (member["url"].to_string(), member["id"].to_string())).collect()
}

#[tokio::test]
async fn a_node_whose_journal_was_cut_joins_as_a_new_member() {
    let mut cluster = Cluster::start(3).await;
    let load = Load::start(&cluster, "load", 2);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = member_ids(&cluster).await;
    cluster.nodes[2].kill();
    cut_journal(&cluster.nodes[2].data_dir());
    cluster.nodes[2].start();
    cluster.ready().await;
    let log = cluster.nodes[2].log();
    assert!(log.contains("has lost what it had made durable") && log.contains("set aside"), "{log}");
    assert!(!cluster.nodes[0].log().contains("has lost"));

    let acknowledged = load.stop().await;
    let found = entries(cluster.client(2), "load/", "strong").await;
    assert!(acknowledged.keys().all(|key| found.contains_key(key)));
    eventually(JOIN_LIMIT, "it has another id", || async { (member_ids(&cluster).await != before).then_some(()) })
        .await;
    let aside = |cluster: &Cluster| {
        let names = std::fs::read_dir(cluster.nodes[2].data_dir()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("damaged-")).collect::<Vec<_>>()
    };
    let first = aside(&cluster);
    assert_eq!(first.len(), 1);

    // It happens again, in another way: only the last one is kept.
    for number in 0..50 {
        cluster.client(0).put(&format!("more/{number}"), &json!(number)).await.expect(201);
    }
    cluster.nodes[2].kill();
    scramble_journal(&cluster.nodes[2].data_dir());
    cluster.nodes[2].start();
    cluster.ready().await;
    let second = aside(&cluster);
    assert!(second.len() == 1 && second != first, "{first:?} {second:?}");
}

/// Syncs of the log that were none, while those of the watermark were: the loss of power shows it.
#[tokio::test]
async fn a_disk_that_lies_about_syncs_is_found_out() {
    let mut on = OnDisks::start(3, Options::default()).await;
    on.disks[1].lie_about_syncs("data/log");
    for number in 0..20 {
        on.cluster.client(0).put(&format!("k/{number}"), &json!(number)).await.expect(201);
    }
    on.cluster.client(1).get("/kv/k/19/?consistency=strong").await.expect(200);
    // The watermark is synced a moment later.
    tokio::time::sleep(Duration::from_millis(500)).await;
    on.cluster.kill_all();
    for disk in &on.disks {
        disk.cut(Tail::Lost);
    }
    on.start_all().await;
    assert!(on.cluster.nodes[1].log().contains("set aside"), "{}", on.cluster.nodes[1].log());
    assert_eq!(entries(on.cluster.client(1), "k/", "strong").await.len(), 20);
}

/// Should all have lost something, what is left must not be thrown away for an empty cluster.
#[tokio::test]
async fn nodes_that_all_set_their_data_aside_form_no_new_cluster() {
    let mut cluster = Cluster::start(3).await;
    for number in 0..100 {
        cluster.client(0).put(&format!("k/{number}"), &json!(number)).await.expect(201);
    }
    cluster.kill_all();
    let formed = |cluster: &Cluster| -> usize {
        cluster.nodes.iter().map(|node| node.log().matches("cluster formed").count()).sum()
    };
    let formed_before = formed(&cluster);
    for node in &mut cluster.nodes {
        cut_journal(&node.data_dir());
        node.start();
    }
    for node in &cluster.nodes {
        node.answers().await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    for node in &cluster.nodes {
        assert_eq!(node.client.get("/readyz").await.status, 503);
        assert!(node.log().contains("set aside"), "{}", node.log());
    }
    assert_eq!(formed(&cluster), formed_before);
}

#[tokio::test]
async fn a_node_alone_does_not_start_until_the_loss_is_accepted() {
    let mut cluster = Cluster::start(1).await;
    for number in 0..100 {
        cluster.client(0).put(&format!("k/{number}"), &json!(number)).await.expect(201);
    }
    cluster.nodes[0].kill();
    cut_journal(&cluster.nodes[0].data_dir());
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
    cluster.client(0).put("k/99", &json!(99)).await;
    // Once accepted, it is forgotten.
    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.ready().await;
}
