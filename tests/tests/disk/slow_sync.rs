//! A slow disk delays its node, not the clients of the cluster.

use std::time::{Duration, Instant};

use brink_tests::{Answer, Client, Options, entries, eventually, undisturbed};
use serde_json::json;

use crate::setup::{Setup, says};

/// Duration of each sync of the slow disk.
const SYNC: Duration = Duration::from_millis(400);

/// Duration of each sync of a disk that is slower than any test waits.
const STUCK: Duration = Duration::from_secs(20);

/// Duration of each sync of a disk that stands still for as long as a test fills a node's memory.
const STANDSTILL: Duration = Duration::from_secs(30);

/// Bytes of entries that a leader holds without having synced them, the size of each write that fills them, and the number of
/// writes that are taken at most.
const UNSYNCED_BYTES_MAX: usize = 64 << 20;
const LARGE_BYTES: usize = 4 << 20;
const WRITES_TAKEN_MAX: usize = UNSYNCED_BYTES_MAX / LARGE_BYTES + 1;

/// Number of writes in each half of the test.
const WRITES: usize = 40;

/// Attempts at something that a machine that stands still, or an election that this causes, may thwart.
const ATTEMPTS: usize = 3;

/// Time for a disk to catch up. Only a guard.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(90);

/// Number of writes of 100 kB, of which 84 fill the buffer before a node's tables.
const LARGE_WRITES: usize = 120;

/// The times of writes, the shortest first.
async fn times_of_writes(client: &Client, name: &str) -> Vec<Duration> {
    let mut taken = Vec::new();
    for number in 0..WRITES {
        let began = Instant::now();
        client.write(&format!("{name}/{number}"), &json!(number)).await.expect(201);
        taken.push(began.elapsed());
    }
    taken.sort_unstable();
    taken
}

#[tokio::test]
async fn slow_syncs_of_one_follower_do_not_delay_writes() {
    let setup = Setup::start(3, Options::default()).await;
    let mut run = 0;
    undisturbed(async || {
        run += 1;
        let leader = setup.cluster.leader().await;
        let client = setup.cluster.client(leader);
        let disk = &setup.disks[(leader + 1) % 3];
        let before = times_of_writes(client, &format!("before/{run}")).await;
        disk.slow_syncs("", SYNC);
        let meanwhile = times_of_writes(client, &format!("meanwhile/{run}")).await;
        disk.heal();
        let found = [
            (meanwhile[WRITES - 1] < SYNC, "a write waited for the slow disk"),
            (meanwhile[WRITES / 2] < before[WRITES / 2] * 3 + Duration::from_millis(20), "writes were slow"),
            (setup.cluster.leader().await == leader, "there was an election"),
        ];
        match found.into_iter().find(|(holds, _)| !holds) {
            None => Ok(()),
            Some((_, wrong)) => Err(format!("{wrong}: {before:?}, then {meanwhile:?}")),
        }
    })
    .await;
}

/// The leader applies what the followers have committed, before its own disk has it. So after a crash its state is ahead of
/// its log, and nothing that it promised is lost.
#[tokio::test]
async fn a_leader_that_crashes_with_its_log_behind_its_state_stays_the_member_it_was() {
    let mut setup = Setup::start(3, Options::default()).await;
    // More than the state keeps in the memory of the process, which a crash takes.
    let value = json!("v".repeat(100_000));
    let mut attempt = 0;
    let leader = loop {
        let leader = setup.cluster.leader().await;
        setup.disks[leader].slow_syncs("data/log", STUCK);
        let began = Instant::now();
        for number in 0..LARGE_WRITES {
            setup.cluster.client(leader).write(&format!("k/{attempt}/{number}"), &value).await.expect(201);
        }
        attempt += 1;
        if setup.cluster.leader().await == leader && began.elapsed() < STUCK {
            break leader;
        }
        assert!(attempt < ATTEMPTS, "the writes took as long as a sync, or another node led");
        setup.disks[leader].heal();
    };
    let other = (leader + 1) % 3;
    let before = setup.cluster.member_ids(other).await;
    setup.cluster.nodes[leader].kill();
    setup.disks[leader].heal();
    setup.cluster.nodes[leader].start();
    setup.cluster.ready().await;
    // Otherwise the crash came too late.
    says(&setup.cluster.nodes[leader], &["the state is ahead of the log"]).await;
    let log = setup.cluster.nodes[leader].log();
    assert!(!log.contains("set aside"), "{log}");
    assert_eq!(setup.cluster.member_ids(other).await, before);
    assert_eq!(entries(setup.cluster.client(leader), "k/", "strong").await.len(), attempt * LARGE_WRITES);
}

/// The others commit without the leader's disk, so what it has not synced grows in its memory. That has a bound.
#[tokio::test]
async fn a_leader_whose_disk_stands_still_refuses_writes_before_its_memory_is_used_up() {
    let setup = Setup::start(3, Options::default()).await;
    for attempt in 0.. {
        let leader = setup.cluster.leader().await;
        let client = setup.cluster.client(leader);
        setup.disks[leader].slow_syncs("data/log", STANDSTILL);
        let began = Instant::now();
        let (taken, refused) = write_until_refused(client, attempt).await;
        // Whatever the disk has synced since, or another leader has taken, says nothing about the bound.
        let has_led = began.elapsed() < STANDSTILL && setup.cluster.leader().await == leader;
        setup.disks[leader].heal();
        eventually(CATCH_UP_LIMIT, "the disk has caught up", || async {
            (client.put("after", &json!(1)).await.status < 300).then_some(())
        })
        .await;
        if has_led {
            // The bound and one write.
            assert!((8..=WRITES_TAKEN_MAX).contains(&taken), "{taken} were taken");
            assert_eq!((refused.status, &refused.json["outcome"]), (503, &json!("not_written")), "{}", refused.json);
            assert!(refused.json["detail"].as_str().unwrap().contains("too slow"), "{}", refused.json);
            return;
        }
        assert!(attempt + 1 < ATTEMPTS, "another node led, or the writes took longer than the disk stood still");
    }
}

/// Writes large values, one after another, until one is refused since the disk is too slow, or more are taken than may be. Returns
/// how many were taken, and the last answer. Each is named: what a busy machine has not done in time is asked for again.
async fn write_until_refused(client: &Client, attempt: usize) -> (usize, Answer) {
    let (mut taken, began) = (0, Instant::now());
    loop {
        let path = format!("/kv/large/{attempt}/{taken}/");
        let headers = [("content-type", "application/octet-stream"), ("idempotency-key", path.as_str())];
        let answer = client.send("PUT", &path, &headers, vec![7; LARGE_BYTES]).await;
        taken += usize::from(answer.status == 201);
        let is_delayed = answer.status >= 500 && !answer.json["detail"].as_str().unwrap().contains("too slow");
        let goes_on = answer.status == 201 || (is_delayed && began.elapsed() < STANDSTILL);
        if !goes_on || taken > WRITES_TAKEN_MAX {
            return (taken, answer);
        }
    }
}
