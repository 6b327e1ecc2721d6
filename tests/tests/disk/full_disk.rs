//! A full disk: its node refuses writes at once and serves reads. The cluster keeps serving while a majority has space, and
//! recovers by itself once there is space again.

use std::time::{Duration, Instant};

use brink_tests::{Answer, Client, Cluster, FaultFs, Options, brink, eventually, undisturbed};
use serde_json::json;

use crate::setup::Setup;

/// Free space that the nodes reserve, in MiB.
const RESERVE_MIB: u64 = 16;

/// Free space of a full disk: less than the reserve.
const LEFT_BYTES: u64 = 12 * 1024 * 1024;

/// Free space of a disk that is too full for log entries from the leader: less than half of the reserve.
const EXHAUSTED_BYTES: u64 = 4 * 1024 * 1024;

/// Time for a node to notice that its disk is full, or is no longer. Only a guard.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);

/// Limit of the time until a refusal.
const REFUSAL_LIMIT: Duration = Duration::from_millis(500);

/// The problem of a full disk.
const DISK_FULL: &str = "urn:brink:problem:disk-full";

fn options() -> Options {
    let args = ["--disk-reserve-mib".to_owned(), RESERVE_MIB.to_string()].to_vec();
    Options { args, ..Options::default() }
}

async fn write_probe(client: &Client) -> Answer {
    client.put("probe", &json!("x".repeat(1_000))).await
}

async fn until_full(setup: &Setup, node: usize) {
    let client = setup.cluster.client(node);
    // Its own disk: a node that has not noticed passes on what its leader says about another one.
    let disk = setup.disks[node].path().to_str().unwrap();
    eventually(NOTICE_LIMIT, "the node notices the full disk", || async {
        let answer = write_probe(client).await.json;
        (answer["type"] == DISK_FULL && answer["path"].as_str()?.starts_with(disk)).then_some(())
    })
    .await;
    undisturbed(async || {
        let began = Instant::now();
        let refused = client.put("refused", &json!(1)).await.expect(503);
        let took = began.elapsed();
        assert_eq!(refused.json["type"], DISK_FULL);
        assert_eq!(refused.json["outcome"], "not_written");
        assert_eq!(refused.json["reserve_bytes"], RESERVE_MIB * 1024 * 1024);
        assert!(refused.json["free_bytes"].as_u64().unwrap() <= LEFT_BYTES, "{}", refused.json);
        assert!(refused.json["path"].as_str().unwrap().ends_with("/data"), "{}", refused.json);
        if took < REFUSAL_LIMIT { Ok(()) } else { Err(format!("refused after {took:?}")) }
    })
    .await;
    let health = client.get("/health/").await.expect(200).json;
    assert_eq!(health["cluster"]["can_accept_writes"], false);
}

