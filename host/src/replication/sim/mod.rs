//! Simulation: whole clusters in one thread, under simulated time, network and disks, from a seed.
//!
//! # Problem
//!
//! Replication must keep its promises when nodes die between two instructions, disks lose unsynced data, messages arrive
//! late, twice, out of order or never, and clocks run at different rates. Real processes meet such moments by chance, and
//! none can be repeated.
//!
//! # Approach
//!
//! The code that runs here is the code of production: [`Handle`](super::Handle) with openraft, the proposer, the gate of
//! reads, membership, identity, the log and the state. Only its foundations are simulated:
//!
//! - Time and scheduling: each node has a tokio runtime with one thread and paused time (`node`). The world advances all
//!   clocks in turn, each at its own rate, a millisecond of the world at a time (`world`).
//! - The network: a [`Transport`](super::Transport) that hands messages to the world (`network`).
//! - Disks: [`SimDisk`](crate::storage::memory::SimDisk), which keeps synced data and a part of the rest when power is
//!   lost. The log's writer is a task whose syncs take simulated time; blocking work runs in place.
//! - Randomness: every draw, openraft's included, comes from generators that the seed sets (`runtime`), and tasks that wait
//!   for one value are woken in order (`watch`).
//!
//! The seed chooses the faults (`chaos`): crashes at any poll of any task, of one node or of all, restarts, lost disks,
//! pauses, cut links, bad weather, slow syncs, leadership transfers, members that join and leave. Meanwhile clients on all
//! nodes write, delete and read, and the results are recorded (`clients`, `history`). Then everything heals, the cluster
//! must soon be writable again and its nodes reach the same state, and the whole course is checked (`invariants`, one file
//! each). The rules of leases, restarts and identities have tests of their own (`leases`, `identities`).
//!
//! # Guarantees
//!
//! A seed always takes the same course: a test runs seeds twice and compares digests of all events. If an invariant is
//! violated, the test names it, and the command that repeats the course. `BRINK_SIM_TRACE=1` with that command prints every
//! event.
//!
//! For that, wall clocks are measured but decide nothing; `select!` is biased; hash maps are not iterated where order
//! matters; nothing leaves the thread.
//!
//! # Limits
//!
//! Timers have a resolution of a millisecond, so nothing takes less. Nodes run in turn within a step, which they cannot
//! notice, since no message takes less than a step. Disks do not lie and do not fail here, and HTTP connections are not
//! simulated: the tests of storage and the tests with real processes cover those.

mod chaos;
mod clients;
mod history;
mod identities;
mod invariants;
mod leases;
mod network;
mod node;
pub(super) mod runtime;
mod watch;
mod world;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use self::chaos::Chaos;
use self::history::Response;
use self::invariants::Violation;
use self::node::Node;
use self::world::World;

/// Maximum time to form a cluster.
const FORM_MS_MAX: u64 = 5_000;

/// Duration of the faults.
const FAULTS_MS: std::ops::RangeInclusive<u64> = 2_500..=5_500;

/// Least time for which clients continue once everything has healed.
const HEALED_MS_MIN: u64 = 700;

/// Maximum time from the end of all faults to the next committed write.
const RECOVER_MS_MAX: u64 = 4_000;

/// Maximum time for the nodes to reach the same state once the clients have stopped.
const SETTLE_MS_MAX: u64 = 8_000;

/// Steps for which all nodes must have applied the same log before the end, so that the invariants observe it.
const STEPS_AT_REST: u32 = 10;

/// The course of a seed without a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Course {
    /// The digest of all events.
    events: u64,
    operations: usize,
    acknowledged: usize,
    faults: usize,
}

