//! The rules of leases, votes, restarts, identities, addresses and memberships, each tested by itself.
//!
//! A leader with a lease answers strong reads by itself: for that time after a majority last heard it, no voter votes for
//! another node. This rests on three rules: a restarted voter, which has forgotten its promises, keeps silent for the length
//! of a lease; a restarted leader does not continue to lead; a leader's lease ends before the promises of its voters, even
//! if their clocks run at different rates (see `lease`, and `siege` for the attacks).
//!
//! A cluster has one id, calls from other clusters change nothing, and a node that lost its disk never returns under its
//! former id (P8). What the log has that cannot be applied ends no node.

mod addresses;
mod claims;
mod memberships;
mod promises;
mod reads;
mod time;
mod unusable;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::ServerState;
use openraft::raft::{VoteRequest, VoteResponse};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::course::{finish, form};
use super::node::{Node, url};
use super::siege::{self, Attack, FAST_PERMILLE, SLOW_PERMILLE};
use super::{chaos::leader, clients::DEADLINE, history::Request, moves, world::World};
use crate::replication::lease::LEASE;
use crate::replication::peer::protocol::{Call, Envelope};
use crate::replication::types::{Metrics, TypeConfig, Vote, decode, encode, node_id, url_of};
use crate::replication::{Caller, ClusterId, Error, Status};
use crate::storage::Space;

/// Maximum duration of any wait, in milliseconds of the world.
const WAIT_MS_MAX: u64 = 20_000;

/// How long a node tries to hand over.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(1);

/// Duration of a voter's silence after a restart.
fn silence_ms() -> u64 {
    u64::try_from(LEASE.as_millis()).unwrap()
}

/// Three nodes with these clock rates, not yet started.
fn three(seed: u64, clocks: [u64; 3]) -> World {
    let node = |(number, clock)| Node::new(number, &[0, 1, 2], seed + number as u64, clock, 10_000);
    World::new(seed, clocks.into_iter().enumerate().map(node).collect())
}

/// Three nodes with these clock rates that have formed a cluster, and their leader.
pub(super) fn cluster(seed: u64, clocks: [u64; 3]) -> (World, usize) {
    let mut world = three(seed, clocks);
    form(&mut world).unwrap();
    // The followers learn about it.
    steps(&mut world, 100);
    let leader = leader(&world).unwrap();
    (world, leader)
}

pub(super) fn steps(world: &mut World, ms: u64) {
    (0..ms).for_each(|_| world.step().unwrap());
}

#[track_caller]
pub(super) fn until(world: &mut World, holds: impl Fn(&World) -> bool) {
    for _ in 0..WAIT_MS_MAX {
        if holds(world) {
            return;
        }
        world.step().unwrap();
    }
    panic!("not within {WAIT_MS_MAX} ms");
}

pub(super) fn metrics(world: &World, number: usize) -> Metrics {
    world.nodes[number].metrics().unwrap()
}

fn status(world: &World, number: usize) -> Status {
    world.nodes[number].status().unwrap()
}

fn is_ready(world: &World, number: usize) -> bool {
    world.nodes[number].status().is_some_and(|status| status.ready)
}

pub(super) fn has(world: &World, number: usize, key: &str) -> bool {
    world.nodes[number].data().get(Space::Kv, key).unwrap().is_some()
}

/// The envelope of a call for a node from its own cluster.
pub(super) fn envelope(world: &World, number: usize) -> Envelope {
    Envelope { to: metrics(world, number).id, cluster: status(world, number).cluster }
}

/// Makes a call as another node would, and waits for its answer.
pub(super) fn ask(
    world: &mut World,
    number: usize,
    call: Call,
    envelope: Envelope,
    body: Bytes,
) -> Result<Bytes, Error> {
    let answer = Arc::new(Mutex::new(None));
    let slot = answer.clone();
    world.nodes[number].spawn(async move |handle| {
        let answer = handle.serve(&Caller::Anyone, call, envelope, body).await;
        *slot.lock() = Some(answer);
    });
    for _ in 0..100 {
        world.step().unwrap();
        if let Some(answer) = answer.lock().take() {
            return answer;
        }
    }
    panic!("node {number} does not answer");
}

