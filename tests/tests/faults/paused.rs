//! Paused nodes: a paused follower does not delay writes, and a paused leader delays them by one election.
//!
//! A paused process does not refuse connections. To its peers, it looks like a machine without power.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use brink_tests::{Client, Cluster};
use rustix::process::Signal;

use crate::alone::alone;

/// Length of each measurement: before, during and after the pause.
const SPAN: Duration = Duration::from_secs(6);

/// Writers per running node.
const WRITERS: usize = 2;

/// Upper bound of one writer's writes.
const WRITES_MAX: usize = 100_000;

/// Limit of the growth of the writes' p99.
const FACTOR_MAX: u32 = 3;

/// Tolerance for the pauses of a busy machine.
const NOISE: Duration = Duration::from_millis(25);

/// Limit of a single write: less than an election.
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// Number of pauses of the leader.
const TRIALS: usize = 5;

/// Interval between writes during a pause of the leader.
const SENT_EVERY: Duration = Duration::from_millis(10);

/// Upper bound of these writes.
const SENT_MAX: usize = 2_000;

/// Limit of the median time without acknowledged writes.
const LEADER_PAUSE_MAX: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_follower_does_not_delay_writes() {
    let _alone = alone().await;
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let paused = (leader + 1) % 3;
    let clients: Vec<Client> = (0..3).filter(|node| *node != paused).map(|node| cluster.client(node).clone()).collect();
    let before = measure(&clients, "before").await;
    cluster.nodes[paused].signal(Signal::STOP);
    let meanwhile = measure(&clients, "while").await;
    cluster.nodes[paused].signal(Signal::CONT);
    let after = measure(&clients, "after").await;
    for (name, times) in [("before", &before), ("during the pause", &meanwhile), ("after", &after)] {
        println!(
            "{name}: {} writes, p50 {:?}, p99 {:?}, max {:?}",
            times.len(),
            at(times, 50),
            at(times, 99),
            at(times, 100)
        );
        assert!(times.len() > 200, "only {} writes", times.len());
    }
    let limit = at(&before, 99) * FACTOR_MAX + NOISE;
    assert!(at(&meanwhile, 99) < limit, "{:?} is not under {limit:?}", at(&meanwhile, 99));
    assert!(at(&after, 99) < limit, "{:?} is not under {limit:?}", at(&after, 99));
    assert!(at(&meanwhile, 100) < PAUSE_MAX, "one write took {:?}", at(&meanwhile, 100));
    assert_eq!(cluster.leader().await, leader, "there was an election");
}

/// Clients send writes without waiting for earlier answers. If a node kept all of them waiting for the old leader, they
/// would occupy its rounds in flight, and new writes would wait for longer than an election.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_leader_delays_writes_by_one_election() {
    let _alone = alone().await;
    let cluster = Cluster::start(3).await;
    let mut pauses = Vec::new();
    for trial in 0..TRIALS {
        let leader = cluster.leader().await;
        let others = (0..3).filter(|node| *node != leader);
        cluster.nodes[leader].signal(Signal::STOP);
        let writes = others.map(|node| first_success(cluster.client(node).clone(), format!("trial{trial}/{node}")));
        let writes: Vec<_> = writes.map(tokio::spawn).collect();
        let mut longest = Duration::ZERO;
        for write in writes {
            longest = longest.max(write.await.unwrap());
        }
        pauses.push(longest);
        cluster.nodes[leader].signal(Signal::CONT);
        cluster.ready().await;
    }
    pauses.sort();
    println!("pauses of writes after a pause of the leader: {pauses:?}");
    assert!(pauses[TRIALS / 2] < LEADER_PAUSE_MAX, "{pauses:?}");
}

/// Sends a write every few milliseconds. Returns the time until one of them succeeds.
async fn first_success(client: Client, prefix: String) -> Duration {
    let began = Instant::now();
    let (sender, mut successes) = tokio::sync::mpsc::channel(1);
    for number in 0..SENT_MAX {
        let (client, key, sender) = (client.clone(), format!("{prefix}/{number}"), sender.clone());
        tokio::spawn(async move {
            let (path, headers) = (format!("/kv/{key}/"), [("content-type", "application/json")]);
            let sent = client.try_send("PUT", &path, &headers, r#"{"value":1}"#).await;
            if sent.is_ok_and(|answer| answer.status == 201) {
                // The channel keeps only the first success.
                let _ = sender.try_send(began.elapsed());
            }
        });
        tokio::time::sleep(SENT_EVERY).await;
        if let Ok(success) = successes.try_recv() {
            return success;
        }
    }
    panic!("no write succeeded");
}

/// The durations of all writes in ascending order. Every write must succeed.
async fn measure(clients: &[Client], name: &str) -> Vec<Duration> {
    let stop = Arc::new(AtomicBool::new(false));
    let writers = clients.iter().enumerate().flat_map(|(node, client)| {
        (0..WRITERS).map(move |writer| (client.clone(), format!("paused/{name}/{node}-{writer}")))
    });
    let writers: Vec<_> = writers.map(|(client, prefix)| tokio::spawn(write(client, prefix, stop.clone()))).collect();
    tokio::time::sleep(SPAN).await;
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for writer in writers {
        times.extend(writer.await.unwrap());
    }
    times.sort();
    times
}

async fn write(client: Client, prefix: String, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut times = Vec::new();
    for number in 0..WRITES_MAX {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let began = Instant::now();
        client.put(&format!("{prefix}/{number}"), &serde_json::json!(number)).await.expect(201);
        times.push(began.elapsed());
    }
    times
}

fn at(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() - 1) * percent / 100]
}