/// The cluster of a seed, before its first step.
fn cluster(seed: u64) -> (World, bool) {
    let mut rng = fastrand::Rng::with_seed(!seed);
    let founders = if rng.u32(0..8) == 0 { 5 } else { 3 };
    let changes_members = rng.u32(0..3) == 0;
    let spare = usize::from(changes_members && rng.bool());
    let clocks_apart = rng.bool();
    let peers: Vec<usize> = (0..founders).collect();
    // Small, so that snapshots are taken and logs are cut often.
    let snapshot_entries = if rng.bool() { rng.u64(10..60) } else { 10_000 };
    let nodes = (0..founders + spare).map(|number| {
        let clock = if clocks_apart { rng.u64(CLOCK_PERMILLE) } else { 1_000 };
        Node::new(number, &peers, rng.u64(..), clock, snapshot_entries)
    });
    (World::new(seed, nodes.collect()), changes_members)
}

/// Rates of clocks, in parts per thousand: within the bound that leases rely on (see `lease`).
const CLOCK_PERMILLE: std::ops::RangeInclusive<u64> = 970..=1_030;

/// Runs a seed.
fn run(seed: u64) -> Result<Course, Violation> {
    let (mut world, changes_members) = cluster(seed);
    form(&mut world)?;
    world.clients_act = true;
    let mut chaos = Chaos::new(world.now_ms, changes_members);
    let end_ms = world.now_ms + world.rng.u64(FAULTS_MS);
    while world.now_ms < end_ms {
        chaos.act(&mut world);
        world.step()?;
    }
    chaos.end(&mut world);
    finish(&mut world)?;
    let acknowledged = world.history.operations.iter().filter(|operation| operation.outcome().is_some()).count();
    let operations = world.history.operations.len();
    Ok(Course { events: world.events(), operations, acknowledged, faults: chaos.faults })
}

/// Starts all nodes and waits until there is a leader.
fn form(world: &mut World) -> Result<(), Violation> {
    (0..world.nodes.len()).for_each(|number| world.start(number));
    while chaos::leader(world).is_none() {
        if world.now_ms > FORM_MS_MAX {
            return Err(Violation::new("availability", "no cluster was formed"));
        }
        world.step()?;
    }
    Ok(())
}

/// After everything has healed: checks that the cluster is soon writable, comes to rest, and has kept its promises.
fn finish(world: &mut World) -> Result<(), Violation> {
    let healed_ms = world.now_ms;
    while world.now_ms < healed_ms + HEALED_MS_MIN || !was_written_since(world, healed_ms) {
        if world.now_ms > healed_ms + RECOVER_MS_MAX {
            return Err(Violation::new("availability", "no write was committed after the last fault"));
        }
        world.step()?;
    }
    world.clients_act = false;
    let rest_ms = world.now_ms;
    // A delayed write may still arrive when all seems at rest.
    let mut steps_at_rest = 0;
    while steps_at_rest < STEPS_AT_REST {
        if world.now_ms > rest_ms + SETTLE_MS_MAX {
            let detail = format!("the nodes did not come to the same state: {}", state(world));
            return Err(Violation::new("availability", detail));
        }
        world.step()?;
        steps_at_rest = if is_at_rest(world) { steps_at_rest + 1 } else { 0 };
    }
    world.invariants.conclude(&world.history, &members(world), world.looks_for_orders)
}

fn was_written_since(world: &World, since_ms: u64) -> bool {
    let since = world.history.operations.iter().rev().take_while(|operation| operation.called_ms >= since_ms);
    since.into_iter().any(|operation| matches!(operation.response, Some(Response::Committed(_))))
}

/// The members of the cluster, as its leader sees it.
fn members(world: &World) -> Vec<&Node> {
    let leader = chaos::leader(world).and_then(|number| world.nodes.get(number)).and_then(Node::handle);
    let ids: BTreeSet<u64> = leader
        .map(|handle| chaos::metrics_of(handle).membership_config.nodes().map(|(id, _)| *id).collect())
        .unwrap_or_default();
    let nodes = world.nodes.iter();
    nodes.filter(|node| node.handle().is_some_and(|handle| ids.contains(&handle.0.server.raft.id()))).collect()
}

