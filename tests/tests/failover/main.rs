//! P8: the pause of writes after the loss of the leader. This test measures time, so that it has a process of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use brink_tests::{Cluster, Load, entries, eventually};
use serde_json::json;

/// Time for nodes to acknowledge writes at all.
const LIMIT: Duration = Duration::from_secs(60);

/// Number of leader kills.
const TRIALS: usize = 10;

/// Number of orderly stops of the leader.
const HAND_OVERS: usize = 5;

/// Limit of the median pause after an orderly stop: less than the shortest lease and election.
const HAND_OVER_MAX: Duration = Duration::from_millis(200);

/// Limit of the median pause after a kill.
const MEDIAN_MAX: Duration = Duration::from_secs(1);

#[tokio::test]
async fn writes_resume_within_a_second_of_the_leaders_death_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::start(3).await;
    let mut acknowledged = BTreeMap::new();
    let mut pauses = Vec::new();
    for trial in 0..TRIALS {
        cluster.healthy().await;
        let load = Load::start(&cluster, &format!("trial{trial}"), 2);
        tokio::time::sleep(Duration::from_millis(500)).await;
        eventually(LIMIT, "a write is acknowledged before the kill", || async { (load.count() > 0).then_some(()) })
            .await;
        let leader = cluster.leader().await;
        cluster.nodes[leader].kill();
        pauses.push(pause(&cluster, leader, &format!("kill/{trial}")).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
        acknowledged.extend(load.stop().await);
        cluster.nodes[leader].start();
        cluster.ready().await;
    }
    pauses.sort();
    println!("pauses after a kill of the leader: {pauses:?}");
    assert!(pauses[TRIALS / 2] < MEDIAN_MAX, "{pauses:?}");

    for node in &cluster.nodes {
        let found = entries(&node.client, "trial", "strong").await;
        for (key, number) in &acknowledged {
            assert_eq!(found.get(key).and_then(serde_json::Value::as_u64), Some(*number), "{key} on {}", node.url);
        }
    }
}

/// A leader that is asked to stop transfers its leadership first. Otherwise writes would wait for the end of its lease and
/// for an election, about half a second.
#[tokio::test]
async fn a_leader_that_is_asked_to_stop_costs_writes_no_election() {
    let mut cluster = Cluster::start(3).await;
    let mut pauses = Vec::new();
    for trial in 0..HAND_OVERS {
        cluster.healthy().await;
        let leader = cluster.leader().await;
        assert!(cluster.nodes[leader].stop(), "the leader did not stop cleanly");
        pauses.push(pause(&cluster, leader, &format!("stop/{trial}")).await);
        cluster.nodes[leader].start();
        cluster.ready().await;
    }
    pauses.sort();
    println!("pauses after an orderly stop of the leader: {pauses:?}");
    assert!(pauses[HAND_OVERS / 2] < HAND_OVER_MAX, "{pauses:?}");
}

/// Time until each of the other nodes has acknowledged a write.
async fn pause(cluster: &Cluster, dead: usize, name: &str) -> Duration {
    let began = Instant::now();
    for index in (0..cluster.nodes.len()).filter(|index| *index != dead) {
        let client = cluster.client(index);
        while client.put(&format!("probe/{name}/{index}"), &json!(1)).await.status >= 300 {
            assert!(began.elapsed() < LIMIT, "the other nodes acknowledge no write");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    began.elapsed()
}