/// Asks a node for its vote, as a candidate whose log is longer than any. Returns whether it grants it.
fn grants(world: &mut World, voter: usize, vote: Vote) -> bool {
    let last_log_id = Some(openraft::LogId::new(*vote.leader_id(), 1_000_000));
    let request = VoteRequest::<TypeConfig>::new(vote, last_log_id);
    let to = envelope(world, voter);
    let answer = ask(world, voter, Call::Vote, to, encode(&request).unwrap());
    answer.is_ok_and(|answer| decode::<VoteResponse<TypeConfig>>(&answer).unwrap().vote_granted)
}

/// Writes a key on a node, until the write succeeds.
pub(super) fn write(world: &mut World, number: usize, key: &str) {
    for _ in 0..10 {
        let id = world.history.operations.len();
        world.begin(number, put(key), DEADLINE);
        until(world, |world| world.history.operations[id].response.is_some());
        if world.history.operations[id].outcome().is_some() {
            return;
        }
    }
    panic!("node {number} takes no write");
}

fn put(key: &str) -> Request {
    Request::Put { keys: vec![key.to_owned()], expected: None, name: None }
}

/// Hands the leadership over to a node.
fn lead(world: &mut World, number: usize) {
    steps(world, 100);
    while leader(world) != Some(number) {
        let led_by = leader(world).unwrap();
        world.transfer(led_by, number, TRANSFER_PATIENCE);
        steps(world, 300);
    }
}

fn cut_off(world: &mut World, number: usize) {
    for other in (0..world.nodes.len()).filter(|other| *other != number) {
        world.cuts.cut_both(number, other);
    }
}

#[test]
fn after_a_restart_of_all_nobody_stands_or_leads_until_the_silence_is_over() {
    for seed in 1..=5 {
        let (mut world, _) = cluster(seed, [1_000; 3]);
        let term = metrics(&world, 0).current_term;
        (0..3).for_each(|number| world.crash(number, true));
        let restarted_ms = world.now_ms;
        (0..3).for_each(|number| world.start(number));
        while leader(&world).is_none() {
            world.step().unwrap();
            let silent = world.now_ms < restarted_ms + silence_ms();
            for metrics in world.nodes.iter().filter_map(Node::metrics).filter(|_| silent) {
                assert_ne!(metrics.state, ServerState::Candidate, "of seed {seed}");
                assert_eq!(metrics.current_term, term, "of seed {seed}");
            }
            assert!(world.now_ms < restarted_ms + 3_000, "nobody leads after the silence");
        }
        let waited_ms = world.now_ms - restarted_ms;
        assert!(waited_ms >= silence_ms(), "{waited_ms} ms after the restart somebody leads");
        finish_quietly(&mut world);
    }
}

#[test]
fn a_restarted_voter_grants_no_vote_until_its_silence_is_over() {
    for seed in 1..=5 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        let voter = (led_by + 1) % 3;
        let (candidate, term) = (metrics(&world, (led_by + 2) % 3).id, metrics(&world, led_by).current_term);
        world.crash(voter, true);
        // It hears nothing from the leader that its promise protects.
        cut_off(&mut world, voter);
        let restarted_ms = world.now_ms;
        world.start(voter);
        until(&mut world, |world| world.nodes[voter].handle().is_some());
        let mut granted_ms = None;
        while world.now_ms < restarted_ms + 2 * silence_ms() {
            let vote = Vote::new(term + 1_000 + world.now_ms, candidate);
            if grants(&mut world, voter, vote) {
                granted_ms = granted_ms.or(Some(world.now_ms - restarted_ms));
            }
        }
        let granted_ms = granted_ms.expect("a vote after the silence");
        assert!(granted_ms >= silence_ms(), "{granted_ms} ms after its restart a voter granted a vote");
    }
}

#[test]
fn a_leader_that_restarts_at_once_does_not_lead_on() {
    for seed in 1..=10 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        let term = metrics(&world, led_by).current_term;
        world.crash(led_by, true);
        world.start(led_by);
        for _ in 0..1_500 {
            world.step().unwrap();
            if let Some(metrics) = world.nodes[led_by].metrics() {
                let leads_on = metrics.state == ServerState::Leader && metrics.current_term == term;
                assert!(!leads_on, "of seed {seed}");
            }
        }
        finish_quietly(&mut world);
    }
}

