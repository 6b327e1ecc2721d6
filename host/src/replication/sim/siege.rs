//! Attacks on the lease of a leader: each tries to make another node lead while the first still trusts its lease.
//!
//! The leader's clock is as slow, and the others' as fast, as leases allow. Network and disks are as fast as the simulation
//! allows, and a voter stands for election again and again, so that it is elected as soon as the promises of the others end.
//! Meanwhile clients read on the leader and write on the other side, as often as they can. Random faults meet such moments
//! too rarely: without its margin, a lease outlives the promises by some 20 ms.

use std::time::Duration;

use super::{chaos::leader, history::Request, invariants::Violation, network::Weather, world::World};

/// The rates of clocks, in parts per thousand: a tenth apart, which is the bound that leases rely on (see `lease`).
pub(super) const SLOW_PERMILLE: u64 = 950;
pub(super) const FAST_PERMILLE: u64 = 1_055;

/// The key that is read and written.
const KEY: &str = "a";

/// Intervals at which reads and writes begin.
const READ_EVERY_MS: u64 = 2;
const WRITE_EVERY_MS: u64 = 3;

/// Interval at which a voter that was cut off stands for election.
const STAND_EVERY_MS: u64 = 2;

/// The deadline of a read or write: reads that wait for long would only make the search for their order slow.
const DEADLINE: Duration = Duration::from_millis(60);

/// Time for a node to become the leader, or the fittest successor.
const PATIENCE_MS: u64 = 1_500;

/// How long a leader tries to hand over.
const TRANSFER_PATIENCE: Duration = Duration::from_millis(20);

/// Time for the last writes of clients to reach all nodes.
const SETTLE_MS: u64 = 50;

/// From the moment at which the leader is cut off: before, no promise ends, and after both times, no lease is trusted.
const QUIET_MS: u64 = 190;
const DANGER_MS: u64 = 110;

/// Time after its restart before a node without a rule would stand for election itself.
const RETURN_MS: u64 = 130;

/// Rest between two attacks.
const REST_MS: std::ops::RangeInclusive<u64> = 200..=700;

#[derive(Debug, Clone, Copy)]
pub(super) enum Attack {
    /// One voter stands for election already when the leader is cut off from the rest.
    CutOff,
    /// The same, but the rest restarts and forgets its promises. Then the one voter stands for election, or the rest.
    Restart,
    /// The leader is cut off while it hands over.
    HandOver,
    /// The successor learns only after a pause that the leader hands over. Meanwhile another node leads.
    LateHandOver,
}

const ATTACKS: [Attack; 4] = [Attack::CutOff, Attack::Restart, Attack::HandOver, Attack::LateHandOver];

/// Attacks a node's leases until the world's time is `end_ms`.
pub(super) fn run(world: &mut World, slow: usize, end_ms: u64) -> Result<usize, Violation> {
    // Too many reads and writes are under way at once for that. A read that misses a write is noticed without it.
    world.looks_for_orders = false;
    let mut attacks = 0;
    while world.now_ms < end_ms {
        let attack = world.rng.choice(ATTACKS).unwrap_or(Attack::CutOff);
        besiege(world, slow, attack)?;
        let rest_ms = world.rng.u64(REST_MS);
        pass(world, rest_ms)?;
        attacks += 1;
    }
    Ok(attacks)
}

/// One attack, after which everything heals. Does nothing if the node cannot be made the leader.
pub(super) fn besiege(world: &mut World, target: usize, attack: Attack) -> Result<(), Violation> {
    if !crown(world, target)? {
        return Ok(());
    }
    world.note(("besiege", target, format!("{attack:?}")));
    // Whoever is to be elected must have the whole log.
    let clients_act = std::mem::take(&mut world.clients_act);
    set_speed(world, Weather::FAST, 0);
    pass(world, SETTLE_MS)?;
    let mut others: Vec<usize> = (0..world.nodes.len()).filter(|number| *number != target).collect();
    world.rng.shuffle(&mut others);
    match attack {
        Attack::CutOff => {
            expel(world, target, others[0])?;
            cut_off(world, target);
            pass(world, QUIET_MS)?;
            hammer(world, target, &others, Some(others[0]))?;
        }
        Attack::Restart => {
            expel(world, target, others[0])?;
            cut_off(world, target);
            others[1..].iter().for_each(|number| world.crash(*number, true));
            let down_ms = world.rng.u64(1..20);
            pass(world, down_ms)?;
            others[1..].iter().for_each(|number| world.start(*number));
            if world.rng.bool() {
                hammer(world, target, &others, Some(others[0]))?;
            } else {
                pass(world, RETURN_MS)?;
                hammer(world, target, &others, None)?;
            }
        }
        Attack::HandOver => {
            world.transfer(target, others[0], TRANSFER_PATIENCE);
            let until_cut_ms = world.rng.u64(1..12);
            hammer_for(world, until_cut_ms, target, &others, None)?;
            cut_off(world, target);
            hammer(world, target, &others, None)?;
        }
        Attack::LateHandOver => hand_over_late(world, target, &others)?,
    }
    world.note("heal");
    world.cuts.heal();
    set_speed(world, Weather::CALM, 2);
    world.clients_act = clients_act;
    Ok(())
}

