//! A node that needs log entries which the others have cut away catches up from a snapshot.

use std::time::Duration;

use brink_tests::{Client, Cluster, Options, entries, eventually};
use serde_json::json;

/// Writes between snapshots in these tests.
const SNAPSHOT_ENTRIES: usize = 50;

/// Enough for several snapshots and a log that is cut.
pub(crate) const WRITES: usize = 600;

pub(crate) fn options() -> Options {
    Options { args: vec!["--snapshot-entries".to_owned(), SNAPSHOT_ENTRIES.to_string()], ..Options::default() }
}

pub(crate) async fn fill(client: &Client, name: &str) {
    for number in 0..WRITES {
        client.put(&format!("{name}/{number:04}"), &json!({ "number": number })).await.expect(201);
    }
}

/// Waits until the running nodes have cut their logs. They do so behind later writes, and not while they are busy.
pub(crate) async fn wait_for_cut_logs(cluster: &Cluster) {
    for node in cluster.nodes.iter().filter(|node| node.is_running()) {
        eventually(Duration::from_secs(20), "the log is cut", || async {
            assert!(cluster.client(0).put("more", &json!(1)).await.status < 300);
            let metrics = String::from_utf8(node.client.get("/metrics").await.body).unwrap();
            let gauge = metrics.lines().find(|line| line.starts_with("brink_log_entries{"))?;
            let entries: usize = gauge.rsplit_once(' ')?.1.parse().ok()?;
            (entries < 4 * SNAPSHOT_ENTRIES).then_some(())
        })
        .await;
    }
}

async fn wait_for_all(cluster: &Cluster, late: usize, name: &str) {
    let expected = entries(cluster.client(0), &format!("{name}/"), "strong").await;
    assert_eq!(expected.len(), WRITES);
    eventually(Duration::from_secs(20), "the late node has everything", || async {
        let found = entries(cluster.client(late), &format!("{name}/"), "local").await;
        (found == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_that_starts_late_gets_a_snapshot_and_then_the_log() {
    let mut cluster = Cluster::prepare(3, options());
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    cluster.ready().await;
    fill(cluster.client(0), "early").await;
    wait_for_cut_logs(&cluster).await;

    cluster.nodes[2].start();
    cluster.ready().await;
    wait_for_all(&cluster, 2, "early").await;
    assert!(cluster.nodes[2].log().contains("snapshot installed"), "{}", cluster.nodes[2].log());

    // It takes part fully: with it, the cluster lives through the loss of another.
    cluster.nodes[0].kill();
    eventually(Duration::from_secs(10), "the other two go on", || async {
        (cluster.client(2).put("late/0000", &json!(1)).await.status < 300).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_that_was_away_for_long_gets_a_snapshot_and_then_the_log() {
    let mut cluster = Cluster::start_with(3, options()).await;
    cluster.client(0).put("gone", &json!(1)).await.expect(201);
    cluster.client(2).get("/kv/gone/?consistency=strong").await.expect(200);
    cluster.nodes[2].kill();
    eventually(Duration::from_secs(10), "the other two go on", || async {
        (cluster.client(0).delete("/kv/gone/").await.status == 204).then_some(())
    })
    .await;
    fill(cluster.client(0), "meanwhile").await;
    wait_for_cut_logs(&cluster).await;

    cluster.nodes[2].start();
    cluster.ready().await;
    wait_for_all(&cluster, 2, "meanwhile").await;
    assert!(cluster.nodes[2].log().contains("snapshot installed"), "{}", cluster.nodes[2].log());
    // What was deleted meanwhile is gone there too.
    cluster.client(2).get("/kv/gone/?consistency=local").await.expect(404);

    cluster.nodes[2].kill();
    cluster.nodes[2].start();
    cluster.ready().await;
    wait_for_all(&cluster, 2, "meanwhile").await;
}
