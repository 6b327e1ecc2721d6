//! A node that lacks truncated log entries catches up from a snapshot.

use std::time::Duration;

use brink_tests::{Answer, Client, Cluster, Load, Node, Options, entries, eventually, plugin_wasm};
use serde_json::json;

/// Time for a node to catch up, or for an election. Generous, because other tests may keep the machine busy.
const LIMIT: Duration = Duration::from_secs(60);

/// Log entries between snapshots.
pub(crate) const SNAPSHOT_ENTRIES: usize = 50;

/// Number of writes: enough for several snapshots and a truncated log.
pub(crate) const WRITES: usize = 600;

pub(crate) fn options() -> Options {
    Options { args: vec!["--snapshot-entries".to_owned(), SNAPSHOT_ENTRIES.to_string()], ..Options::default() }
}

pub(crate) async fn fill(client: &Client, name: &str) {
    for number in 0..WRITES {
        client.write(&format!("{name}/{number:04}"), &json!({ "number": number })).await.expect(201);
    }
}

async fn wait_for_all(cluster: &Cluster, late: usize, name: &str) {
    let expected = entries(cluster.client(0), &format!("{name}/"), "strong").await;
    assert_eq!(expected.len(), WRITES);
    eventually(LIMIT, "the late node has all entries", || async {
        let found = entries(cluster.client(late), &format!("{name}/"), "local").await;
        (found == expected).then_some(())
    })
    .await;
}

