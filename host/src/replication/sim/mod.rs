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
//! - The network: a `Transport` that hands messages to the world (`network`).
//! - Disks: [`SimDisk`](crate::storage::memory::SimDisk), which keeps synced data and a part of the rest when power is
//!   lost. The log's writer is a task whose syncs take simulated time; blocking work runs in place.
//! - Randomness: every draw, openraft's included, comes from generators that the seed sets and tasks that wait for
//!   one value are woken in order (`runtime`).
//!
//! The seed chooses the faults (`chaos`): crashes at any poll of any task, of one node or of all, restarts, lost disks, disks
//! that lose parts of a synced log, which the node sets aside or an operator accepts, full disks, pauses, suspended machines,
//! wrong wall clocks (`clocks`), cut links, bad weather, slow syncs, leadership transfers, members that join and leave, or that
//! come back at other URLs with lists of nodes that are old or wrong (`moves`). In some seeds the formation of the cluster is
//! disturbed as well. In others the leases of a node with a slow clock are attacked instead (`siege`). Meanwhile clients on
//! all nodes write, delete, read and scan, change the registry, and write what plugins have judged; the results are recorded
//! (`clients`, `history`). Then everything heals, the cluster must soon be writable again, its nodes be known at their URLs,
//! catch up while clients write and then reach the same state, and the whole course is checked (`invariants`, one file each).
//!
//! Moments that random faults do not meet have tests of their own (`rules`): of leases, votes, restarts, identities, addresses
//! and memberships. So have the bounds of what is proposed and sent (`bounds`), since large values would make the seeds slow.
//!
//! Each rule that keeps reads and writes safe was removed once, to see which seed notices: `docs/testing.md` has the table.
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
//! notice, since no message takes less than a step. Syncs and writes do not fail here, and HTTP connections are not
//! simulated: the tests of storage and the tests with real processes cover those. A loss is accepted only as an operator should:
//! while the other voters have what was lost, and run until the node has caught up. Nodes move in seeds of their own, in which
//! no disk is lost, and one move at a time.

mod bounds;
mod chaos;
mod clients;
mod clocks;
mod course;
mod history;
mod invariants;
mod moves;
mod network;
mod node;
mod rules;
pub(super) mod runtime;
mod scripts;
mod siege;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::{ops::Range, time::Instant};

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use self::{course::run, invariants::Violation};

/// The seeds of a test: `BRINK_SIM_SEEDS` of them, or `count` if it is not set, from `BRINK_SIM_FROM` on.
fn seeds(count: u64) -> Range<u64> {
    let setting = |name, default| std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default);
    let from = setting("BRINK_SIM_FROM", 1);
    from..from + setting("BRINK_SIM_SEEDS", count)
}

/// Interval of progress reports in a long run.
const PROGRESS_SECONDS: u64 = 10;

/// Runs seeds on all cores; the first violation ends it.
#[test]
fn clusters_keep_their_promises_under_simulated_faults() {
    let seeds = seeds(200);
    let (done, told, began) = (AtomicU64::new(0), AtomicU64::new(0), Instant::now());
    let ended = seeds.clone().into_par_iter().try_for_each(|seed| {
        run(seed).map_err(|Violation { invariant, detail }| {
            let replay = format!("cargo xtask sim --seeds 1 --from {seed}");
            format!("seed {seed} violates {invariant}: {detail}\n\nto replay: {replay}")
        })?;
        let (done, seconds) = (done.fetch_add(1, Ordering::Relaxed) + 1, began.elapsed().as_secs());
        if told.fetch_max(seconds / PROGRESS_SECONDS, Ordering::Relaxed) < seconds / PROGRESS_SECONDS {
            eprintln!("{done} of {} seeds in {seconds} s", seeds.end - seeds.start);
        }
        Ok(())
    });
    eprintln!("{} seeds from {} in {:.1?}", done.load(Ordering::Relaxed), seeds.start, began.elapsed());
    ended.unwrap_or_else(|failure: String| panic!("{failure}"));
}

#[test]
fn a_seed_always_takes_the_same_course() {
    let (mut acknowledged, seeds) = (0, seeds(20));
    for seed in seeds.clone() {
        let courses = [run(seed).unwrap(), run(seed).unwrap()];
        assert_eq!(courses[0], courses[1], "of seed {seed}");
        acknowledged += courses[0].acknowledged as u64;
    }
    assert!(acknowledged > 10 * (seeds.end - seeds.start), "{acknowledged} acknowledged writes of seeds {seeds:?}");
}
