//! P1 to P4 and P8 under mixed faults: histories are linearizable, no acknowledged write is lost, outcomes are honest, the
//! cluster's time is right, and the cluster acknowledges writes again within two seconds.

use std::time::{Duration, Instant};

use brink_tests::episode::{self, Plan, Report};

use crate::alone::alone;

/// Default seed of the first episode.
const SEED: u64 = 20;

/// Longest episode. The test runs several, each with a fresh cluster and the next seed.
const EPISODE_MAX: Duration = Duration::from_secs(300);

/// Default total length of the episodes.
const LENGTH: Duration = Duration::from_secs(80);

/// Log entries between snapshots, in rotation: few, so that nodes need snapshots; the default; and a number in between.
const SNAPSHOT_ENTRIES: [u64; 3] = [300, 10_000, 1_000];

/// Number of nodes, in rotation.
const NODES: [usize; 2] = [3, 5];

/// `cargo xtask faults` sets `BRINK_FAULTS_MINUTES` and `BRINK_FAULTS_SEED` for longer runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_never_misled_whatever_faults_there_are() {
    let _alone = alone().await;
    let setting = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let length = setting("BRINK_FAULTS_MINUTES").map_or(LENGTH, |minutes| Duration::from_secs(60 * minutes));
    let first_seed = setting("BRINK_FAULTS_SEED").unwrap_or(SEED);
    let episode = EPISODE_MAX.min(length / u32::try_from(NODES.len()).unwrap());
    let (mut all, began, mut elapsed) = (Report::default(), Instant::now(), Duration::ZERO);
    for (turn, seed) in (first_seed..).enumerate() {
        let left = length.saturating_sub(elapsed);
        if left.is_zero() || !all.violations.is_empty() {
            break;
        }
        let plan = Plan {
            nodes: NODES[turn % NODES.len()],
            seed,
            length: left.min(episode),
            snapshot_entries: SNAPSHOT_ENTRIES[turn % SNAPSHOT_ENTRIES.len()],
        };
        elapsed += plan.length;
        let report = episode::run(&plan).await;
        report.print();
        if !report.violations.is_empty() {
            println!("to repeat: cargo xtask faults --seed {first_seed} --minutes {}", length.as_secs().div_ceil(60));
        }
        all.add(report);
    }
    println!("--- total, after {:.0?}:", began.elapsed());
    all.print();
    assert!(all.violations.is_empty(), "{} violations", all.violations.len());
    assert!(all.tally["writes done"] > 100 && all.tally["linearizable reads"] > 100, "{:?}", all.tally);
}
