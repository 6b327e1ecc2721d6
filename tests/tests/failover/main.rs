//! P8: how long writes pause when the leader dies. Alone in its process, since it measures time.

#![allow(missing_docs, reason = "tests are named as facts")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure here is a failed test"
)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use brink_tests::{Cluster, Load, entries};
use serde_json::json;

/// How often the leader is killed.
const TRIALS: usize = 10;

/// How often the leader is asked to stop.
const HAND_OVERS: usize = 5;

/// The most the median pause after an orderly end may be: less than the shortest lease and election.
const HAND_OVER_MAX: Duration = Duration::from_millis(200);

/// The most the median pause may be.
const MEDIAN_MAX: Duration = Duration::from_secs(1);

#[tokio::test]
async fn writes_resume_within_a_second_of_the_leaders_death_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::start(3).await;
    let mut acknowledged = BTreeMap::new();
    let mut pauses = Vec::new();
    for trial in 0..TRIALS {
        let leader = cluster.leader().await;
        let load = Load::start(&cluster, &format!("trial{trial}"), 2);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(load.count() > 0, "the cluster takes writes before the leader dies");
        cluster.nodes[leader].kill();
        pauses.push(pause(&cluster, leader, trial).await);
        tokio::time::sleep(Duration::from_millis(300)).await;
        acknowledged.extend(load.stop().await);
        cluster.nodes[leader].start();
        cluster.ready().await;
    }
    pauses.sort();
    println!("pauses of writes after the leader's death: {pauses:?}");
    assert!(pauses[TRIALS / 2] < MEDIAN_MAX, "{pauses:?}");

    for node in &cluster.nodes {
        let found = entries(&node.client, "trial", "strong").await;
        for (key, number) in &acknowledged {
            assert_eq!(found.get(key).and_then(serde_json::Value::as_u64), Some(*number), "{key} on {}", node.url);
        }
    }
}

/// A leader that is asked to stop hands over first. Were it not to, writes would wait for the lease to end and for an
/// election, which takes half a second.
#[tokio::test]
async fn a_leader_that_is_asked_to_stop_costs_writes_no_election() {
    let mut cluster = Cluster::start(3).await;
    let mut pauses = Vec::new();
    for trial in 0..HAND_OVERS {
        let leader = cluster.leader().await;
        assert!(cluster.nodes[leader].stop(), "the leader stops cleanly");
        pauses.push(pause(&cluster, leader, TRIALS + trial).await);
        cluster.nodes[leader].start();
        cluster.ready().await;
    }
    pauses.sort();
    println!("pauses of writes after the leader's orderly end: {pauses:?}");
    assert!(pauses[HAND_OVERS / 2] < HAND_OVER_MAX, "{pauses:?}");
}

/// How long it takes from now until both other nodes have taken a write.
async fn pause(cluster: &Cluster, dead: usize, trial: usize) -> Duration {
    let began = Instant::now();
    for index in (0..cluster.nodes.len()).filter(|index| *index != dead) {
        let client = cluster.client(index);
        while client.put(&format!("probe/{trial}/{index}"), &json!(1)).await.status >= 300 {
            assert!(began.elapsed() < Duration::from_secs(20), "no leader was found");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    began.elapsed()
}
