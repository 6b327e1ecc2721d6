//! Nodes that come back at other URLs, with lists of nodes that may be old or wrong.
//!
//! A member is its disk, not its address: the others follow it. For that a node that moves must be able to reach the others, so
//! an operator names in its list all nodes that have moved before it, or move with it, and moves no node before the others are
//! known at their new URLs. Lists may otherwise be old and wrong, and lead to the node itself.

use super::node::{Node, PeerList, url};
use super::world::World;
use crate::replication::types::{Metrics, url_of};

/// A host that is not there.
const NOWHERE: &str = "http://nowhere";

/// Gives nodes other URLs and lists: a node, or only its list, or two that swap their URLs, or all. They are in force from their
/// next start on. Returns the nodes, which are to be restarted.
pub(super) fn relocate(world: &mut World, number: usize) -> Vec<usize> {
    let nodes = world.nodes.len();
    if !(0..nodes).all(|number| has_its_place(world, number)) {
        return Vec::new();
    }
    let (other, kind) = ((number + world.rng.usize(1..nodes)) % nodes, world.rng.u32(0..8));
    let url_now = |number: usize| world.nodes[number].url.clone();
    let fresh = |number: usize| format!("{}-at-{}", url(number), world.now_ms);
    let (moving, is_swap) = match kind {
        0..3 => (vec![(number, fresh(number))], false),
        3 => (vec![(number, url_now(number))], false),
        4 | 5 => (vec![(number, url_now(other)), (other, url_now(number))], true),
        _ => ((0..nodes).map(|number| (number, fresh(number))).collect(), false),
    };
    world.note(("move", &moving));
    for (number, url) in &moving {
        let node = &mut world.nodes[*number];
        let former = std::mem::replace(&mut node.url, url.clone());
        node.aliases.clear();
        if !is_swap && former != *url && world.rng.bool() {
            node.aliases.push(former);
        }
    }
    for (number, _) in &moving {
        world.nodes[*number].peers = list(world, *number);
    }
    moving.into_iter().map(|(number, _)| number).collect()
}

/// A list of the other nodes for a node. Those that never moved may be missing: its log tells where they are.
fn list(world: &mut World, number: usize) -> PeerList {
    let right: Vec<String> = others(world, number).map(|node| node.url.clone()).collect();
    let has_moved: Vec<bool> = others(world, number).map(|node| node.url != url(node.number)).collect();
    let aliases = world.nodes[number].aliases.clone();
    let mut urls: Vec<String> = right
        .iter()
        .zip(has_moved)
        .filter(|(_, has_moved)| *has_moved || world.rng.bool())
        .map(|(url, _)| url.clone())
        .collect();
    urls.extend(aliases.into_iter().filter(|_| world.rng.bool()));
    if urls.is_empty() || world.rng.u32(0..4) == 0 {
        urls.push(NOWHERE.to_owned());
    }
    PeerList { urls, right }
}

fn others(world: &World, number: usize) -> impl Iterator<Item = &Node> {
    world.nodes.iter().filter(move |node| node.number != number)
}

/// Whether a node runs, and the cluster has it at its URL or does not have it at all.
pub(super) fn is_followed(world: &World, number: usize) -> bool {
    let (Some(own), Some(newest)) = (world.nodes[number].metrics(), newest(world)) else { return false };
    let stored = newest.membership_config.membership().get_node(&own.id).map(url_of);
    stored.is_none_or(|stored| stored == world.nodes[number].url)
}

/// Whether a node runs and knows its id, and the cluster has it, and no other, at its URL.
fn has_its_place(world: &World, number: usize) -> bool {
    // A founder that moves before it knows its id leaves a place that an operator must remove.
    if !world.nodes[number].is_identified() {
        return false;
    }
    let (Some(own), Some(newest)) = (world.nodes[number].metrics(), newest(world)) else { return false };
    let with_url = newest.membership_config.nodes().filter(|(_, node)| url_of(node) == world.nodes[number].url);
    with_url.map(|(id, _)| *id).eq([own.id])
}

/// What the node with the newest committed membership knows.
fn newest(world: &World) -> Option<Metrics> {
    let position = |metrics: &Metrics| metrics.membership_config.log_id().map(|log_id| log_id.index);
    let is_committed = |metrics: &Metrics| position(metrics) <= metrics.local_committed.map(|log_id| log_id.index);
    let known = world.nodes.iter().filter_map(Node::metrics).filter(is_committed);
    known.max_by_key(position)
}