/// Waits until a node has logged that it installed a snapshot. Log lines have a thread of their own.
async fn installs_snapshot(node: &Node) {
    eventually(LIMIT, "the snapshot is installed", || async {
        node.log().contains("snapshot installed").then_some(())
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
    cluster.until_logs_are_cut(4 * SNAPSHOT_ENTRIES).await;

    cluster.nodes[2].start();
    cluster.ready().await;
    wait_for_all(&cluster, 2, "early").await;
    installs_snapshot(&cluster.nodes[2]).await;

    // It is a full voter: with it, the cluster survives the loss of another node.
    cluster.nodes[0].kill();
    cluster.client(2).write("late/0000", &json!(1)).await.expect(201);
}

#[tokio::test]
async fn a_node_that_was_down_for_long_receives_a_snapshot_and_then_the_log() {
    let mut cluster = Cluster::start_with(3, options()).await;
    cluster.client(0).write("gone", &json!(1)).await.expect(201);
    cluster.client(2).settled("/kv/gone/?consistency=strong").await.expect(200);
    cluster.nodes[2].kill();
    cluster.client(0).erase("gone").await.expect(204);
    fill(cluster.client(0), "meanwhile").await;
    cluster.until_logs_are_cut(4 * SNAPSHOT_ENTRIES).await;

    cluster.nodes[2].start();
    cluster.ready().await;
    wait_for_all(&cluster, 2, "meanwhile").await;
    installs_snapshot(&cluster.nodes[2]).await;
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
        client.write_bytes(&format!("large/{number:04}"), value).await.expect(201);
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
    cluster.until_logs_are_cut(4 * SNAPSHOT_ENTRIES).await;

    cluster.nodes[2].start();
    eventually(LIMIT, "a part of the snapshot has arrived", || async {
        (spooled(&cluster.nodes[2]) > 20 * LARGE_BYTES as u64).then_some(())
    })
    .await;
    cluster.nodes[2].kill();
    let held = spooled(&cluster.nodes[2]);
    assert!(held < LARGE_VALUES as u64 * LARGE_BYTES as u64, "the snapshot arrived before the node was killed");

    cluster.nodes[2].start();
    cluster.ready().await;
    installs_snapshot(&cluster.nodes[2]).await;
    let arrivals = arrivals(&cluster.nodes[2]);
    let [(first, 0), (second, offset)] = arrivals.as_slice() else { panic!("{arrivals:?}") };
    assert_eq!((first, *offset), (second, held), "{arrivals:?}");
    eventually(LIMIT, "the spool is empty", || async { (spooled(&cluster.nodes[2]) == 0).then_some(()) }).await;
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
    // The log grows by many times as much while the snapshot arrives.
    let entries_kept = 20;
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
    eventually(LIMIT, "the transfer of a snapshot starts", || async {
        (!arrivals(&cluster.nodes[2]).is_empty()).then_some(())
    })
    .await;
    let meanwhile = p99_of_writes(cluster.client(0), "meanwhile", 100).await;
    println!("p99 of a write: {usual:?}, during the transfer {meanwhile:?}");
    assert!(meanwhile < Duration::from_secs(2), "{usual:?}, then {meanwhile:?}");
    installs_snapshot(&cluster.nodes[2]).await;
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

/// The p99 of the durations of some writes, each with its repetitions if a node could not take it.
async fn p99_of_writes(client: &Client, name: &str, writes: usize) -> Duration {
    let mut times = Vec::new();
    for number in 0..writes {
        let began = std::time::Instant::now();
        client.write(&format!("timed/{name}/{number}"), &json!(number)).await.expect(201);
        times.push(began.elapsed());
    }
    times.sort();
    times[writes * 99 / 100 - 1]
}

/// Largest body of a batch, in bytes.
const BATCH_BYTES: usize = 16 * 1024 * 1024;

/// Most items in a batch.
const BATCH_ITEMS: usize = 10_000;

/// The largest batch. A transformer changes its first value.
fn largest_batch() -> String {
    let item = |number, value: &str| format!("{{\"key\":\"batch/{number:04}\",\"value\":{{\"v\":\"{value}\"}}}}");
    let value = "v".repeat(BATCH_BYTES / BATCH_ITEMS - item(0, "").len() - 2);
    let items: Vec<_> = (0..BATCH_ITEMS).map(|number| item(number, &value)).collect();
    format!("{{\"items\":[{}]}}", items.join(","))
}

#[tokio::test]
async fn a_state_with_the_largest_remembered_outcome_fits_into_a_snapshot() {
    let mut cluster = Cluster::prepare(3, options());
    cluster.nodes[0].start();
    cluster.nodes[1].start();
    cluster.ready().await;
    let client = cluster.client(0);
    client.put_plugin("stamp", plugin_wasm("test-stamp")).await.expect(200);
    let hook = json!({"plugin": "stamp", "prefix": "batch/0000", "config": {"stamp": 1}, "deadline_ms": 5_000});
    client.put_json("/hooks/stamp/", &hook).await.expect(200);
    let headers = [("content-type", "application/json"), ("idempotency-key", "large")];
    let batch = largest_batch();
    assert!(batch.len() > BATCH_BYTES - BATCH_ITEMS * 4 && batch.len() <= BATCH_BYTES, "{}", batch.len());
    eventually(Duration::from_secs(60), "the batch is written", || async {
        (client.send("POST", "/kv/batch/", &headers, batch.clone()).await.status == 200).then_some(())
    })
    .await;
    let first = client.settled("/kv/batch/0000/?consistency=strong").await.expect(200).json;
    assert_eq!(first["value"]["stamp"], 1);
    fill(client, "after").await;
    cluster.until_logs_are_cut(4 * SNAPSHOT_ENTRIES).await;

    cluster.nodes[2].start();
    installs_snapshot(&cluster.nodes[2]).await;
    cluster.ready().await;
    // The node remembers the outcome, and answers with what was written.
    let again = cluster.client(2).send_settled("POST", "/kv/batch/", &headers, &batch).await.expect(200);
    assert_eq!((again.header("brink-repeated"), &again.json["results"][0]), (Some("true"), &first));
}

/// Time for each MiB of a node's data to arrive and to be installed, besides two minutes.
const LIMIT_PER_MIB: Duration = Duration::from_millis(250);

/// Memory of each node while a large snapshot is on its way, in MiB, whatever its size.
const MEMORY_MIB_MAX: u64 = 700;

/// Longest time of a local read on a node that installs a snapshot, once it has run for [`RECOVERY`], beyond that of the same
/// read on the leader at the same moment.
const READ_MAX: Duration = Duration::from_secs(2);

/// The same until then.
const RECOVERING_READ_MAX: Duration = Duration::from_secs(5);

/// Time after a node's start in which its local reads may wait for up to 2.5 s each (decision 26), and some more to start.
const RECOVERY: Duration = Duration::from_secs(15);

/// Reads a large value locally. Returns how long that took, too.
async fn timed_read(client: &Client) -> (Result<Answer, reqwest::Error>, Duration) {
    let began = std::time::Instant::now();
    (client.try_send("GET", "/kv/much/0/?consistency=local", &[], "").await, began.elapsed())
}

/// With 64 MiB, unless `BRINK_JOIN_MIB` says otherwise: see docs/testing.md.
#[tokio::test]
async fn a_node_joins_a_busy_cluster_with_much_data() {
    let mib = std::env::var("BRINK_JOIN_MIB").map_or(64, |mib| mib.parse::<u32>().unwrap());
    let mut cluster = Cluster::start_with(3, options()).await;
    let leader = cluster.leader().await;
    let lost = (leader + 1) % 3;
    for number in 0..mib {
        // Bytes that cannot be compressed.
        let mut state = u64::from(number) + 1;
        let random = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()
        });
        let value: Vec<u8> = random.take(LARGE_BYTES / 8).flatten().collect();
        // The disk is slower than this at times, and a write then ends in doubt.
        cluster.client(leader).write_bytes(&format!("much/{number}"), value).await.expect(201);
    }
    fill(cluster.client(leader), "before").await;
    cluster.until_logs_are_cut(4 * SNAPSHOT_ENTRIES).await;
    let load = Load::start(&cluster, "meanwhile", 8);
    cluster.nodes[lost].kill();
    std::fs::remove_dir_all(cluster.nodes[lost].data_dir()).unwrap();
    let (began, before) = (std::time::Instant::now(), load.count());
    cluster.nodes[lost].start();

    let (mut most_mib, mut slowest) = ([0; 3], Duration::ZERO);
    let joined = cluster.nodes[lost].url.clone();
    let reader = Client::with_timeout(&joined, LIMIT);
    let limit = 2 * LIMIT + LIMIT_PER_MIB * mib;
    loop {
        assert!(began.elapsed() < limit, "not within {limit:?}; {:?} MiB of memory", most_mib);
        tokio::time::sleep(Duration::from_millis(500)).await;
        for (most, node) in most_mib.iter_mut().zip(&cluster.nodes) {
            *most = resident_mib(node).max(*most);
        }
        let (read, took) = timed_read(&reader).await;
        assert!(read.as_ref().is_err_and(|error| error.is_connect()) || read.is_ok(), "{read:?}");
        slowest = slowest.max(took);
        let read_max = if began.elapsed() < RECOVERY { RECOVERING_READ_MAX } else { READ_MAX };
        assert!(took < read_max, "a read took {took:?}");
        let list = cluster.client(leader).get("/cluster/members/").await.json;
        let members = list["members"].as_array().cloned().unwrap_or_default();
        let of_url = |member: &&serde_json::Value| member["url"] == joined.as_str();
        let roles: Vec<_> = members.iter().filter(of_url).map(|member| member["role"].clone()).collect();
        if roles == ["voter"] && cluster.nodes[lost].log().contains("snapshot installed") {
            break;
        }
    }
    let (lasted, writes) = (began.elapsed(), load.count() - before);
    let rate = writes as f64 / lasted.as_secs_f64();
    println!(
        "{mib} MiB: a voter after {lasted:?}, {writes} writes meanwhile ({rate:.0}/s), memory {most_mib:?} MiB, reads on it took at most {slowest:?}"
    );
    load.stop().await;
    assert_eq!(arrivals(&cluster.nodes[lost]).len(), 1, "{:?}", arrivals(&cluster.nodes[lost]));
    assert!(most_mib.iter().all(|most| *most < MEMORY_MIB_MAX), "{most_mib:?} MiB");
}
