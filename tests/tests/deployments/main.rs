//! Deployments one after the other, under load. A suite of its own, which no other test runs beside: it takes all of a small
//! machine for a minute, and tests of hooks count the time that plugins take.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use brink_tests::{Answer, Client, Cluster, eventually, plugin_version, plugin_wasm};
use serde_json::json;

/// Pause of a writer, so that compilers, whose priority is low, get on.
const PAUSE: Duration = Duration::from_millis(2);

/// Time for a cluster to choose a leader, which a busy machine may lose at any time. Only a guard.
const LIMIT: Duration = Duration::from_secs(60);

/// The stamps by the revisions from which they are in force at the latest, and whether they may have been before: a change that was
/// cut off may be in force until it is acknowledged, or not.
type Stamps = BTreeMap<u64, (u64, bool)>;

/// Asks again while the request is cut off. Returns how often it was.
async fn repeated<F: Future<Output = Answer>>(ask: impl Fn() -> F, is_cut_off: fn(&Answer) -> bool) -> (Answer, usize) {
    let cut_off = Cell::new(0);
    let answer = eventually(LIMIT, "the cluster takes the request", || async {
        let answer = ask().await;
        if is_cut_off(&answer) {
            cut_off.set(cut_off.get() + 1);
            return None;
        }
        Some(answer)
    });
    (answer.await.expect(200), cut_off.get())
}

fn failed(answer: &Answer) -> bool {
    answer.status >= 500
}

/// Sets the hook that stamps values, and notes the revision from which it is in force.
async fn set_stamp(client: &Client, stamp: u64, in_force: &mut Stamps) {
    let hook = json!({"plugin": "stamp", "prefix": "s/", "config": {"stamp": stamp}, "deadline_ms": 5_000});
    let (set, cut_off) = repeated(|| client.put_json("/hooks/stamp/", &hook), failed).await;
    in_force.insert(set.json["revision"].as_u64().unwrap(), (stamp, cut_off > 0));
}

#[tokio::test]
async fn every_write_is_judged_by_the_version_in_force_during_deployments_and_rollbacks() {
    const ROUNDS: u8 = 10;
    let cluster = Cluster::start(3).await;
    let mut in_force = Stamps::new();
    repeated(|| cluster.client(0).put_plugin("stamp", plugin_wasm("test-stamp")), failed).await;
    set_stamp(cluster.client(0), 0, &mut in_force).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let (client, stop) = (cluster.client(writer % 3).clone(), stop.clone());
            tokio::spawn(async move {
                for number in 0..100_000 {
                    if stop.load(Ordering::Relaxed) {
                        return number;
                    }
                    client.write(&format!("s/{writer}/{number}"), &json!({})).await.expect(201);
                    tokio::time::sleep(PAUSE).await;
                }
                100_000
            })
        })
        .collect();
    for round in 2..2 + ROUNDS {
        let client = cluster.client(usize::from(round % 3));
        repeated(|| client.put_plugin("stamp", plugin_version("test-stamp", round)), failed).await;
        set_stamp(client, u64::from(round), &mut in_force).await;
        if round % 2 == 0 {
            let other = cluster.client(usize::from((round + 1) % 3));
            // Done twice, it would be undone.
            let not_done = |answer: &Answer| failed(answer) && answer.json["outcome"] == "not_written";
            let nothing = json!({});
            let (back, _) = repeated(|| other.post_json("/hooks/stamp/rollback/", &nothing), not_done).await;
            let stamp = back.json["config"]["stamp"].as_u64().unwrap();
            in_force.insert(back.json["revision"].as_u64().unwrap(), (stamp, false));
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    let stored = stamps(cluster.client(1)).await;
    assert_eq!(stored.len(), written);
    for (revision, stamp) in &stored {
        let (_, (expected, _)) = in_force.range(..revision).next_back().unwrap();
        let is_early = in_force.range(revision..).next().is_some_and(|(_, next)| *next == (*stamp, true));
        assert!(stamp == expected || is_early, "{stamp} at revision {revision}, {in_force:?}");
    }
    let used: BTreeSet<_> = stored.values().collect();
    assert!(used.len() > usize::from(ROUNDS) / 2 && written > 100, "{written} writes, {used:?}");
}

/// The stamps of all entries by revision.
async fn stamps(client: &Client) -> BTreeMap<u64, u64> {
    let mut stamps = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/kv/?prefix=s/&limit=5000&consistency=strong{cursor}");
        let page = client.settled(&path).await.expect(200).json;
        for entry in page["results"].as_array().unwrap() {
            stamps.insert(entry["revision"].as_u64().unwrap(), entry["value"]["stamp"].as_u64().unwrap());
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return stamps,
        }
    }
}