/// The leader is replaced in each way that does not need its consent, or in which it does not see the end.
#[test]
fn a_leader_that_is_replaced_answers_no_strong_read_that_misses_a_write_of_its_successor() {
    for (attack, seeds) in
        [(Attack::CutOff, 12), (Attack::Restart, 4), (Attack::HandOver, 4), (Attack::LateHandOver, 4)]
    {
        for seed in 1..=seeds {
            let (mut world, led_by) = cluster(seed, [SLOW_PERMILLE, FAST_PERMILLE, FAST_PERMILLE]);
            // A read of an absent key is not known to be stale.
            write(&mut world, led_by, "a");
            siege::besiege(&mut world, 0, attack).unwrap();
            finish_quietly(&mut world);
        }
    }
}

#[test]
fn a_voter_that_restarts_neither_votes_nor_stands_for_a_lease() {
    let (mut world, led_by) = cluster(1, [1_000; 3]);
    write(&mut world, led_by, "x");
    let (voter, other) = ((led_by + 1) % 3, metrics(&world, (led_by + 2) % 3).id);
    (0..3).for_each(|number| world.crash(number, true));
    world.messages.clear();
    let silent_until_ms = world.now_ms + silence_ms();
    world.start(voter);
    until(&mut world, |world| world.nodes[voter].handle().is_some());
    assert!(metrics(&world, voter).vote.leader_id.term > 0);
    let known = status(&world, voter).leader;
    assert_eq!(known, None, "it voted for one before it was restarted, and has heard none since");

    let envelope = envelope(&world, voter);
    let vote = encode(&VoteRequest::<TypeConfig>::new(Vote::new(99, other), None)).unwrap();
    let is_silent = |answer: &_| matches!(answer, Err(Error::Refused(reason)) if reason.contains("just restarted"));
    for call in [Call::Vote, Call::PreVote, Call::TransferLeader] {
        let answer = ask(&mut world, voter, call, envelope, vote.clone());
        assert!(is_silent(&answer), "{call:?}: {answer:?}");
    }
    // Only this node runs, so nobody else has sent one.
    let stood = |world: &World| world.messages.iter().any(|(message, _)| message.contains("vote"));
    while world.now_ms < silent_until_ms {
        assert!(!stood(&world), "{:?}", world.messages);
        world.step().unwrap();
    }
    until(&mut world, stood);
    assert!(!is_silent(&ask(&mut world, voter, Call::PreVote, envelope, vote)));
}

#[test]
fn nodes_that_start_at_once_form_one_cluster() {
    for seed in 1..=20 {
        let (mut world, _) = cluster(seed, [1_000; 3]);
        until(&mut world, |world| (0..3).all(|number| is_ready(world, number)));
        let ids: BTreeSet<_> = (0..3).map(|number| status(&world, number).cluster).collect();
        assert!(ids.len() == 1 && !ids.contains(&None), "{ids:?}");
    }
}

#[test]
fn a_node_that_lost_its_disk_does_not_learn_its_old_cluster_from_a_founder_without_a_log() {
    for seed in 1..=10 {
        let mut world = three(seed, [1_000; 3]);
        (0..3).for_each(|number| world.start(number));
        until(&mut world, |world| world.nodes[2].is_identified());
        // It founds the cluster, and hears nothing from it afterwards.
        cut_off(&mut world, 2);
        until(&mut world, |world| leader(world).is_some());
        let led_by = leader(&world).unwrap();
        let loser = 1 - led_by;
        let lost_id = metrics(&world, loser).id;
        steps(&mut world, 200);
        world.crash(loser, true);
        world.nodes[loser].wipe();
        // It meets only that founder.
        world.cuts.heal();
        cut_off(&mut world, led_by);
        world.start(loser);
        for _ in 0..4_000 {
            world.step().unwrap();
            if world.nodes[loser].is_identified() {
                assert_ne!(metrics(&world, loser).id, lost_id, "of seed {seed}");
            }
        }
        world.cuts.heal();
        world.clients_act = true;
        finish(&mut world).unwrap_or_else(|violation| panic!("seed {seed}: {violation:?}"));
    }
}

