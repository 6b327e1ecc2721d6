//! Leases and restarts: which node may vote, stand for election and answer strong reads, and when.
//!
//! A leader with a lease answers strong reads by itself: for that time after a majority last heard it, no voter votes for
//! another node. This rests on four rules, each tested here: a restarted voter, which has forgotten its promises, keeps
//! silent for the length of a lease; a restarted leader does not continue to lead; a leader's lease ends before the
//! promises of its voters, even if their clocks run at different rates; a leader that hands over gives up its lease, since
//! the votes for its successor ignore leases.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::ServerState;
use openraft::raft::{VoteRequest, VoteResponse};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::chaos::leader;
use super::course::{finish, form};
use super::history::Request;
use super::node::{Node, metrics_of, url};
use super::world::World;
use crate::replication::lease::RESTART_MARGIN;
use crate::replication::peer::protocol::{Call, Envelope};
use crate::replication::types::{Metrics, TypeConfig, Vote, decode, encode};
use crate::replication::{Error, Timing};

/// Intervals at which strong reads and writes begin. Many reads wait for a long time, and the search for their order is
/// slow.
const READ_EVERY_MS: u64 = 9;
const WRITE_EVERY_MS: u64 = 37;

/// Duration of a voter's silence after a restart.
fn silence_ms() -> u64 {
    u64::try_from((Timing::LAN.election_max + RESTART_MARGIN).as_millis()).unwrap()
}

/// Three nodes with these clock rates, and their leader.
fn cluster(seed: u64, clocks: [u64; 3]) -> (World, usize) {
    let node = |(number, clock)| Node::new(number, &[0, 1, 2], seed + number as u64, clock, 10_000);
    let mut world = World::new(seed, clocks.into_iter().enumerate().map(node).collect());
    form(&mut world).unwrap();
    // The followers learn about it.
    steps(&mut world, 100);
    let leader = leader(&world).unwrap();
    (world, leader)
}

fn steps(world: &mut World, ms: u64) {
    (0..ms).for_each(|_| world.step().unwrap());
}

fn metrics(world: &World, number: usize) -> Option<Metrics> {
    world.nodes[number].handle().map(metrics_of)
}

fn id(world: &World, number: usize) -> u64 {
    metrics(world, number).unwrap().id
}

