//! A minority that stands still costs the others' writers nothing they can see; if the leader is in it, an election.
//!
//! A process that stands still does not even refuse connections. A machine that lost its power is the same to others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use brink_tests::{Client, Cluster};
use rustix::process::Signal;

/// How long is measured before, while and after the node stands still.
const SPAN: Duration = Duration::from_secs(6);

/// Writers of each node that goes on.
const WRITERS: usize = 2;

/// The most writes of one writer: no load runs for ever.
const WRITES_MAX: usize = 100_000;

/// How much longer the slowest one in a hundred writes may take meanwhile.
const FACTOR_MAX: u32 = 3;

/// What does not count: less than a busy machine's own pauses.
const NOISE: Duration = Duration::from_millis(25);

/// The longest pause of all: less than an election takes.
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// How often the leader stands still.
const TRIALS: usize = 5;

/// How often a write is sent then.
const SENT_EVERY: Duration = Duration::from_millis(10);

/// The most writes sent.
const SENT_MAX: usize = 2_000;

/// The most the median pause of writes may be then.
const LEADER_PAUSE_MAX: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_stands_still_costs_writers_nothing_visible() {
    let _alone = super::ALONE.lock().await;
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let paused = (leader + 1) % 3;
    let clients: Vec<Client> = (0..3).filter(|node| *node != paused).map(|node| cluster.client(node).clone()).collect();
    let before = measure(&clients, "before").await;
    cluster.nodes[paused].signal(Signal::STOP);
    let meanwhile = measure(&clients, "while").await;
    cluster.nodes[paused].signal(Signal::CONT);
    let after = measure(&clients, "after").await;
    for (name, times) in [("before", &before), ("while it stands still", &meanwhile), ("after", &after)] {
        println!(
            "{name}: {} writes, p50 {:?}, p99 {:?}, longest {:?}",
            times.len(),
            at(times, 50),
            at(times, 99),
            at(times, 100)
        );
        assert!(times.len() > 200, "{} writes are no load", times.len());
    }
    let limit = at(&before, 99) * FACTOR_MAX + NOISE;
    assert!(at(&meanwhile, 99) < limit, "{:?} is not under {limit:?}", at(&meanwhile, 99));
    assert!(at(&after, 99) < limit, "{:?} is not under {limit:?}", at(&after, 99));
    assert!(at(&meanwhile, 100) < PAUSE_MAX, "one write took {:?}", at(&meanwhile, 100));
    assert_eq!(cluster.leader().await, leader, "nobody had to be elected");
}

/// Clients come and write whether or not those before them have their answers, as clients do. Were a node to wait for the
/// old leader with all that it was sent, its places for rounds would be taken, and writes would stand still for longer
/// than it takes to elect another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stands_still_costs_writers_an_election() {
    let _alone = super::ALONE.lock().await;
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
    println!("pauses of writes after the leader stood still: {pauses:?}");
    assert!(pauses[TRIALS / 2] < LEADER_PAUSE_MAX, "{pauses:?}");
}

/// Sends a write every few milliseconds until one of them has succeeded; how long that took.
async fn first_success(client: Client, prefix: String) -> Duration {
    let began = Instant::now();
    let (sender, mut successes) = tokio::sync::mpsc::channel(1);
    for number in 0..SENT_MAX {
        let (client, key, sender) = (client.clone(), format!("{prefix}/{number}"), sender.clone());
        tokio::spawn(async move {
            let (path, headers) = (format!("/kv/{key}/"), [("content-type", "application/json")]);
            let sent = client.try_send("PUT", &path, &headers, r#"{"value":1}"#).await;
            if sent.is_ok_and(|answer| answer.status == 201) {
                // Only the first one counts.
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

/// How long each write took, the shortest first. Every write must succeed.
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