async fn until_writable(client: &Client) {
    eventually(NOTICE_LIMIT, "the node acknowledges writes", || async {
        (write_probe(client).await.status < 300).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_single_node_refuses_writes_and_serves_reads_until_there_is_space() {
    let setup = Setup::start(1, options()).await;
    let client = setup.cluster.client(0);
    client.write("kept", &json!(1)).await.expect(201);
    for _ in 0..2 {
        setup.disks[0].set_free(LEFT_BYTES);
        until_full(&setup, 0).await;
        client.settled("/kv/kept/?consistency=strong").await.expect(200);
        client.settled("/kv/refused/?consistency=strong").await.expect(404);
        setup.disks[0].heal();
        until_writable(client).await;
    }
}

#[tokio::test]
async fn a_follower_with_a_full_disk_does_not_stop_the_cluster() {
    let setup = Setup::start(3, options()).await;
    let mut run = 0;
    undisturbed(async || {
        run += 1;
        let leader = setup.cluster.leader().await;
        let (full, other) = ((leader + 1) % 3, (leader + 2) % 3);
        setup.disks[full].set_free(EXHAUSTED_BYTES);
        until_full(&setup, full).await;
        for number in 0..50 {
            let client = setup.cluster.client(if number % 2 == 0 { leader } else { other });
            client.write(&format!("meanwhile/{run}/{number}"), &json!("y".repeat(10_000))).await.expect(201);
        }
        setup.cluster.client(full).get(&format!("/kv/meanwhile/{run}/1/?consistency=local")).await.expect(404);
        let has_led = setup.cluster.leader().await == leader;
        says_that_a_disk_is_full(&setup, other, full).await;
        setup.disks[full].heal();
        until_writable(setup.cluster.client(full)).await;
        let last = format!("/kv/meanwhile/{run}/49/?consistency=strong");
        setup.cluster.client(full).settled(&last).await.expect(200);
        if has_led { Ok(()) } else { Err("there was an election".to_owned()) }
    })
    .await;
}

/// Waits until a node says that the disk of another one is full, and that it takes writes all the same.
async fn says_that_a_disk_is_full(setup: &Setup, node: usize, full: usize) {
    let (url, node) = (&setup.cluster.nodes[full].url, &setup.cluster.nodes[node]);
    eventually(NOTICE_LIMIT, "the others say so, too, and that they take writes", || async {
        let health = node.client.get("/health/").await.expect(200).json;
        let nodes = health["cluster"]["nodes"].as_array()?;
        let is_told = nodes.iter().any(|node| node["url"] == **url && node["disk_full"] == true);
        let state = (&health["status"], &health["cluster"]["can_accept_writes"]);
        let status = brink(&node.url, &["cluster", "status"]).expect(0).out;
        (is_told && state == (&json!("degraded"), &json!(true)) && status.contains("disk full")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_leader_with_a_full_disk_hands_over() {
    let setup = Setup::start(3, options()).await;
    let full = setup.cluster.leader().await;
    setup.disks[full].set_free(LEFT_BYTES);
    let others = [(full + 1) % 3, (full + 2) % 3];
    eventually(NOTICE_LIMIT, "another node leads", || async {
        others.contains(&setup.cluster.leader().await).then_some(())
    })
    .await;
    for number in 0..20 {
        let client = setup.cluster.client(others[number % 2]);
        client.write(&format!("after/{number}"), &json!(number)).await.expect(201);
    }
    until_full(&setup, full).await;
    setup.disks[full].heal();
    until_writable(setup.cluster.client(full)).await;
}

#[tokio::test]
async fn a_cluster_without_space_refuses_writes_serves_reads_and_recovers_by_itself() {
    let setup = Setup::start(3, options()).await;
    setup.cluster.client(0).write("kept", &json!(1)).await.expect(201);
    for disk in &setup.disks {
        disk.set_free(LEFT_BYTES);
    }
    for (index, node) in setup.cluster.nodes.iter().enumerate() {
        until_full(&setup, index).await;
        node.client.settled("/kv/kept/?consistency=strong").await.expect(200);
    }
    // Health does not promise what a write would not get.
    eventually(NOTICE_LIMIT, "the cluster is degraded and takes no writes", || async {
        let health = setup.cluster.client(0).get("/health/").await.expect(200).json;
        let state = (&health["status"], &health["cluster"]["can_accept_writes"]);
        (state == (&json!("degraded"), &json!(false))).then_some(())
    })
    .await;
    for disk in &setup.disks {
        disk.heal();
    }
    for node in &setup.cluster.nodes {
        until_writable(&node.client).await;
    }
}

/// Number and size of the values of a large state.
const LARGE_VALUES: usize = 24;
const LARGE_BYTES: usize = 4 * 1024 * 1024;

/// Space above the reserve that is enough for the snapshot of that state, and not for installing it too.
const SPARE_BYTES: u64 = 100 * 1024 * 1024;

/// Time for a snapshot to arrive, and to be refused before.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_snapshot_that_does_not_fit_leaves_nothing_and_arrives_once_there_is_space() {
    let mut options = options();
    options.args.extend(["--snapshot-entries".to_owned(), "10".to_owned()]);
    let disk = FaultFs::mount();
    let mut cluster = Cluster::prepare(3, options);
    cluster.nodes[2].keep_data_on(&disk);
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    cluster.ready().await;
    for number in 0..LARGE_VALUES {
        cluster.client(0).write_bytes(&format!("large/{number}"), vec![7; LARGE_BYTES]).await.expect(201);
    }
    cluster.until_logs_are_cut(LARGE_VALUES).await;

    disk.set_free(RESERVE_MIB * 1024 * 1024 + SPARE_BYTES);
    cluster.nodes[2].start();
    let spool = cluster.nodes[2].data_dir().join("spool");
    let spooled = || std::fs::read_dir(&spool).unwrap().count();
    eventually(SNAPSHOT_LIMIT, "the receiver gives up", || async {
        cluster.nodes[2].log().contains("its receipt was given up").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let nothing_is_spooled = || async { (spooled() == 0).then_some(()) };
    eventually(SNAPSHOT_LIMIT, "the receiver keeps nothing", nothing_is_spooled).await;
    assert!(!cluster.nodes[2].log().contains("the disk is full"), "{}", cluster.nodes[2].log());

    disk.heal();
    eventually(SNAPSHOT_LIMIT, "the snapshot is installed", || async {
        cluster.nodes[2].log().contains("snapshot installed").then_some(())
    })
    .await;
    cluster.ready().await;
    cluster.client(2).settled("/kv/large/0/?consistency=strong").await.expect(200);
    eventually(SNAPSHOT_LIMIT, "the receiver keeps nothing", nothing_is_spooled).await;
}
