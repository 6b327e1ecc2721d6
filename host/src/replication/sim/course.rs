//! The course of one seed: a cluster forms, faults happen, everything heals, and the invariants are checked.

use std::{collections::BTreeSet, hash::Hasher};

use super::chaos::{self, CATCH_UP_MS_MAX, Chaos, has_caught_up, leader_and_members, pass_until};
use super::clients::{Client, DEADLINE, KEYS};
use super::history::{Request, Response, Unique};
use super::{clocks, invariants::Violation, moves, network::Weather, node::Node, siege, world::World};

const FORM_MS_MAX: u64 = 5_000;

/// Time for which the formation of a cluster is disturbed, and the share of seeds in which it is.
const FORM_TROUBLE_MS: std::ops::RangeInclusive<u64> = 200..=2_500;
const FORM_TROUBLE_EVERY: u64 = 5;

const FAULTS_MS: std::ops::RangeInclusive<u64> = 2_500..=5_500;

/// Least time for which clients continue once everything has healed.
const HEALED_MS_MIN: u64 = 700;

/// Maximum time from the end of all faults to the next committed write.
const RECOVER_MS_MAX: u64 = 4_000;

/// Maximum time for the nodes to reach the same state once the clients have stopped.
const SETTLE_MS_MAX: u64 = 8_000;

/// Time in which a leader hears the clocks of all voters. A hello that was lost is made again after a second.
const HEARD_MS_MAX: u64 = 2_000;

/// Steps for which all nodes must have applied the same log before the end, so that the invariants observe it.
const STEPS_AT_REST: u32 = 10;

/// The course of a seed without a violation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Course {
    /// The digest of all events.
    events: u64,
    operations: usize,
    pub(super) acknowledged: usize,
    faults: usize,
}

/// What happens to a cluster.
enum Trouble {
    Faults {
        changes_members: bool,
        moves: bool,
    },
    /// The leases of a node with a slow clock are attacked.
    Siege {
        slow: usize,
    },
}

/// One seed in so many is a siege.
const SIEGE_EVERY: u64 = 8;

/// The cluster of a seed, before its first step.
fn cluster(seed: u64) -> (World, Trouble) {
    if seed.is_multiple_of(SIEGE_EVERY) {
        return besieged(seed);
    }
    let mut rng = fastrand::Rng::with_seed(!seed);
    let founders = if rng.u32(0..8) == 0 { 5 } else { 3 };
    let kind = rng.u32(0..3);
    let (changes_members, moves) = (kind == 0, kind == 1);
    let spare = usize::from(changes_members && rng.bool());
    let clocks_apart = rng.bool();
    let peers: Vec<usize> = (0..founders).collect();
    // Small, so that snapshots are taken and logs are cut often.
    let snapshot_entries = if rng.bool() { rng.u64(10..60) } else { 10_000 };
    let nodes = (0..founders + spare).map(|number| {
        let clock = if clocks_apart { rng.u64(CLOCK_PERMILLE) } else { 1_000 };
        Node::new(number, &peers, rng.u64(..), clock, snapshot_entries)
    });
    (World::new(seed, nodes.collect()), Trouble::Faults { changes_members, moves })
}

fn besieged(seed: u64) -> (World, Trouble) {
    let mut rng = fastrand::Rng::with_seed(!seed);
    let count = if rng.u32(0..4) == 0 { 5 } else { 3 };
    let (peers, slow): (Vec<usize>, _) = ((0..count).collect(), rng.usize(0..count));
    let nodes = (0..count).map(|number| {
        let clock = if number == slow { siege::SLOW_PERMILLE } else { siege::FAST_PERMILLE };
        Node::new(number, &peers, rng.u64(..), clock, 10_000)
    });
    (World::new(seed, nodes.collect()), Trouble::Siege { slow })
}

/// Rates of clocks, in parts per thousand: within the bound that leases rely on (see `lease`).
const CLOCK_PERMILLE: std::ops::RangeInclusive<u64> = 970..=1_030;

pub(super) fn run(seed: u64) -> Result<Course, Violation> {
    let (mut world, trouble) = cluster(seed);
    if let Trouble::Faults { changes_members, .. } = trouble {
        clocks::begin(&mut world, seed, changes_members);
    }
    if seed.is_multiple_of(FORM_TROUBLE_EVERY) {
        form_in_trouble(&mut world)?
    } else {
        form(&mut world)?
    }
    world.clients_act = true;
    let end_ms = world.now_ms + world.rng.u64(FAULTS_MS);
    let faults = match trouble {
        Trouble::Siege { slow } => siege::run(&mut world, slow, end_ms)?,
        Trouble::Faults { changes_members, moves } => {
            let mut chaos = Chaos { next_ms: world.now_ms, changes_members, moves, ..Chaos::default() };
            while world.now_ms < end_ms {
                chaos.act(&mut world)?;
                world.step()?;
            }
            chaos.end(&mut world);
            chaos.faults
        }
    };
    finish(&mut world)?;
    let acknowledged = world.history.operations.iter().filter(|operation| operation.outcome().is_some()).count();
    let operations = world.history.operations.len();
    Ok(Course { events: world.events.finish(), operations, acknowledged, faults })
}

/// Starts all nodes and waits until there is a leader.
pub(super) fn form(world: &mut World) -> Result<(), Violation> {
    (0..world.nodes.len()).for_each(|number| world.start(number));
    await_leader(world)
}

