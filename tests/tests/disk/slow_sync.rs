//! A slow disk delays its node, not the clients of the cluster.

use std::time::{Duration, Instant};

use brink_tests::{Client, Options, entries, eventually};
use serde_json::json;

use crate::setup::Setup;

/// Duration of each sync of the slow disk.
const SYNC: Duration = Duration::from_millis(400);

/// Duration of each sync of a disk that is slower than any test waits.
const STUCK: Duration = Duration::from_secs(6);

/// Duration of each sync of a disk that stands still for as long as a test fills a node's memory.
const STANDSTILL: Duration = Duration::from_secs(15);

/// Bytes of entries that a leader holds without having synced them.
const UNSYNCED_BYTES_MAX: usize = 64 << 20;

/// Number of writes in each half of the test.
const WRITES: usize = 40;

/// Number of writes of 100 kB, of which 84 fill the buffer before a node's tables.
const LARGE_WRITES: usize = 120;

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
    let value = json!("v".repeat(100_000));
    for number in 0..LARGE_WRITES {
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
    assert_eq!(entries(setup.cluster.client(leader), "k/", "strong").await.len(), LARGE_WRITES);
}

/// The others commit without the leader's disk, so what it has not synced grows in its memory. That has a bound.
#[tokio::test]
async fn a_leader_whose_disk_stands_still_refuses_writes_before_its_memory_is_used_up() {
    let setup = Setup::start(3, Options::default()).await;
    let leader = setup.cluster.leader().await;
    let client = setup.cluster.client(leader);
    setup.disks[leader].slow_syncs("data/log", STANDSTILL);
    let headers = [("content-type", "application/octet-stream")];
    let value = vec![7; 4 << 20];
    let mut taken = 0;
    let refused = loop {
        let answer = client.send("PUT", &format!("/kv/large/{taken}/"), &headers, value.clone()).await;
        if answer.status != 201 {
            break answer;
        }
        taken += 1;
    };
    // The bound and one write.
    assert!((8..=UNSYNCED_BYTES_MAX / value.len() + 1).contains(&taken), "{taken} were taken");
    assert_eq!((refused.status, &refused.json["outcome"]), (503, &json!("not_written")), "{}", refused.json);
    assert!(refused.json["detail"].as_str().unwrap().contains("too slow"), "{}", refused.json);
    setup.disks[leader].heal();
    eventually(2 * STANDSTILL, "the disk has caught up", || async {
        (client.put("after", &json!(1)).await.status < 300).then_some(())
    })
    .await;
}
