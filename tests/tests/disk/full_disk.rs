//! A full disk: writes are refused at once and truthfully, reads go on, the cluster goes on if a majority has space, and
//! all is well again when space returns.

use std::time::{Duration, Instant};

use brink_tests::{Client, Options, eventually};
use serde_json::json;

use crate::OnDisks;

/// What the nodes keep free, in MiB.
const RESERVE_MIB: u64 = 16;

/// What is left of a full disk: less than that.
const LEFT_BYTES: u64 = 12 * 1024 * 1024;

/// What is left of one that is so full that it takes nothing from the leader either: less than half.
const EXHAUSTED_BYTES: u64 = 4 * 1024 * 1024;

/// How long a node may take to notice that its disk is full, or no longer is.
const NOTICE_LIMIT: Duration = Duration::from_secs(10);

/// Within which a refusal must come.
const REFUSAL_LIMIT: Duration = Duration::from_millis(500);

fn options() -> Options {
    let args = ["--disk-reserve-mib".to_owned(), RESERVE_MIB.to_string()].to_vec();
    Options { args, ..Options::default() }
}

async fn status_of_write(client: &Client) -> u16 {
    client.put("probe", &json!("x".repeat(1_000))).await.status
}

async fn until_full(client: &Client) {
    eventually(NOTICE_LIMIT, "the full disk is noticed", || async {
        (status_of_write(client).await == 503).then_some(())
    })
    .await;
    let began = Instant::now();
    let refused = client.put("refused", &json!(1)).await.expect(503);
    assert!(began.elapsed() < REFUSAL_LIMIT, "{:?}", began.elapsed());
    assert_eq!(refused.json["type"], "urn:brink:problem:disk-full");
    assert_eq!(refused.json["outcome"], "not_written");
    assert_eq!(refused.json["reserve_bytes"], RESERVE_MIB * 1024 * 1024);
    assert!(refused.json["free_bytes"].as_u64().unwrap() <= LEFT_BYTES, "{}", refused.json);
    assert!(refused.json["path"].as_str().unwrap().ends_with("/data"), "{}", refused.json);
    let health = client.get("/health/").await.expect(200).json;
    assert_eq!(health["cluster"]["can_accept_writes"], false);
}

async fn until_writable(client: &Client) {
    eventually(NOTICE_LIMIT, "writes are taken", || async { (status_of_write(client).await < 300).then_some(()) })
        .await;
}

#[tokio::test]
async fn a_node_alone_refuses_writes_and_serves_reads_until_space_returns() {
    let on = OnDisks::start(1, options()).await;
    let client = on.cluster.client(0);
    client.put("kept", &json!(1)).await.expect(201);
    for _ in 0..2 {
        on.disks[0].set_free(LEFT_BYTES);
        until_full(client).await;
        client.get("/kv/kept/?consistency=strong").await.expect(200);
        client.get("/kv/refused/?consistency=strong").await.expect(404);
        on.disks[0].heal();
        until_writable(client).await;
    }
}

#[tokio::test]
async fn a_follower_with_a_full_disk_does_not_stop_the_cluster() {
    let on = OnDisks::start(3, options()).await;
    let leader = on.cluster.leader().await;
    let (full, other) = ((leader + 1) % 3, (leader + 2) % 3);
    on.disks[full].set_free(EXHAUSTED_BYTES);
    until_full(on.cluster.client(full)).await;
    for number in 0..50 {
        let client = on.cluster.client(if number % 2 == 0 { leader } else { other });
        client.put(&format!("meanwhile/{number}"), &json!("y".repeat(10_000))).await.expect(201);
    }
    on.cluster.client(full).get("/kv/meanwhile/1/?consistency=local").await.expect(404);
    assert_eq!(on.cluster.leader().await, leader);
    on.disks[full].heal();
    until_writable(on.cluster.client(full)).await;
    on.cluster.client(full).get("/kv/meanwhile/49/?consistency=strong").await.expect(200);
}

#[tokio::test]
async fn a_leader_with_a_full_disk_hands_over() {
    let on = OnDisks::start(3, options()).await;
    let full = on.cluster.leader().await;
    on.disks[full].set_free(LEFT_BYTES);
    let others = [(full + 1) % 3, (full + 2) % 3];
    eventually(NOTICE_LIMIT, "another leads", || async { others.contains(&on.cluster.leader().await).then_some(()) })
        .await;
    for number in 0..20 {
        let client = on.cluster.client(others[number % 2]);
        client.put(&format!("after/{number}"), &json!(number)).await.expect(201);
    }
    until_full(on.cluster.client(full)).await;
    on.disks[full].heal();
    until_writable(on.cluster.client(full)).await;
}

#[tokio::test]
async fn a_cluster_without_space_refuses_writes_serves_reads_and_recovers_by_itself() {
    let on = OnDisks::start(3, options()).await;
    on.cluster.client(0).put("kept", &json!(1)).await.expect(201);
    for disk in &on.disks {
        disk.set_free(LEFT_BYTES);
    }
    for node in &on.cluster.nodes {
        until_full(&node.client).await;
        node.client.get("/kv/kept/?consistency=strong").await.expect(200);
    }
    for disk in &on.disks {
        disk.heal();
    }
    for node in &on.cluster.nodes {
        until_writable(&node.client).await;
    }
}
