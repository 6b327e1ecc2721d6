//! A minority that stands still costs the others' writers nothing they can see.

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
