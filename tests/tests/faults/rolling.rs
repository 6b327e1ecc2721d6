//! P8: a rolling restart under load. No acknowledged write is lost, and almost every write succeeds at its second node at
//! the latest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use brink_tests::{Client, Cluster, entries, undisturbed};
use serde_json::{Value, json};

use crate::alone::alone;

/// Writers per node.
const WRITERS: usize = 4;

/// Upper bound of one writer's writes.
const WRITES_MAX: u64 = 50_000;

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Number of restarts of each node. They go on until there are enough requests, but not for ever.
const ROUNDS: usize = 3;
const ROUNDS_MAX: usize = 30;

/// Fewest requests that are a load.
const REQUESTS_MIN: usize = 1_000;

/// At most one request in this many may fail.
const FAILED_OF: usize = 1_000;

/// The writers' results.
#[derive(Default)]
struct Tally {
    requests: usize,
    retried: usize,
    failed: Vec<String>,
    acknowledged: BTreeMap<String, u64>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_less_than_one_request_in_a_thousand_that_is_tried_twice() {
    let _alone = alone().await;
    undisturbed(restart_all).await;
}

async fn restart_all() -> Result<(), String> {
    let mut cluster = Cluster::start(3).await;
    let (stop, requests) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<Client> = cluster.nodes.iter().map(|node| Client::with_timeout(&node.url, TIMEOUT)).collect();
    let writers: Vec<_> = (0..3 * WRITERS)
        .map(|writer| tokio::spawn(write(clients.clone(), writer, stop.clone(), requests.clone())))
        .collect();
    for (restarts, node) in (0..3).cycle().take(3 * ROUNDS_MAX).enumerate() {
        if restarts >= 3 * ROUNDS && requests.load(Ordering::Relaxed) > REQUESTS_MIN {
            break;
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(tokio::task::block_in_place(|| cluster.nodes[node].stop()), "the node did not stop cleanly");
        cluster.nodes[node].start();
        cluster.ready().await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    let mut all = Tally::default();
    for writer in writers {
        let tally = writer.await.unwrap();
        all.requests += tally.requests;
        all.retried += tally.retried;
        all.failed.extend(tally.failed);
        all.acknowledged.extend(tally.acknowledged);
    }
    println!("{} requests, {} tried twice, {} failed: {:?}", all.requests, all.retried, all.failed.len(), all.failed);
    assert!(all.requests > REQUESTS_MIN, "{} requests are no load", all.requests);
    for node in &cluster.nodes {
        let found = entries(&node.client, "rolling/", "strong").await;
        for (key, number) in &all.acknowledged {
            assert_eq!(found.get(key).and_then(Value::as_u64), Some(*number), "{key} on {}", node.url);
        }
    }
    let too_many = all.failed.len() * FAILED_OF >= all.requests;
    if too_many { Err(format!("{} of {} failed: {:?}", all.failed.len(), all.requests, all.failed)) } else { Ok(()) }
}

async fn write(clients: Vec<Client>, writer: usize, stop: Arc<AtomicBool>, requests: Arc<AtomicUsize>) -> Tally {
    let mut tally = Tally::default();
    let mut node = writer;
    for number in 0..WRITES_MAX {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("rolling/{writer}/{number}");
        let body = json!({ "value": number }).to_string();
        let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
        let path = format!("/kv/{key}/");
        tally.requests += 1;
        requests.fetch_add(1, Ordering::Relaxed);
        let mut answers = Vec::new();
        for _ in 0..2 {
            let sent = clients[node % 3].try_send("PUT", &path, &headers, body.clone()).await;
            if sent.as_ref().is_ok_and(|answer| answer.status == 201) {
                tally.acknowledged.insert(key.clone(), number);
                break;
            }
            answers.push(match sent {
                Ok(answer) => format!("{} {}", answer.status, answer.json["type"]),
                Err(error) => format!("{error:?}"),
            });
            // This request and the following ones use the next node.
            node += 1;
        }
        match answers.len() {
            0 => {}
            1 => tally.retried += 1,
            _ => tally.failed.push(answers.join(", then ")),
        }
    }
    tally
}
