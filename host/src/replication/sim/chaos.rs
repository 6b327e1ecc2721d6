//! The faults of a simulation: the seed chooses one after another, then everything heals.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::invariants::{Violation, membership::Requested};
use super::{clocks, moves, network::Weather, node::Node, node::RESERVE_BYTES, world::World};
use crate::replication::{cluster::change::Role, types::Metrics};

/// Longest time between two faults, in milliseconds.
const FAULT_INTERVAL_MS_MAX: u64 = 450;

/// Longest time for which a node stays down.
const DOWN_MS_MAX: u64 = 1_500;

/// Maximum time for which an operator waits until the others have what a node has lost, before the node goes on without it.
const ACCEPT_MS_MAX: u64 = 2_000;

/// Maximum time from the end of all faults until every member has caught up and is known at its URL, while clients write.
pub(super) const CATCH_UP_MS_MAX: u64 = 8_000;

/// Number of entries that a member may lack and has caught up.
const LAG_MAX: u64 = 20;

const CHANGE_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(super) struct Chaos {
    pub(super) next_ms: u64,
    /// Nodes that are down, and when they return.
    pub(super) returning: Vec<(u64, usize)>,
    /// Whether nodes join, leave, and lose their disks.
    pub(super) changes_members: bool,
    /// Whether nodes come back at other URLs.
    pub(super) moves: bool,
    pub(super) faults: usize,
}

impl Chaos {
    /// Disturbs a cluster that is being formed. No node loses its disk: the others may have a cluster already.
    pub(super) fn disturb(&mut self, world: &mut World) {
        if self.is_due(world) {
            let number = world.rng.usize(0..world.nodes.len());
            match world.rng.u32(0..4) {
                0 | 1 => self.crash(world, number),
                2 => partition(world),
                _ => heal(world),
            }
        }
    }

    /// Whether the next fault is due. Nodes that were down return.
    fn is_due(&mut self, world: &mut World) -> bool {
        let now_ms = world.now_ms;
        self.returning.retain(|(due_ms, number)| {
            let is_due = *due_ms <= now_ms;
            if is_due {
                world.start(*number);
            }
            !is_due
        });
        if now_ms < self.next_ms {
            return false;
        }
        self.next_ms = now_ms + world.rng.u64(5..=FAULT_INTERVAL_MS_MAX);
        self.faults += 1;
        true
    }

    pub(super) fn act(&mut self, world: &mut World) -> Result<(), Violation> {
        if !self.is_due(world) {
            return Ok(());
        }
        let number = world.rng.usize(0..world.nodes.len());
        match world.rng.u32(0..100) {
            0..22 => self.crash(world, number),
            22..26 => (0..world.nodes.len()).for_each(|number| self.crash(world, number)),
            26..34 => pause(world, number),
            34..50 => partition(world),
            50..64 => heal(world),
            64..72 => change_weather(world),
            72..75 => change_disks(world, number),
            75..78 => change_space(world, number),
            78..80 => clocks::step(world),
            80..86 => transfer(world, number),
            86..88 if self.changes_members => return self.lie(world, number),
            88..93 if self.changes_members => self.lose_disk(world, number),
            93..100 if self.changes_members => change_members(world, number),
            86..98 if self.moves => self.relocate(world, number),
            _ => leader(world).into_iter().for_each(|number| self.crash(world, number)),
        }
        Ok(())
    }

    pub(super) fn end(&mut self, world: &mut World) {
        heal(world);
        world.weather = Weather::CALM;
        for (_, number) in std::mem::take(&mut self.returning) {
            world.start(number);
        }
        for node in &mut world.nodes {
            node.paused_until_ms = node.paused_until_ms.map(|until| until.min(world.now_ms));
            node.log_disk.set_sync_time(0..=2);
            node.set_free(u64::MAX);
        }
    }

    fn crash(&mut self, world: &mut World, number: usize) {
        if world.nodes[number].running.is_none() {
            return;
        }
        let is_host_up = world.rng.bool();
        world.crash(number, is_host_up);
        let down_ms = if world.rng.bool() { world.rng.u64(1..=100) } else { world.rng.u64(1..=DOWN_MS_MAX) };
        self.returning.push((world.now_ms + down_ms, number));
    }

