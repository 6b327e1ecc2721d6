//! P1 to P4 and P8 under mixed faults: histories are linearizable, nothing acknowledged is lost, outcomes are honest,
//! and the cluster takes writes again within two seconds.

use std::time::{Duration, Instant};

use brink_tests::episode::{self, Plan, Report};

/// Whence the faults are drawn, unless told.
const SEED: u64 = 20;

/// How long one run goes on at most. A test is several, each with a fresh cluster and the next seed.
const EPISODE_MAX: Duration = Duration::from_secs(300);

/// How long the faults go on, unless told.
const LENGTH: Duration = Duration::from_secs(80);

/// Log entries between snapshots, by turns: so few that nodes need snapshots, and as many as is usual.
const SNAPSHOT_ENTRIES: [u64; 3] = [300, 10_000, 1_000];

/// How many nodes, by turns.
const NODES: [usize; 2] = [3, 5];

/// `cargo xtask faults` runs this for longer, with `BRINK_FAULTS_MINUTES` and `BRINK_FAULTS_SEED`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_never_misled_whatever_faults_there_are() {
    let _alone = super::ALONE.lock().await;
    let told = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let length = told("BRINK_FAULTS_MINUTES").map_or(LENGTH, |minutes| Duration::from_secs(60 * minutes));
    let first_seed = told("BRINK_FAULTS_SEED").unwrap_or(SEED);
    let episode = EPISODE_MAX.min(length / u32::try_from(NODES.len()).unwrap());
    let (mut all, began, mut inflicted) = (Report::default(), Instant::now(), Duration::ZERO);
    for (turn, seed) in (first_seed..).enumerate() {
        let left = length.saturating_sub(inflicted);
        if left.is_zero() || !all.violations.is_empty() {
            break;
        }
        let plan = Plan {
            nodes: NODES[turn % NODES.len()],
            seed,
            length: left.min(episode),
            snapshot_entries: SNAPSHOT_ENTRIES[turn % SNAPSHOT_ENTRIES.len()],
        };
        inflicted += plan.length;
        let report = episode::run(&plan).await;
        report.print();
        if !report.violations.is_empty() {
            println!("again: cargo xtask faults --seed {first_seed} --minutes {}", length.as_secs().div_ceil(60));
        }
        all.add(report);
    }
    println!("--- in all, after {:.0?}:", began.elapsed());
    all.print();
    assert!(all.violations.is_empty(), "{} violations", all.violations.len());
    assert!(all.tally["writes done"] > 100 && all.tally["linearizable reads"] > 100, "{:?}", all.tally);
}