/// The progress of clients and nodes, as text.
fn state(world: &World) -> String {
    let waiting: Vec<u64> = world.clients.iter().filter_map(clients::Client::waits_for).collect();
    let running = |node: &Node| Some((node.number, node.handle()?.clone(), node.running.as_ref()?.data.revision()));
    let nodes = world.nodes.iter().filter_map(running).map(|(number, handle, data)| {
        let metrics = chaos::metrics_of(&handle);
        let applied = *handle.applied().borrow();
        format!(
            "node {number} has log {:?}, committed {:?}, applied {applied} ({:?}), revision {data}, {:?}",
            metrics.last_log_index, metrics.local_committed, metrics.last_applied, metrics.state
        )
    });
    format!("operations {waiting:?} wait, {}", nodes.collect::<Vec<_>>().join("; "))
}

/// Whether no client waits and every member has applied the leader's whole log.
fn is_at_rest(world: &World) -> bool {
    let Some(leader) = chaos::leader(world).and_then(|number| world.nodes.get(number)).and_then(Node::handle) else {
        return false;
    };
    let last = chaos::metrics_of(leader).last_log_index.unwrap_or(0);
    let has_applied = |node: &&Node| node.handle().is_some_and(|handle| *handle.applied().borrow() == last);
    world.clients.iter().all(|client| client.waits_for().is_none()) && members(world).iter().all(has_applied)
}

thread_local! {
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// Whether anything has panicked on this thread since the last call. tokio catches the panics of tasks.
fn has_panicked() -> bool {
    static WATCHING: Once = Once::new();
    WATCHING.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICKED.set(true);
            before(info);
        }));
    });
    PANICKED.replace(false)
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Number of seeds in a test run, unless `BRINK_SIM_SEEDS` sets it.
const SEEDS: u64 = 200;

/// The first seed, unless `BRINK_SIM_FROM` sets it.
const FIRST_SEED: u64 = 1;

/// Interval of progress reports in a long run.
const PROGRESS_SECONDS: u64 = 10;

/// Runs seeds on all cores; the first violation ends it.
fn run_all(from: u64, seeds: u64) -> Result<(), String> {
    let (next, done, began) = (AtomicU64::new(from), AtomicU64::new(0), Instant::now());
    let failed = AtomicBool::new(false);
    let failure = Mutex::new(None);
    let told = AtomicU64::new(0);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + seeds || failed.load(Ordering::Relaxed) {
                return;
            }
            if let Err(Violation { invariant, detail }) = run(seed) {
                failed.store(true, Ordering::Relaxed);
                let replay = format!("cargo xtask sim --seeds 1 --from {seed}");
                *failure.lock() = Some(format!("seed {seed} violates {invariant}: {detail}\n\nto replay: {replay}"));
                return;
            }
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            let seconds = began.elapsed().as_secs();
            if told.fetch_max(seconds / PROGRESS_SECONDS, Ordering::Relaxed) < seconds / PROGRESS_SECONDS {
                eprintln!("{done} of {seeds} seeds in {seconds} s");
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(work);
        }
    });
    let (done, took) = (done.load(Ordering::Relaxed), began.elapsed());
    eprintln!("{done} seeds from {from} in {took:.1?}");
    failure.lock().take().map_or(Ok(()), Err)
}

#[test]
fn clusters_keep_their_promises_under_simulated_faults() {
    let (from, seeds) = (setting("BRINK_SIM_FROM", FIRST_SEED), setting("BRINK_SIM_SEEDS", SEEDS));
    if let Err(failure) = run_all(from, seeds) {
        panic!("{failure}");
    }
}

/// Number of seeds that are run twice, unless `BRINK_SIM_SEEDS` sets it.
const SEEDS_TWICE: u64 = 20;

#[test]
fn a_seed_always_takes_the_same_course() {
    let (from, seeds) = (setting("BRINK_SIM_FROM", FIRST_SEED), setting("BRINK_SIM_SEEDS", SEEDS_TWICE));
    let mut acknowledged = 0;
    for seed in from..from + seeds {
        let courses = [run(seed).unwrap(), run(seed).unwrap()];
        assert_eq!(courses[0], courses[1], "of seed {seed}");
        acknowledged += courses[0].acknowledged as u64;
    }
    assert!(acknowledged > 10 * seeds, "{acknowledged} acknowledged writes of {seeds} seeds");
}