/// The others may have cut their logs further than this node, and may be behind it.
#[test]
fn a_node_that_lost_its_state_alone_goes_on_under_its_id_with_its_log() {
    let mut fetched = 0;
    for seed in 1..=30 {
        let node = |number| Node::new(number, &[0, 1, 2], seed + number as u64, 1_000, 8);
        let mut world = World::new(seed, (0..3).map(node).collect());
        form(&mut world).unwrap();
        world.clients_act = true;
        steps(&mut world, 200 + 250 * (seed % 10));
        let loser = (seed % 3) as usize;
        let id = metrics(&world, loser).id;
        let was_cut = metrics(&world, loser).purged.is_some();
        world.crash(loser, true);
        world.nodes[loser].data_disk.wipe();
        world.messages.clear();
        world.start(loser);
        until(&mut world, |world| world.nodes[loser].handle().is_some());
        let asked = world.messages.iter().any(|(message, _)| message.contains("fetch-snapshot"));
        assert!(asked || !was_cut, "seed {seed}");
        fetched += u32::from(asked);
        assert_eq!(metrics(&world, loser).id, id);
        finish(&mut world).unwrap_or_else(|violation| panic!("seed {seed}: {violation:?}"));
    }
    assert!((5..30).contains(&fetched), "{fetched}");
}

/// Two of three nodes lose their disks and form a new cluster while the third is away: under the same URLs and, since the
/// ids of founders are derived from URLs, under the same node ids. If the third could talk to them, either its cluster or
/// theirs would be overwritten.
#[test]
fn two_clusters_of_the_same_urls_never_mix() {
    let (mut world, _) = cluster(1, [1_000; 3]);
    until(&mut world, |world| is_ready(world, 0));
    // The second write makes the commit of the first durable.
    for key in ["old", "old/2"] {
        write(&mut world, 0, key);
        until(&mut world, |world| (0..3).all(|number| has(world, number, key)));
    }
    steps(&mut world, 100);
    let old = status(&world, 0).cluster;
    (0..3).for_each(|number| world.crash(number, true));
    // The invariants compare the logs of one cluster.
    world.is_observed = false;
    for number in [1, 2] {
        world.nodes[number].wipe();
        world.start(number);
    }
    until(&mut world, |world| is_ready(world, 1) && is_ready(world, 2));
    for number in [1, 2] {
        assert_eq!(metrics(&world, number).id, node_id(&url(number)));
    }
    write(&mut world, 1, "new");

    world.start(0);
    for round in 0..20 {
        steps(&mut world, 100);
        write(&mut world, 1, &format!("new/{round}"));
        let (left, right) = (status(&world, 0), status(&world, 1));
        assert_eq!((left.cluster, left.has_quorum, left.healthy_nodes), (old, false, 1));
        assert!(right.cluster != old && right.has_quorum, "{right:?}");
    }
    assert!(has(&world, 0, "old") && !has(&world, 0, "new"));
    assert!([1, 2].into_iter().all(|number| has(&world, number, "new") && !has(&world, number, "old")));
}

#[test]
fn a_call_that_names_no_cluster_is_refused_by_a_member() {
    let (mut world, _) = cluster(1, [1_000; 3]);
    until(&mut world, |world| is_ready(world, 0));
    let to = metrics(&world, 0).id;
    for call in [Call::Append, Call::Vote, Call::PreVote, Call::TransferLeader, Call::Propose, Call::ReadIndex] {
        for (cluster, why) in [(None, "which cluster"), (ClusterId::new(1), "belongs to cluster")] {
            let refused = ask(&mut world, 0, call, Envelope { to, cluster }, Bytes::new());
            assert!(matches!(&refused, Err(Error::Refused(reason)) if reason.contains(why)), "{call:?}: {refused:?}");
        }
    }
}

/// Lets clients continue for a while, comes to rest, and checks the course.
fn finish_quietly(world: &mut World) {
    world.clients_act = true;
    // Too many reads wait at once for that. A read that misses a write is noticed without it.
    world.looks_for_orders = false;
    finish(world).unwrap_or_else(|violation| panic!("{violation:?}"));
}