/// Makes a call as another node would, and waits for its answer.
fn ask(world: &mut World, number: usize, call: Call, body: Bytes) -> Result<Bytes, Error> {
    let node = &world.nodes[number];
    let handle = node.handle().unwrap().clone();
    let envelope = Envelope { to: id(world, number), cluster: handle.0.server.identity.cluster() };
    let answer = Arc::new(Mutex::new(None));
    let slot = answer.clone();
    node.running.as_ref().unwrap().spawn(async move {
        let answer = handle.serve(call, envelope, body).await;
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

fn cut_off(world: &mut World, number: usize) {
    for other in (0..world.nodes.len()).filter(|other| *other != number) {
        world.cuts.cut_both(number, other);
    }
}

#[test]
fn after_a_restart_of_all_nobody_stands_or_leads_until_the_silence_is_over() {
    for seed in 1..=5 {
        let (mut world, _) = cluster(seed, [1_000; 3]);
        let term = metrics(&world, 0).unwrap().current_term;
        (0..3).for_each(|number| world.crash(number, true));
        let restarted_ms = world.now_ms;
        (0..3).for_each(|number| world.start(number));
        while leader(&world).is_none() {
            world.step().unwrap();
            let silent = world.now_ms < restarted_ms + silence_ms();
            for metrics in (0..3).filter_map(|number| metrics(&world, number)).filter(|_| silent) {
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
        let (candidate, term) = (id(&world, (led_by + 2) % 3), metrics(&world, led_by).unwrap().current_term);
        world.crash(voter, true);
        // It hears nothing from the leader that its promise protects.
        cut_off(&mut world, voter);
        let restarted_ms = world.now_ms;
        world.start(voter);
        while world.nodes[voter].handle().is_none() {
            world.step().unwrap();
        }
        let mut granted_ms = None;
        while world.now_ms < restarted_ms + 2 * silence_ms() {
            let vote = Vote::new(term + 1_000 + world.now_ms, candidate);
            let last_log_id = Some(openraft::LogId::new(*vote.leader_id(), 1_000_000));
            let request = VoteRequest::<TypeConfig>::new(vote, last_log_id);
            match ask(&mut world, voter, Call::Vote, encode(&request).unwrap()) {
                Ok(answer) if decode::<VoteResponse<TypeConfig>>(&answer).unwrap().vote_granted => {
                    granted_ms = granted_ms.or(Some(world.now_ms - restarted_ms));
                }
                Ok(_) | Err(_) => {}
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
        let term = metrics(&world, led_by).unwrap().current_term;
        world.crash(led_by, true);
        world.start(led_by);
        for _ in 0..1_500 {
            world.step().unwrap();
            if let Some(metrics) = metrics(&world, led_by) {
                let leads_on = metrics.state == ServerState::Leader && metrics.current_term == term;
                assert!(!leads_on, "of seed {seed}");
            }
        }
        finish_quietly(&mut world);
    }
}

#[test]
fn a_leader_that_is_cut_off_answers_no_strong_read_that_misses_a_write_of_its_successor() {
    for seed in 1..=20 {
        // The leader's clock is as slow, and the others' as fast, as allowed.
        let (mut world, led_by) = cluster(seed, [970, 1_030, 1_030]);
        if led_by != 0 {
            hand_over(&mut world, led_by, 0);
        }
        // One voter is cut off before the other, so that it stands for election as soon as the other may vote.
        world.cuts.cut_both(0, 1);
        let before_ms = world.rng.u64(300..800);
        read_and_write(&mut world, before_ms, 0, &[0]);
        cut_off(&mut world, 0);
        read_and_write(&mut world, 700, 0, &[1, 2]);
        world.cuts.heal();
        finish_quietly(&mut world);
    }
}

#[test]
fn a_leader_that_hands_over_answers_no_strong_read_that_misses_a_write_of_its_successor() {
    for seed in 1..=20 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        let successor = (led_by + 1) % 3;
        read_and_write(&mut world, 100, led_by, &[led_by]);
        transfer(&world, led_by, successor);
        // The leader learns late, or never, that another node leads.
        let until_cut_ms = world.rng.u64(1..12);
        read_and_write(&mut world, until_cut_ms, led_by, &[led_by, successor]);
        cut_off(&mut world, led_by);
        read_and_write(&mut world, 500, led_by, &[successor]);
        world.cuts.heal();
        finish_quietly(&mut world);
    }
}

pub(super) fn transfer(world: &World, from: usize, to: usize) {
    let running = world.nodes[from].running.as_ref().unwrap();
    let handle = running.handle.clone().unwrap();
    running.spawn(async move {
        // The caller checks which node leads.
        let _ = handle.transfer_leader(&url(to), Instant::now() + Duration::from_secs(1)).await;
    });
}

/// Moves the leadership from one node to another.
fn hand_over(world: &mut World, from: usize, to: usize) {
    transfer(world, from, to);
    for _ in 0..2_000 {
        world.step().unwrap();
        if leader(world) == Some(to) {
            return steps(world, 100);
        }
    }
    panic!("node {to} does not lead");
}

/// For a while, reads a key strongly on one node and writes it on others.
fn read_and_write(world: &mut World, ms: u64, reader: usize, writers: &[usize]) {
    for passed in 0..ms {
        if passed.is_multiple_of(READ_EVERY_MS) {
            world.begin(reader, Request::StrongRead { key: "a".to_owned() });
        }
        for writer in writers.iter().filter(|_| passed.is_multiple_of(WRITE_EVERY_MS)) {
            world.begin(*writer, Request::Put { keys: vec!["a".to_owned()], expected: None, name: None });
        }
        world.step().unwrap();
    }
}

/// Lets clients continue for a while, comes to rest, and checks the course.
fn finish_quietly(world: &mut World) {
    world.clients_act = true;
    // Too many reads wait at once for that. A read that misses a write is noticed without it.
    world.looks_for_orders = false;
    finish(world).unwrap_or_else(|violation| panic!("{violation:?}"));
}
