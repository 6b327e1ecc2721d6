//! Paused nodes: a paused follower does not delay writes, and a paused leader delays them by one election.
//!
//! A paused process does not refuse connections. To its peers, it looks like a machine without power.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use brink_tests::{Client, Cluster, first_success, undisturbed};
use rustix::process::Signal;

use crate::alone::alone;

/// Length of each measurement: before, during and after the pause. It goes on until there are enough writes.
const SPAN: Duration = Duration::from_secs(6);

/// Fewest writes of a measurement, and the time for them.
const WRITES_MIN: usize = 200;
const WRITES_LIMIT: Duration = Duration::from_secs(120);

/// Writers per running node.
const WRITERS: usize = 2;

/// Upper bound of one writer's writes.
const WRITES_MAX: usize = 100_000;

/// Limit of the growth of the writes' p99.
const FACTOR_MAX: u32 = 3;

/// Tolerance for the pauses of a busy machine.
const NOISE: Duration = Duration::from_millis(25);

/// Limit of a single write, beyond the p99 before the pause: less than an election.
const PAUSE_MAX: Duration = Duration::from_millis(400);

/// Number of pauses of the leader.
const TRIALS: usize = 5;

/// Interval between writes during a pause of the leader.
const SENT_EVERY: Duration = Duration::from_millis(10);

/// Time for one of these writes to succeed.
const SENT_LIMIT: Duration = Duration::from_secs(20);

/// Limit of the median time without acknowledged writes.
const LEADER_PAUSE_MAX: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_follower_does_not_delay_writes() {
    let _alone = alone().await;
    undisturbed(a_paused_follower).await;
}

async fn a_paused_follower() -> Result<(), String> {
    let cluster = Cluster::start(3).await;
    cluster.healthy().await;
    let leader = cluster.leader().await;
    let paused = (leader + 1) % 3;
    let clients: Vec<Client> = (0..3).filter(|node| *node != paused).map(|node| cluster.client(node).clone()).collect();
    let before = measure(&clients, "before").await?;
    cluster.nodes[paused].signal(Signal::STOP);
    let meanwhile = measure(&clients, "while").await?;
    cluster.nodes[paused].signal(Signal::CONT);
    let after = measure(&clients, "after").await?;
    for (name, times) in [("before", &before), ("during the pause", &meanwhile), ("after", &after)] {
        println!(
            "{name}: {} writes, p50 {:?}, p99 {:?}, max {:?}",
            times.len(),
            at(times, 50),
            at(times, 99),
            at(times, 100)
        );
        assert!(times.len() > WRITES_MIN, "only {} writes", times.len());
    }
    let limit = at(&before, 99) * FACTOR_MAX + NOISE;
    let found = [
        (at(&meanwhile, 99) < limit, format!("{:?} is not under {limit:?}", at(&meanwhile, 99))),
        (at(&after, 99) < limit, format!("{:?} is not under {limit:?}", at(&after, 99))),
        (at(&meanwhile, 100) < PAUSE_MAX, format!("one write took {:?}", at(&meanwhile, 100))),
        (cluster.leader().await == leader, "there was an election".to_owned()),
    ];
    found.into_iter().try_for_each(|(holds, wrong)| if holds { Ok(()) } else { Err(wrong) })
}

/// Clients send writes without waiting for earlier answers. If a node kept all of them waiting for the old leader, they
/// would occupy its rounds in flight, and new writes would wait for longer than an election.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_leader_delays_writes_by_one_election() {
    let _alone = alone().await;
    let cluster = Cluster::start(3).await;
    let mut pauses = Vec::new();
    for trial in 0..TRIALS {
        cluster.healthy().await;
        let leader = cluster.leader().await;
        cluster.nodes[leader].signal(Signal::STOP);
        pauses.push(until_others_write(&cluster, leader, &format!("trial{trial}")).await);
        cluster.nodes[leader].signal(Signal::CONT);
    }
    pauses.sort();
    println!("pauses of writes after a pause of the leader: {pauses:?}");
    assert!(pauses[TRIALS / 2] < LEADER_PAUSE_MAX, "{pauses:?}");
}

/// Time until all nodes but one have acknowledged a write.
async fn until_others_write(cluster: &Cluster, leader: usize, name: &str) -> Duration {
    let began = Instant::now();
    let writes = (0..3).filter(|node| *node != leader).map(|node| {
        let (client, prefix) = (cluster.client(node).clone(), format!("/kv/{name}/{node}"));
        tokio::spawn(async move {
            first_success(&client, |number| format!("{prefix}/{number}/"), SENT_EVERY, began, SENT_LIMIT).await
        })
    });
    let mut longest = Duration::ZERO;
    for write in writes.collect::<Vec<_>>() {
        longest = longest.max(write.await.unwrap());
    }
    assert!(longest < SENT_LIMIT, "no write succeeded");
    longest
}

/// The durations of all writes in ascending order. Every write must succeed.
async fn measure(clients: &[Client], name: &str) -> Result<Vec<Duration>, String> {
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writers = clients.iter().enumerate().flat_map(|(node, client)| {
        (0..WRITERS).map(move |writer| (client.clone(), format!("paused/{name}/{node}-{writer}")))
    });
    let writers: Vec<_> =
        writers.map(|(client, prefix)| tokio::spawn(write(client, prefix, stop.clone(), count.clone()))).collect();
    let began = Instant::now();
    tokio::time::sleep(SPAN).await;
    // A writer whose write fails stops all.
    while count.load(Ordering::Relaxed) <= WRITES_MIN && !stop.load(Ordering::Relaxed) {
        assert!(began.elapsed() < WRITES_LIMIT, "only {} writes", count.load(Ordering::Relaxed));
        tokio::time::sleep(SENT_EVERY).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for writer in writers {
        times.extend(writer.await.unwrap()?);
    }
    times.sort();
    Ok(times)
}

async fn write(
    client: Client,
    prefix: String,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
) -> Result<Vec<Duration>, String> {
    let mut times = Vec::new();
    for number in 0..WRITES_MAX {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let began = Instant::now();
        let written = client.put(&format!("{prefix}/{number}"), &serde_json::json!(number)).await;
        if written.status != 201 {
            stop.store(true, Ordering::Relaxed);
            return Err(format!("{prefix}/{number}: {} {}", written.status, written.json));
        }
        times.push(began.elapsed());
        count.fetch_add(1, Ordering::Relaxed);
    }
    Ok(times)
}

fn at(times: &[Duration], percent: usize) -> Duration {
    times[(times.len() - 1) * percent / 100]
}
