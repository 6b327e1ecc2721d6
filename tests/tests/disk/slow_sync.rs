//! A slow disk delays its node, not the clients of the cluster.

use std::time::{Duration, Instant};

use brink_tests::{Client, Options, entries};
use serde_json::json;

use crate::setup::Setup;

/// Duration of each sync of the slow disk.
const SYNC: Duration = Duration::from_millis(400);

/// Duration of each sync of a disk that is slower than any test waits.
const STUCK: Duration = Duration::from_secs(3);

/// Number of writes in each half of the test.
const WRITES: usize = 40;

async fn median_of_writes(client: &Client, name: &str) -> Duration {
    let mut taken = Vec::new();
    for number in 0..WRITES {
        let began = Instant::now();
        client.put(&format!("{name}/{number}"), &json!(number)).await.expect(201);
        taken.push(began.elapsed());
    }
    taken.sort_unstable();
    assert!(taken[WRITES - 1] < SYNC, "a write waited for the slow disk: {taken:?}");
    taken[WRITES / 2]
}

#[tokio::test]
async fn slow_syncs_of_one_follower_do_not_delay_writes() {
    let setup = Setup::start(3, Options::default()).await;
    let leader = setup.cluster.leader().await;
    let client = setup.cluster.client(leader);
    let before = median_of_writes(client, "before").await;
    setup.disks[(leader + 1) % 3].slow_syncs("", SYNC);
    let meanwhile = median_of_writes(client, "meanwhile").await;
    assert!(meanwhile < before * 3 + Duration::from_millis(20), "{meanwhile:?} instead of {before:?}");
    assert_eq!(setup.cluster.leader().await, leader, "there was an election");
}

/// The leader applies what the followers have committed, before its own disk has it. So after a crash its state is ahead of
/// its log, and nothing that it promised is lost.
#[tokio::test]
async fn a_leader_that_crashes_with_its_log_behind_its_state_stays_the_member_it_was() {
    let mut setup = Setup::start(3, Options::default()).await;
    let leader = setup.cluster.leader().await;
    let other = (leader + 1) % 3;
    let before = setup.cluster.member_ids(other).await;
    setup.disks[leader].slow_syncs("data/log", STUCK);
    // More than the state keeps in the memory of the process, which a crash takes.
    let value = json!("v".repeat(10_000));
    for number in 0..40 {
        setup.cluster.client(leader).put(&format!("k/{number}"), &value).await.expect(201);
    }
    setup.cluster.nodes[leader].kill();
    setup.disks[leader].heal();
    setup.cluster.nodes[leader].start();
    setup.cluster.ready().await;
    let log = setup.cluster.nodes[leader].log();
    assert!(log.contains("the state is ahead of the log"), "the crash came too late: {log}");
    assert!(!log.contains("set aside"), "{log}");
    assert_eq!(setup.cluster.member_ids(other).await, before);
    assert_eq!(entries(setup.cluster.client(leader), "k/", "strong").await.len(), 40);
}
