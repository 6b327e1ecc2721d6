//! P9: clients that send more than a cluster can take are refused at once; memory is bounded, and what is accepted commits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use brink_tests::{Client, Cluster, eventually};
use serde_json::json;

/// Clients that send a large value at the same moment.
const CLIENTS: usize = 300;

/// Small writes meanwhile, one after another.
const SMALL_WRITES: usize = 20;

/// Size of their values: the largest.
const VALUE_BYTES: usize = 4 << 20;

/// Memory that a node may have at most, in KiB.
const MEMORY_KIB_MAX: u64 = 640 << 10;

/// Time in which all nodes apply what was acknowledged. Only a guard.
const APPLY_LIMIT: Duration = Duration::from_secs(60);

const RAW: (&str, &str) = ("content-type", "application/octet-stream");

/// The largest memory that a process has had, in KiB.
fn memory_peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Acknowledged,
    Refused,
    /// On a machine that is this busy a leader may be lost. The answer says so.
    Unknown,
}

async fn put_large(client: &Client, key: &str, value: &'static [u8]) -> Fate {
    let headers = [RAW, ("prefer", "return=minimal")];
    let answer = client.send("PUT", &format!("/kv/{key}/"), &headers, value).await;
    match (answer.status, answer.json["outcome"].as_str()) {
        (201, _) => Fate::Acknowledged,
        (503, Some("not_written")) if answer.json["type"] == "urn:brink:problem:busy" => {
            assert_eq!(answer.header("retry-after"), Some("1"));
            Fate::Refused
        }
        (500, Some("not_written")) => Fate::Refused,
        (500 | 503, Some("unknown")) => Fate::Unknown,
        _ => panic!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_clients_with_4_mib_each_are_answered_within_bounded_memory() {
    let cluster = Cluster::start(3).await;
    let value: &'static [u8] = vec![b'x'; VALUE_BYTES].leak();
    let small = tokio::spawn({
        let client = cluster.client(1).clone();
        async move {
            let mut acknowledged = 0;
            for number in 0..SMALL_WRITES {
                let answer = client.put(&format!("small/{number}"), &json!(number)).await;
                acknowledged += usize::from(answer.status == 201);
            }
            acknowledged
        }
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let client = Client::new(&cluster.nodes[number % 3].url);
            let key = format!("large/{number:03}");
            tokio::spawn(async move { (key.clone(), put_large(&client, &key, value).await) })
        })
        .collect();
    let mut fates = BTreeMap::new();
    for client in clients {
        let (key, fate) = client.await.unwrap();
        fates.insert(key, fate);
    }
    let of = |fate: Fate| fates.iter().filter(move |(_, found)| **found == fate).map(|(key, _)| key.clone());
    let acknowledged: BTreeSet<String> = of(Fate::Acknowledged).collect();
    let refused: BTreeSet<String> = of(Fate::Refused).collect();
    let peaks: Vec<u64> = cluster.nodes.iter().map(|node| memory_peak_kib(node.pid())).collect();
    let (small, unknown) = (small.await.unwrap(), of(Fate::Unknown).count());
    println!("{} acknowledged, {} refused, {unknown} unknown", acknowledged.len(), refused.len());
    println!("{small} of {SMALL_WRITES} small ones acknowledged; at most {peaks:?} KiB of memory");
    assert!(!acknowledged.is_empty() && unknown < CLIENTS / 2);
    assert!(peaks.iter().all(|peak| *peak <= MEMORY_KIB_MAX), "{peaks:?} KiB");

    for node in &cluster.nodes {
        eventually(APPLY_LIMIT, "what was acknowledged is there, and what was refused is not", || async {
            let page = node.client.get("/kv/?prefix=large/&limit=1000&keys_only=true&consistency=local").await.json;
            let found = page["results"].as_array()?.iter().filter_map(|entry| entry["key"].as_str());
            let found: BTreeSet<String> = found.map(str::to_owned).collect();
            (found.is_superset(&acknowledged) && found.is_disjoint(&refused)).then_some(())
        })
        .await;
    }
    for (index, key) in acknowledged.iter().enumerate().step_by(8) {
        let path = format!("/kv/{key}/?consistency=local");
        let read = cluster.client(index % 3).send("GET", &path, &[("accept", RAW.1)], "").await.expect(200);
        assert!(read.body == value, "{key}: {} bytes", read.body.len());
    }
}