/// The same, while messages are lost and nodes die.
fn form_in_trouble(world: &mut World) -> Result<(), Violation> {
    world.weather = Weather::ROUGH;
    (0..world.nodes.len()).for_each(|number| world.start(number));
    let end_ms = world.rng.u64(FORM_TROUBLE_MS);
    let mut chaos = Chaos::default();
    while world.now_ms < end_ms {
        chaos.disturb(world);
        world.step()?;
    }
    chaos.end(world);
    await_leader(world)
}

fn await_leader(world: &mut World) -> Result<(), Violation> {
    let began_ms = world.now_ms;
    while chaos::leader(world).is_none() {
        if world.now_ms > began_ms + FORM_MS_MAX {
            return Err(Violation::new("availability", "no cluster was formed"));
        }
        world.step()?;
    }
    Ok(())
}

/// After everything has healed: checks that the cluster is soon writable, comes to rest, and has kept its promises.
pub(super) fn finish(world: &mut World) -> Result<(), Violation> {
    let healed_ms = world.now_ms;
    let mut late: BTreeSet<usize> = (0..world.nodes.len()).collect();
    while world.now_ms < healed_ms + HEALED_MS_MIN || !was_written_since(world, healed_ms) || !late.is_empty() {
        if world.now_ms > healed_ms + RECOVER_MS_MAX && !was_written_since(world, healed_ms) {
            return Err(Violation::new("availability", "no write was committed after the last fault"));
        }
        if world.now_ms > healed_ms + CATCH_UP_MS_MAX {
            let detail = format!(
                "nodes {late:?} did not catch up, or are not known at their URLs, while clients wrote: {}",
                state(world)
            );
            return Err(Violation::new("availability", detail));
        }
        world.step()?;
        late.retain(|number| !has_caught_up(world, *number) || !moves::is_followed(world, *number));
    }
    world.clients_act = false;
    come_to_rest(world)?;
    if !pass_until(world, CATCH_UP_MS_MAX, all_voters_run)? {
        return Err(Violation::new("availability", format!("a voter runs nowhere: {}", state(world))));
    }
    pass_until(world, HEARD_MS_MAX, |_| false)?;
    write_at_rest(world)?;
    come_to_rest(world)?;
    let Some(members) = leader_and_members(world) else {
        return Err(Violation::new("availability", "nobody leads at the end"));
    };
    world.invariants.conclude(&world.history, &members, world.looks_for_orders)
}

fn come_to_rest(world: &mut World) -> Result<(), Violation> {
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
    Ok(())
}

/// Whether each voter is a node that runs: a node that has lost its disk has replaced what it was.
fn all_voters_run(world: &World) -> bool {
    let Some((leader, members)) = leader_and_members(world) else { return false };
    let running: BTreeSet<u64> = members.iter().filter_map(|node| Some(node.metrics()?.id)).collect();
    leader.membership_config.voter_ids().all(|voter| running.contains(&voter))
}

/// Writes once more. By now the leader knows the clocks of all voters, so this write has the right time.
fn write_at_rest(world: &mut World) -> Result<(), Violation> {
    let failed = |why: String| Err(Violation::new("availability", format!("a write at rest: {why}")));
    let Some(leader) = chaos::leader(world) else { return failed("nobody leads".to_owned()) };
    let id = world.history.operations.len();
    world.begin(leader, Request::Put { keys: vec![KEYS[0].to_owned()], expected: None, name: None }, DEADLINE);
    let is_answered = |world: &World| world.history.operations[id].response.is_some();
    pass_until(world, SETTLE_MS_MAX, is_answered)?;
    match &world.history.operations[id].response {
        Some(Response::Committed(_)) => Ok(()),
        response => failed(format!("{response:?}")),
    }
}

fn was_written_since(world: &World, since_ms: u64) -> bool {
    let since = world.history.operations.iter().rev().take_while(|operation| operation.called_ms >= since_ms);
    since.into_iter().any(|operation| matches!(operation.response, Some(Response::Committed(_))))
}

/// The progress of clients and nodes, as text.
fn state(world: &World) -> String {
    let waiting: Vec<Unique> = world.clients.iter().filter_map(Client::waits_for).collect();
    let nodes = world.nodes.iter().filter_map(|node| {
        let (metrics, applied) = (node.metrics()?, *node.handle()?.applied().borrow());
        Some(format!(
            "node {} at {} with id {} has log {:?}, committed {:?}, applied {applied} ({:?}), revision {}, {:?}",
            node.number,
            node.url,
            metrics.id,
            metrics.last_log_index,
            metrics.local_committed,
            metrics.last_applied,
            node.data().revision(),
            metrics.state
        ))
    });
    let nodes = nodes.collect::<Vec<_>>().join("; ");
    let membership = leader_and_members(world).map(|(leader, _)| leader.membership_config);
    format!("operations {waiting:?} wait, {nodes}; in force is {membership:?}")
}

/// Whether no client waits and every member has applied the leader's whole log.
fn is_at_rest(world: &World) -> bool {
    let Some((leader, members)) = leader_and_members(world) else { return false };
    let last = leader.last_log_index.unwrap_or(0);
    let has_applied = |node: &&Node| node.handle().is_some_and(|handle| *handle.applied().borrow() == last);
    world.clients.iter().all(|client| client.waits_for().is_none()) && members.iter().all(has_applied)
}
