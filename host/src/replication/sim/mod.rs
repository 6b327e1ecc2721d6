//! Simulation: whole clusters in one thread, under simulated time, network and disks, from a seed.
//!
//! # Problem
//!
//! What replication promises it must keep when nodes die between two instructions, disks lose what was not synced,
//! messages come late, twice, out of order or never, and clocks run apart. Real processes meet such moments by luck, and
//! nobody can meet one again.
//!
//! # Approach
//!
//! What runs here is the code that runs in production: [`Handle`](super::Handle) with openraft, the proposer, the gate of
//! reads, membership, identity, the log and the state. Only what it stands on is simulated:
//!
//! - Time and scheduling: each node has a tokio runtime of its own with one thread and paused time (`node`). The world
//!   moves all clocks in turn, each at its own rate, a millisecond of the world at a time (`world`).
//! - The network: a [`Transport`](super::Transport) that puts messages into the world's hands (`network`).
//! - Disks: [`SimDisk`](crate::storage::memory::SimDisk), which keeps what was synced and a part of the rest when power
//!   goes. The log's writer is a task whose syncs take simulated time; work that may block is done in place.
//! - Randomness: every draw, openraft's included, comes from generators that the seed sets (`runtime`), and those who wait
//!   for one value are woken in order (`watch`).
//!
//! The seed chooses what goes wrong (`chaos`): crashes at any poll of any task, of one node or of all, restarts, lost
//! disks, pauses, cut links, bad weather, slow syncs, leadership transfers, members that come and go. Meanwhile clients on
//! all nodes write, delete and read, and what they saw is recorded (`clients`, `history`). Then everything heals, the
//! cluster must be writable again soon and its nodes come to the same state, and the whole course is judged
//! (`invariants`, one file each). Lease, restart and identity rules have tests of their own (`leases`, `identities`).
//!
//! # Guarantees
//!
//! A seed always takes the same course: a test runs seeds twice and compares digests of all events. When an invariant does
//! not hold, the test says which, and the command that plays the same course again. `BRINK_SIM_TRACE=1` with that command
//! prints every event.
//!
//! What could make courses differ and is therefore kept out: wall clocks decide nothing (they are only measured with);
//! `select!` is biased; hash maps are not walked where order matters; nothing leaves the thread.
//!
//! # Limits
//!
//! Timers have the millisecond's grain, so nothing takes less. Nodes run in turn within a step, which they cannot notice,
//! since no message takes less than a step. Disks do not lie and do not fail here, and HTTP and its connections are not
//! simulated: tests of storage and tests with real processes see to those.

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
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::time::Instant;

use self::chaos::Chaos;
use self::history::Response;
use self::invariants::Violation;
use self::node::Node;
use self::world::World;
use super::shared::lock;

/// How long a cluster may take to form.
const FORM_MS_MAX: u64 = 5_000;

/// How long faults go on.
const FAULTS_MS: std::ops::RangeInclusive<u64> = 2_500..=5_500;

/// How long clients go on at least when everything has healed.
const HEALED_MS_MIN: u64 = 700;

/// How long it may take from the end of all faults until a write is committed again.
const RECOVER_MS_MAX: u64 = 4_000;

/// How long the nodes may take to come to the same state when the clients have stopped.
const SETTLE_MS_MAX: u64 = 8_000;

/// Steps for which all nodes must have applied the same before the end; the looks in between see what was applied last.
const STEPS_AT_REST: u32 = 10;

/// The course of a seed that violated nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Course {
    /// A digest of all events.
    events: u64,
    operations: usize,
    acknowledged: usize,
    faults: usize,
}

/// A cluster as the seed wants it, before its first step.
fn cluster(seed: u64) -> (World, bool) {
    let mut rng = fastrand::Rng::with_seed(!seed);
    let founders = if rng.u32(0..8) == 0 { 5 } else { 3 };
    let changes_members = rng.u32(0..3) == 0;
    let spare = usize::from(changes_members && rng.bool());
    let clocks_apart = rng.bool();
    let peers: Vec<usize> = (0..founders).collect();
    // Small, so that snapshots are taken and logs are cut all the time.
    let snapshot_entries = if rng.bool() { rng.u64(10..60) } else { 10_000 };
    let nodes = (0..founders + spare).map(|number| {
        let clock = if clocks_apart { rng.u64(CLOCK_PERMILLE) } else { 1_000 };
        Node::new(number, &peers, rng.u64(..), clock, snapshot_entries)
    });
    (World::new(seed, nodes.collect()), changes_members)
}

/// How fast clocks run, in parts per thousand: within what leases allow (see `reads`).
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

/// Everything has healed: the cluster must be writable soon, come to rest, and have kept its promises.
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
    // A write that was long under way may come when all seems at rest.
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

/// The nodes that belong to the cluster, as its leader sees it.
fn members(world: &World) -> Vec<&Node> {
    let leader = chaos::leader(world).and_then(|number| world.nodes.get(number)).and_then(Node::handle);
    let ids: BTreeSet<u64> = leader
        .map(|handle| chaos::metrics_of(handle).membership_config.nodes().map(|(id, _)| *id).collect())
        .unwrap_or_default();
    let nodes = world.nodes.iter();
    nodes.filter(|node| node.handle().is_some_and(|handle| ids.contains(&handle.shared.id()))).collect()
}

/// How far everyone is.
fn state(world: &World) -> String {
    let waiting: Vec<u64> = world.clients.iter().filter_map(clients::Client::waits_for).collect();
    let nodes = world.nodes.iter().filter_map(|node| Some((node.number, node.handle()?)));
    let nodes = nodes.map(|(number, handle)| {
        let metrics = chaos::metrics_of(handle);
        let (applied, data) = (*handle.applied().borrow(), handle.shared.engine_parts.data.revision());
        format!(
            "node {number} has log {:?}, committed {:?}, applied {applied} ({:?}), revision {data}, {:?}",
            metrics.last_log_index, metrics.local_committed, metrics.last_applied, metrics.state
        )
    });
    format!("operations {waiting:?} wait, {}", nodes.collect::<Vec<_>>().join("; "))
}

/// Whether no client waits, and every member has applied the leader's whole log.
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

/// Whether anything has panicked on this thread since the last call: tokio keeps a task's panic to itself.
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

/// Seeds of a test run, unless `BRINK_SIM_SEEDS` says otherwise.
const SEEDS: u64 = 200;

/// The first of them, unless `BRINK_SIM_FROM` says otherwise.
const FIRST_SEED: u64 = 1;

/// How often a long run tells how far it is.
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
                *lock(&failure) = Some(format!("seed {seed} violates {invariant}: {detail}\n\nto replay: {replay}"));
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
    lock(&failure).take().map_or(Ok(()), Err)
}

#[test]
fn clusters_keep_their_promises_under_simulated_faults() {
    let (from, seeds) = (setting("BRINK_SIM_FROM", FIRST_SEED), setting("BRINK_SIM_SEEDS", SEEDS));
    if let Err(failure) = run_all(from, seeds) {
        panic!("{failure}");
    }
}

/// Seeds that a test run takes twice, unless `BRINK_SIM_SEEDS` says otherwise.
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
