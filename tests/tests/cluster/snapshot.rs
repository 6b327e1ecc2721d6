//! A node that lacks truncated log entries catches up from a snapshot.

use std::time::Duration;

use brink_tests::{Client, Cluster, Load, Node, Options, entries, eventually};
use serde_json::json;

/// Log entries between snapshots.
const SNAPSHOT_ENTRIES: usize = 50;

/// Number of writes: enough for several snapshots and a truncated log.
pub(crate) const WRITES: usize = 600;

pub(crate) fn options() -> Options {
    Options { args: vec!["--snapshot-entries".to_owned(), SNAPSHOT_ENTRIES.to_string()], ..Options::default() }
}

pub(crate) async fn fill(client: &Client, name: &str) {
    for number in 0..WRITES {
        client.put(&format!("{name}/{number:04}"), &json!({ "number": number })).await.expect(201);
    }
}

/// Waits until the running nodes have truncated their logs. They do so after later writes, and not while they are busy.
pub(crate) async fn wait_for_truncated_logs(cluster: &Cluster) {
    for node in cluster.nodes.iter().filter(|node| node.is_running()) {
        eventually(Duration::from_secs(20), "the log is truncated", || async {
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
    eventually(Duration::from_secs(20), "the late node has all entries", || async {
        let found = entries(cluster.client(late), &format!("{name}/"), "local").await;
        (found == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_that_starts_late_receives_a_snapshot_and_then_the_log() {
    let mut cluster = Cluster::prepare(3, options());
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    cluster.ready().await;
    fill(cluster.client(0), "early").await;
    wait_for_truncated_logs(&cluster).await;

    cluster.nodes[2].start();
    cluster.ready().await;
    wait_for_all(&cluster, 2, "early").await;
    assert!(cluster.nodes[2].log().contains("snapshot installed"), "{}", cluster.nodes[2].log());

    // It is a full voter: with it, the cluster survives the loss of another node.
    cluster.nodes[0].kill();
    eventually(Duration::from_secs(10), "the other two nodes acknowledge writes", || async {
        (cluster.client(2).put("late/0000", &json!(1)).await.status < 300).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_that_was_down_for_long_receives_a_snapshot_and_then_the_log() {
    let mut cluster = Cluster::start_with(3, options()).await;
    cluster.client(0).put("gone", &json!(1)).await.expect(201);
    cluster.client(2).get("/kv/gone/?consistency=strong").await.expect(200);
    cluster.nodes[2].kill();
    eventually(Duration::from_secs(10), "the other two nodes acknowledge writes", || async {
        (cluster.client(0).delete("/kv/gone/").await.status == 204).then_some(())
    })
    .await;
    fill(cluster.client(0), "meanwhile").await;
    wait_for_truncated_logs(&cluster).await;

    cluster.nodes[2].start();
    cluster.ready().await;
    wait_for_all(&cluster, 2, "meanwhile").await;
    assert!(cluster.nodes[2].log().contains("snapshot installed"), "{}", cluster.nodes[2].log());
    // The node has applied deletions too.
    cluster.client(2).get("/kv/gone/?consistency=local").await.expect(404);

    cluster.nodes[2].kill();
    cluster.nodes[2].start();
    cluster.ready().await;
    wait_for_all(&cluster, 2, "meanwhile").await;
}

/// Number of large values: their snapshot takes a few seconds to send.
const LARGE_VALUES: usize = 96;

/// Size of a large value, in bytes.
const LARGE_BYTES: usize = 1024 * 1024;

/// The message of the log line at the start of a snapshot's transfer.
const ARRIVES: &str = "a snapshot arrives";

async fn fill_large(client: &Client) {
    for number in 0..LARGE_VALUES {
        let value = vec![u8::try_from(number).unwrap(); LARGE_BYTES];
        let path = format!("/kv/large/{number:04}/");
        client.send("PUT", &path, &[("content-type", "application/octet-stream")], value).await.expect(201);
    }
}

/// Received bytes of a snapshot that is not yet installed.
fn spooled(node: &Node) -> u64 {
    let files = std::fs::read_dir(node.data_dir().join("spool")).into_iter().flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

/// The transfers of snapshots to a node: snapshot ids with the offsets at which they started.
fn arrivals(node: &Node) -> Vec<(String, u64)> {
    let log = node.log();
    let lines = log.lines().filter(|line| line.contains(ARRIVES));
    let found = lines.map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        (line["id"].as_str().unwrap().to_owned(), line["offset"].as_u64().unwrap())
    });
    found.collect()
}

#[tokio::test]
async fn an_interrupted_snapshot_resumes_at_its_offset() {
    let mut cluster = Cluster::prepare(3, options());
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    cluster.ready().await;
    fill_large(cluster.client(0)).await;
    // Enough later writes that the large values are truncated from the log.
    fill(cluster.client(0), "after").await;
    wait_for_truncated_logs(&cluster).await;

    cluster.nodes[2].start();
    eventually(Duration::from_secs(30), "a part of the snapshot has arrived", || async {
        (spooled(&cluster.nodes[2]) > 20 * LARGE_BYTES as u64).then_some(())
    })
    .await;
    cluster.nodes[2].kill();
    let held = spooled(&cluster.nodes[2]);
    assert!(held < LARGE_VALUES as u64 * LARGE_BYTES as u64, "the snapshot arrived before the node was killed");

    cluster.nodes[2].start();
    cluster.ready().await;
    eventually(Duration::from_secs(30), "the snapshot is installed", || async {
        cluster.nodes[2].log().contains("snapshot installed").then_some(())
    })
    .await;
    let arrivals = arrivals(&cluster.nodes[2]);
    let [(first, 0), (second, offset)] = arrivals.as_slice() else { panic!("{arrivals:?}") };
    assert_eq!((first, *offset), (second, held), "{arrivals:?}");
    assert_eq!(spooled(&cluster.nodes[2]), 0);
    let last = format!("/kv/large/{:04}/?consistency=local", LARGE_VALUES - 1);
    let value = cluster.client(2).send("GET", &last, &[("accept", "application/octet-stream")], "").await.expect(200);
    assert_eq!(value.body.len(), LARGE_BYTES);
}

/// The resident memory of a node, in MiB.
fn resident_mib(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test]
async fn one_snapshot_is_enough_for_a_node_that_starts_late_under_load() {
    let entries_kept = 200;
    let args = ["--snapshot-entries".to_owned(), entries_kept.to_string(), "--cache-mib".to_owned(), "4".to_owned()];
    let mut cluster = Cluster::prepare(3, Options { args: args.to_vec(), ..Options::default() });
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    cluster.ready().await;
    fill(cluster.client(0), "early").await;
    fill_large(cluster.client(0)).await;

    // Measure writes before the transfer of the snapshot and during it.
    let load = Load::start(&cluster, "meanwhile", 2);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let usual = p99_of_writes(cluster.client(0), "usual", 100).await;
    cluster.nodes[2].start();
    eventually(Duration::from_secs(30), "the transfer of a snapshot starts", || async {
        (!arrivals(&cluster.nodes[2]).is_empty()).then_some(())
    })
    .await;
    let meanwhile = p99_of_writes(cluster.client(0), "meanwhile", 100).await;
    println!("p99 of a write: {usual:?}, during the transfer {meanwhile:?}");
    assert!(meanwhile < Duration::from_secs(2), "{usual:?}, then {meanwhile:?}");
    eventually(Duration::from_secs(60), "the snapshot is installed", || async {
        cluster.nodes[2].log().contains("snapshot installed").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for node in &cluster.nodes {
        // Far less than two copies of the state.
        assert!(resident_mib(node) < 300, "{} uses {} MiB", node.url, resident_mib(node));
    }
    let written = load.stop().await;
    eventually(Duration::from_secs(60), "the late node has the writes made meanwhile", || async {
        let found = entries(cluster.client(2), "meanwhile/", "local").await;
        written.keys().all(|key| found.contains_key(key)).then_some(())
    })
    .await;
    assert_eq!(arrivals(&cluster.nodes[2]).len(), 1, "{:?}", arrivals(&cluster.nodes[2]));
}

/// The p99 of the durations of some writes.
async fn p99_of_writes(client: &Client, name: &str, writes: usize) -> Duration {
    let mut times = Vec::new();
    for number in 0..writes {
        let began = std::time::Instant::now();
        client.put(&format!("timed/{name}/{number}"), &json!(number)).await.expect(201);
        times.push(began.elapsed());
    }
    times.sort();
    times[writes * 99 / 100 - 1]
}
