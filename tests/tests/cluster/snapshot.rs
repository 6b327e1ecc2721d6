//! A node that needs log entries which the others have cut away catches up from a snapshot.

use std::time::Duration;

use brink_tests::{Client, Cluster, Load, Node, Options, entries, eventually};
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

/// Data that takes a few seconds to send.
const LARGE_VALUES: usize = 96;

/// Bytes of each.
const LARGE_BYTES: usize = 1024 * 1024;

/// How the transfer of a snapshot ends a log line that tells of it.
const ARRIVES: &str = "a snapshot arrives";

async fn fill_large(client: &Client) {
    for number in 0..LARGE_VALUES {
        let value = vec![u8::try_from(number).unwrap(); LARGE_BYTES];
        let path = format!("/kv/large/{number:04}/");
        client.send("PUT", &path, &[("content-type", "application/octet-stream")], value).await.expect(201);
    }
}

/// The bytes of the snapshot that a node has received and not installed.
fn spooled(node: &Node) -> u64 {
    let files = std::fs::read_dir(node.data_dir().join("spool")).into_iter().flatten().flatten();
    files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
}

/// Each arrival of a snapshot: its id, and the byte from which on it arrived.
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
async fn a_snapshot_that_broke_off_goes_on_where_it_stopped() {
    let mut cluster = Cluster::prepare(3, options());
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    cluster.ready().await;
    fill_large(cluster.client(0)).await;
    // Enough after them that they are not in the log any more.
    fill(cluster.client(0), "after").await;
    wait_for_cut_logs(&cluster).await;

    cluster.nodes[2].start();
    eventually(Duration::from_secs(30), "a part of the snapshot has come", || async {
        (spooled(&cluster.nodes[2]) > 20 * LARGE_BYTES as u64).then_some(())
    })
    .await;
    cluster.nodes[2].kill();
    let held = spooled(&cluster.nodes[2]);
    assert!(held < LARGE_VALUES as u64 * LARGE_BYTES as u64, "the snapshot was there before it could be cut");

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

/// The memory a node holds, in MiB.
fn resident_mib(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test]
async fn one_snapshot_is_enough_for_a_node_that_starts_late_while_writers_go_on() {
    let entries_kept = 200;
    let args = ["--snapshot-entries".to_owned(), entries_kept.to_string(), "--cache-mib".to_owned(), "4".to_owned()];
    let mut cluster = Cluster::prepare(3, Options { args: args.to_vec(), ..Options::default() });
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    cluster.ready().await;
    fill(cluster.client(0), "early").await;
    fill_large(cluster.client(0)).await;

    // Before the snapshot, and while it is sent: each write is timed.
    let load = Load::start(&cluster, "meanwhile", 2);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let usual = slowest_of(cluster.client(0), "usual", 100).await;
    cluster.nodes[2].start();
    eventually(Duration::from_secs(30), "a snapshot is on its way", || async {
        (!arrivals(&cluster.nodes[2]).is_empty()).then_some(())
    })
    .await;
    let meanwhile = slowest_of(cluster.client(0), "meanwhile", 100).await;
    println!("p99 of a write: {usual:?}, and {meanwhile:?} while a snapshot is sent");
    assert!(meanwhile < Duration::from_secs(2), "{usual:?}, then {meanwhile:?}");
    eventually(Duration::from_secs(60), "the snapshot is installed", || async {
        cluster.nodes[2].log().contains("snapshot installed").then_some(())
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for node in &cluster.nodes {
        // Far less than with the state in memory, twice.
        assert!(resident_mib(node) < 300, "{} holds {} MiB", node.url, resident_mib(node));
    }
    let written = load.stop().await;
    eventually(Duration::from_secs(60), "the late node has what was written meanwhile", || async {
        let found = entries(cluster.client(2), "meanwhile/", "local").await;
        written.keys().all(|key| found.contains_key(key)).then_some(())
    })
    .await;
    assert_eq!(arrivals(&cluster.nodes[2]).len(), 1, "{:?}", arrivals(&cluster.nodes[2]));
}

/// The time of the slowest but one in a hundred of some writes.
async fn slowest_of(client: &Client, name: &str, writes: usize) -> Duration {
    let mut times = Vec::new();
    for number in 0..writes {
        let began = std::time::Instant::now();
        client.put(&format!("timed/{name}/{number}"), &json!(number)).await.expect(201);
        times.push(began.elapsed());
    }
    times.sort();
    times[writes * 99 / 100 - 1]
}