    /// Kills a node whose disk then loses a part of what the log had made durable, under the same condition. The node
    /// notices it, and sets the rest aside, unless an operator has it go on without that part.
    fn lie(&mut self, world: &mut World, number: usize) -> Result<(), Violation> {
        if world.nodes[number].running.is_none() || !is_whole(world) {
            return Ok(());
        }
        let is_accepted = world.rng.bool();
        world.note(("lie", number, is_accepted));
        world.nodes[number].lies = true;
        if is_accepted {
            return self.accept_loss(world, number);
        }
        self.crash(world, number);
        Ok(())
    }

    /// A node goes on under its id without a part of its log. It has forgotten what it acknowledged and for whom it voted, so
    /// nothing is lost only if the others have all that it may have acknowledged, and keep running until it has caught up.
    fn accept_loss(&mut self, world: &mut World, number: usize) -> Result<(), Violation> {
        let written = world.nodes.iter().filter_map(|node| node.metrics()?.last_log_index).max();
        let own_id = world.nodes[number].metrics().map(|metrics| metrics.id);
        world.crash(number, true);
        self.end(world);
        let others_have_it = |world: &World| {
            let Some(metrics) = leader(world).and_then(|leader| world.nodes[leader].metrics()) else { return false };
            let identified: Vec<Metrics> =
                world.nodes.iter().filter(|node| node.is_identified()).filter_map(Node::metrics).collect();
            let has_it = |id: u64| {
                let found = identified.iter().find(|found| found.id == id);
                found.is_some_and(|found| found.last_applied.map(|applied| applied.index) >= written)
            };
            metrics.membership_config.voter_ids().filter(|id| Some(*id) != own_id).all(has_it)
        };
        // Otherwise the node sets its data aside by itself.
        world.nodes[number].accepts_loss = pass_until(world, ACCEPT_MS_MAX, others_have_it)?;
        world.note(("accept", number, world.nodes[number].accepts_loss));
        world.start(number);
        let is_back = |world: &World| world.nodes[number].handle().is_some() && has_caught_up(world, number);
        if pass_until(world, CATCH_UP_MS_MAX, is_back)? {
            return Ok(());
        }
        Err(Violation::new("availability", format!("node {number} did not catch up once its loss was accepted")))
    }

    /// Restarts nodes at other URLs.
    fn relocate(&mut self, world: &mut World, number: usize) {
        for number in moves::relocate(world, number) {
            self.crash(world, number);
        }
    }

    /// Gives a node empty disks, if all other voters run: a cluster survives the loss of a minority.
    fn lose_disk(&mut self, world: &mut World, number: usize) {
        if world.nodes[number].running.is_none() || !is_whole(world) {
            return;
        }
        self.crash(world, number);
        world.note(("lose disk", number));
        world.nodes[number].wipe();
    }
}

/// Whether the latest membership has at least three voters, and all of them run.
fn is_whole(world: &World) -> bool {
    // An unidentified node runs under the id of the node that lost its disk, but is another node.
    let identified = world.nodes.iter().filter(|node| node.is_identified());
    let metrics: Vec<Metrics> = identified.filter_map(Node::metrics).collect();
    let position = |metrics: &Metrics| metrics.membership_config.log_id().map(|id| id.index);
    let Some(latest) = metrics.iter().max_by_key(|metrics| position(metrics)) else { return false };
    // An uncommitted membership may yet be replaced.
    if position(latest) > latest.local_committed.map(|id| id.index) {
        return false;
    }
    let membership = latest.membership_config.membership();
    let voters: Vec<u64> = membership.voter_ids().collect();
    let is_there = |voter: &u64| metrics.iter().any(|metrics| metrics.id == *voter);
    membership.get_joint_config().len() == 1 && voters.len() >= 3 && voters.iter().all(is_there)
}

/// The node that believes that it leads in the latest term.
pub(super) fn leader(world: &World) -> Option<usize> {
    let leads = |node: &Node| {
        let metrics = node.metrics()?;
        (metrics.state == openraft::ServerState::Leader).then_some((metrics.current_term, node.number))
    };
    world.nodes.iter().filter_map(leads).max().map(|(_, number)| number)
}

/// The leader's metrics, and the members of the cluster as it sees them.
pub(super) fn leader_and_members(world: &World) -> Option<(Metrics, Vec<&Node>)> {
    let metrics = world.nodes[leader(world)?].metrics()?;
    let ids: BTreeSet<u64> = metrics.membership_config.nodes().map(|(id, _)| *id).collect();
    let is_member = |node: &&Node| node.metrics().is_some_and(|metrics| ids.contains(&metrics.id));
    Some((metrics, world.nodes.iter().filter(is_member).collect()))
}