fn set_speed(world: &mut World, weather: Weather, sync_ms_max: u64) {
    world.weather = weather;
    world.nodes.iter().for_each(|node| node.log_disk.set_sync_time(0..=sync_ms_max));
}

/// The leader hands over to a node that is paused. Of the votes of one term, that of the successor is the higher one.
fn hand_over_late(world: &mut World, target: usize, others: &[usize]) -> Result<(), Violation> {
    let id = |world: &World, number: usize| world.nodes[number].metrics().map(|metrics| metrics.id);
    let Some(&successor) = others.iter().max_by_key(|number| id(world, **number)) else { return Ok(()) };
    let pause_ms = world.rng.u64(500..1_200);
    world.nodes[successor].paused_until_ms = Some(world.now_ms + pause_ms);
    world.transfer(target, successor, TRANSFER_PATIENCE);
    pass(world, pause_ms - 1)?;
    let Some(reader) = leader(world) else { return Ok(()) };
    cut_off(world, reader);
    let rest: Vec<usize> = (0..world.nodes.len()).filter(|number| *number != reader).collect();
    hammer(world, reader, &rest, Some(successor))
}

/// Makes a node the leader. False if that takes too long.
fn crown(world: &mut World, target: usize) -> Result<bool, Violation> {
    let deadline_ms = world.now_ms + PATIENCE_MS;
    while world.now_ms < deadline_ms {
        match leader(world) {
            Some(leading) if leading == target => return Ok(true),
            Some(leading) => world.transfer(leading, target, TRANSFER_PATIENCE),
            None => {}
        }
        pass(world, 50)?;
    }
    Ok(false)
}

/// Cuts a voter off from the leader, and waits until it stands for election.
fn expel(world: &mut World, target: usize, voter: usize) -> Result<(), Violation> {
    world.cuts.cut_both(target, voter);
    let until_cut_ms = world.rng.u64(270..500);
    pass(world, until_cut_ms)
}

fn cut_off(world: &mut World, target: usize) {
    for other in (0..world.nodes.len()).filter(|other| *other != target) {
        world.cuts.cut_both(target, other);
    }
}

fn pass(world: &mut World, ms: u64) -> Result<(), Violation> {
    (0..ms).try_for_each(|_| world.step())
}

fn hammer(world: &mut World, reader: usize, writers: &[usize], candidate: Option<usize>) -> Result<(), Violation> {
    hammer_for(world, DANGER_MS, reader, writers, candidate)
}

/// Reads a key strongly on one node and writes it on others. The candidate stands for election.
fn hammer_for(
    world: &mut World,
    ms: u64,
    reader: usize,
    writers: &[usize],
    candidate: Option<usize>,
) -> Result<(), Violation> {
    for _ in 0..ms {
        if let Some(candidate) = candidate.filter(|_| world.now_ms.is_multiple_of(STAND_EVERY_MS)) {
            world.nodes[candidate].stand();
        }
        if world.now_ms.is_multiple_of(READ_EVERY_MS) {
            world.begin(reader, Request::StrongRead { key: KEY.to_owned() }, DEADLINE);
        }
        if world.now_ms.is_multiple_of(WRITE_EVERY_MS) {
            for writer in writers {
                let put = Request::Put { keys: vec![KEY.to_owned()], expected: None, name: None };
                world.begin(*writer, put, DEADLINE);
            }
        }
        world.step()?;
    }
    Ok(())
}
