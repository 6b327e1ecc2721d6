//! P1: acknowledged writes survive a kill of all processes at once.

use std::time::{Duration, Instant};

use brink_tests::{Answer, Cluster, Load, entries, eventually};
use serde_json::json;

/// Time for writes to be acknowledged.
const LIMIT: Duration = Duration::from_secs(60);

/// A read that takes longer may be of a node that gave up waiting for its leader after 2.5 s (decision 26).
const WAIT_MAX: Duration = Duration::from_millis(2_400);

/// Rounds that judge a read, and those that may be repeated because it took longer.
const ROUNDS: usize = 5;
const REPEATED_MAX: usize = 10;

#[tokio::test]
async fn no_acknowledged_write_is_lost_when_all_nodes_are_killed_at_once() {
    let mut cluster = Cluster::start(3).await;
    for round in 0..3 {
        let load = Load::start(&cluster, &format!("round{round}"), 4);
        tokio::time::sleep(Duration::from_secs(1)).await;
        eventually(LIMIT, "writes are acknowledged", || async { (load.count() > 50).then_some(()) }).await;
        cluster.kill_all();
        let acknowledged = load.stop().await;
        assert!(acknowledged.len() > 50, "only {} writes", acknowledged.len());

        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.ready().await;
        for node in &cluster.nodes {
            let found = entries(&node.client, &format!("round{round}/"), "strong").await;
            for (key, number) in &acknowledged {
                assert_eq!(found.get(key).and_then(serde_json::Value::as_u64), Some(*number), "{key} on {}", node.url);
            }
        }
    }
}

/// A crash takes what a node has not synced of its state, and it learns only from the leader how much of its log is
/// committed. Until then it must not answer from what is left.
#[tokio::test]
async fn a_local_read_after_a_restart_shows_no_older_state_than_one_before() {
    let mut cluster = Cluster::start(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    let (mut judged, mut repeated, mut first) = (0, 0, true);
    while judged < ROUNDS {
        for number in 0..20 {
            cluster.client(follower).write("k", &json!(number)).await.expect(if first { 201 } else { 200 });
            first = false;
        }
        let local = "/kv/k/?consistency=local";
        let shown = revision(&cluster.client(follower).get(local).await.expect(200));
        let node = &mut cluster.nodes[follower];
        node.kill();
        node.start();
        node.answers().await;
        let asked = Instant::now();
        let after = node.client.get(local).await;
        if asked.elapsed() >= WAIT_MAX {
            repeated += 1;
            assert!(repeated <= REPEATED_MAX, "the node does not hear its leader");
            cluster.ready().await;
            continue;
        }
        judged += 1;
        assert!(after.status == 200 && revision(&after) >= shown, "{shown}, then {} {:?}", after.status, after.json);
    }
}

fn revision(answer: &Answer) -> u64 {
    answer.header("brink-revision").unwrap().parse().unwrap()
}