/// Whether a node has applied nearly the whole log of the leader, or is no member.
pub(super) fn has_caught_up(world: &World, number: usize) -> bool {
    let Some((leader, members)) = leader_and_members(world) else { return false };
    let (last, node) = (leader.last_log_index.unwrap_or(0), &world.nodes[number]);
    let applied = node.handle().map_or(0, |handle| *handle.applied().borrow());
    applied + LAG_MAX >= last || !members.iter().any(|member| member.number == number)
}

/// Lets time pass until something holds. False if it does not within `ms`.
pub(super) fn pass_until(world: &mut World, ms: u64, holds: impl Fn(&World) -> bool) -> Result<bool, Violation> {
    for _ in 0..ms {
        if holds(world) {
            return Ok(true);
        }
        world.step()?;
    }
    Ok(holds(world))
}

fn pause(world: &mut World, number: usize) {
    let pause_ms = world.rng.u64(5..900);
    if world.rng.bool() {
        return clocks::suspend(world, number, pause_ms);
    }
    world.note(("pause", number, pause_ms));
    if world.nodes[number].running.is_some() {
        world.nodes[number].paused_until_ms = Some(world.now_ms + pause_ms);
    }
}

/// Cuts the network: isolates one node or the leader, in one direction or both; or cuts it into halves; or cuts one link.
fn partition(world: &mut World) {
    let nodes = world.nodes.len();
    let one = leader(world).filter(|_| world.rng.bool()).unwrap_or_else(|| world.rng.usize(0..nodes));
    let kind = world.rng.u32(0..5);
    let mut other = world.rng.usize(0..nodes);
    if other == one {
        other = (one + 1) % nodes;
    }
    world.note(("partition", kind, one, other));
    let half = world.rng.u32(..);
    for number in (0..nodes).filter(|number| *number != one) {
        match kind {
            0 => world.cuts.cut_both(one, number),
            1 => world.cuts.cut(one, number),
            2 => world.cuts.cut(number, one),
            3 => {
                for further in 0..nodes {
                    if (half >> number) & 1 != (half >> further) & 1 {
                        world.cuts.cut_both(number, further);
                    }
                }
            }
            _ if number == other => world.cuts.cut_both(one, number),
            _ => {}
        }
    }
}

fn heal(world: &mut World) {
    world.note("heal");
    world.cuts.heal();
}

fn change_weather(world: &mut World) {
    world.weather = match world.rng.u32(0..3) {
        0 => Weather::CALM,
        1 => Weather::UNEVEN,
        _ => Weather::ROUGH,
    };
    world.note(("weather", world.weather.delay_ms));
}

fn change_disks(world: &mut World, number: usize) {
    let slowest_ms = if world.rng.bool() { world.rng.u64(10..120) } else { 2 };
    world.note(("sync time", number, slowest_ms));
    world.nodes[number].log_disk.set_sync_time(0..=slowest_ms);
}

/// Fills a node's disk, or makes space on it.
fn change_space(world: &mut World, number: usize) {
    let free_bytes = *world.rng.choice(&[0, RESERVE_BYTES - 1, u64::MAX]).unwrap_or(&0);
    world.note(("free space", number, free_bytes));
    world.nodes[number].set_free(free_bytes);
}

/// Asks a random node to make another the leader.
fn transfer(world: &mut World, number: usize) {
    let successor = world.rng.usize(0..world.nodes.len());
    world.note(("transfer", number, successor));
    world.transfer(number, successor, CHANGE_DEADLINE);
}

/// Asks a random node to add or remove a node, or to change its role.
fn change_members(world: &mut World, number: usize) {
    let member = world.rng.usize(0..world.nodes.len());
    let kind = world.rng.u32(0..5);
    world.note(("change members", number, member, kind));
    let role = match kind {
        0 | 1 => Some(Role::Voter),
        2 => Some(Role::Learner),
        3 => None,
        _ => return world.nodes[number].spawn(async move |handle| handle.hand_over().await),
    };
    if world.nodes[number].handle().is_none() {
        return;
    }
    let (url, changes) = (world.nodes[member].url.clone(), world.invariants.changes.clone());
    let requested = Requested { url: url.clone(), role, at_ms: world.now_ms, is_acknowledged: false };
    let place = changes.lock().len();
    changes.lock().push(requested);
    world.nodes[number].spawn(async move |handle| {
        let deadline = Instant::now() + CHANGE_DEADLINE;
        let done = match role {
            Some(role) => handle.add_member(&url, role, deadline).await,
            None => handle.remove_member(&url, deadline).await,
        };
        changes.lock()[place].is_acknowledged = done.is_ok();
    });
}
