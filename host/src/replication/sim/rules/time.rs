//! The rules of time: a leader's wrong clock moves the cluster's time by no more than a bound, and a lease does not outlive a
//! suspension of the leader's machine.

use std::time::Duration;

use openraft::EntryPayload;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};

use super::*;
use crate::limits::CLOCK_OFFSET_MAX;
use crate::replication::sim::clocks;
use crate::replication::sim::node::WALL_START_MS;
use crate::replication::types::LogEntry;
use openraft::entry::RaftEntry;

/// Intervals at which strong reads and writes begin.
const READ_EVERY_MS: u64 = 9;
const WRITE_EVERY_MS: u64 = 37;

const DAY_MS: i64 = 24 * 3_600_000;

/// A clock that was never set: 2020.
const NEVER_SET_MS: i64 = -122_000_000_000;

fn bound_ms() -> u64 {
    u64::try_from(CLOCK_OFFSET_MAX.as_millis()).unwrap()
}

/// The time of the newest write that a node has applied.
fn applied_ms(world: &World, number: usize) -> u64 {
    world.nodes[number].handle().unwrap().applied_time_ms().unwrap()
}

/// Writes on a node, and returns the time of that write and its distance to the right time.
fn written_at(world: &mut World, number: usize, key: &str) -> (u64, u64) {
    write(world, number, key);
    let time_ms = applied_ms(world, leader(world).unwrap());
    (time_ms, time_ms.abs_diff(WALL_START_MS + world.now_ms))
}

/// Three nodes that have stamped a round.
fn stamped(seed: u64, set: impl FnOnce(&mut World)) -> World {
    let mut world = three(seed, [1_000; 3]);
    set(&mut world);
    form(&mut world).unwrap();
    let has_time = |node: &Node| node.handle().is_some_and(|handle| handle.applied_time_ms().is_some());
    until(&mut world, |world| world.nodes.iter().all(has_time));
    world
}

/// For a while, reads a key strongly on one node and writes it on others.
fn read_and_write(world: &mut World, ms: u64, reader: Option<usize>, writers: &[usize]) {
    for passed in 0..ms {
        for reader in reader.iter().filter(|_| passed.is_multiple_of(READ_EVERY_MS)) {
            world.begin(*reader, Request::StrongRead { key: "a".to_owned() }, DEADLINE);
        }
        for writer in writers.iter().filter(|_| passed.is_multiple_of(WRITE_EVERY_MS)) {
            world.begin(*writer, put("a"), DEADLINE);
        }
        world.step().unwrap();
    }
}

#[test]
fn a_clock_that_was_wrong_from_the_start_moves_the_time_by_no_more_than_the_bound() {
    for (seed, ahead_ms) in (1..=6).zip([NEVER_SET_MS, 25 * DAY_MS].into_iter().cycle()) {
        let mut world = stamped(seed, |world| clocks::set(world, 0, ahead_ms));
        for number in [0, 1, 0] {
            lead(&mut world, number);
            let (time_ms, off_ms) = written_at(&mut world, number, "a");
            assert!(off_ms <= bound_ms() + 20, "seed {seed}: led by {number}, at {time_ms}: {off_ms} ms off");
        }
    }
}

#[test]
fn a_step_of_the_leaders_clock_shows_in_no_stamp() {
    for seed in 1..=3 {
        let mut world = stamped(seed, |_| {});
        lead(&mut world, 0);
        let (mut before_ms, _) = written_at(&mut world, 0, "a");
        for ahead_ms in [2 * DAY_MS, -2 * DAY_MS, 0, NEVER_SET_MS, DAY_MS] {
            // Between two hellos.
            clocks::set(&mut world, 0, ahead_ms);
            let (time_ms, off_ms) = written_at(&mut world, 0, "a");
            assert!(off_ms <= bound_ms() + 20, "at {time_ms}: {off_ms} ms off");
            assert!(time_ms >= before_ms, "{before_ms}, then {time_ms}");
            before_ms = time_ms;
        }
    }
}

/// The leader is lost right after a restart of everything, and the node with the wrong clock is elected by one that it has hardly heard.
#[test]
fn a_new_leader_with_a_wrong_clock_does_not_move_the_time() {
    for seed in 1..=10 {
        let mut world = stamped(seed, |world| clocks::set(world, 0, 2 * DAY_MS));
        lead(&mut world, 1);
        (0..3).for_each(|number| world.crash(number, true));
        [0, 1].into_iter().for_each(|number| world.start(number));
        until(&mut world, |world| leader(world).is_some());
        let led_by = leader(&world).unwrap();
        let (time_ms, off_ms) = written_at(&mut world, led_by, "a");
        assert!(off_ms <= bound_ms() + 200, "seed {seed}: led by {led_by}, at {time_ms}: {off_ms} ms off");
    }
}

#[test]
fn a_node_whose_clock_is_far_from_the_others_says_so_and_so_do_they() {
    let mut world = stamped(1, |_| {});
    until(&mut world, |world| (0..3).all(|number| is_ready(world, number)));
    steps(&mut world, 500);
    for number in 0..3 {
        let status = status(&world, number);
        assert_eq!(status.clock_offset_ms.map(|offset_ms| offset_ms.abs() < 20), Some(true), "{status:?}");
        assert!(status.nodes.iter().all(|node| node.far_clock_ms().is_none()), "{status:?}");
    }
    clocks::set(&mut world, 2, DAY_MS);
    let far_ms = status(&world, 2).far_clock_ms().expect("at once");
    assert!((far_ms - DAY_MS).abs() < 20, "{far_ms}");
    steps(&mut world, 500);
    for number in 0..2 {
        let status = status(&world, number);
        assert_eq!(status.far_clock_ms(), None);
        let far: Vec<_> = status.nodes.iter().filter(|node| node.far_clock_ms().is_some()).collect();
        assert!(far.len() == 1 && far[0].url == url(2), "{status:?}");
    }
    clocks::set(&mut world, 2, 0);
    assert_eq!(status(&world, 2).far_clock_ms(), None);
}

#[test]
fn a_leader_whose_machine_was_suspended_answers_no_strong_read_that_misses_a_write_of_its_successor() {
    for seed in 1..=10 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        let others = [(led_by + 1) % 3, (led_by + 2) % 3];
        let before_ms = world.rng.u64(400..600);
        read_and_write(&mut world, before_ms, Some(led_by), &[led_by]);
        // Nothing tells it when it wakes that the world has gone on.
        cut_off(&mut world, led_by);
        clocks::suspend(&mut world, led_by, 1_500);
        read_and_write(&mut world, 1_500, None, &others);
        read_and_write(&mut world, 400, Some(led_by), &[]);
        world.cuts.heal();
        finish_quietly(&mut world);
    }
}

fn staleness(world: &World, number: usize) -> Duration {
    let running = world.nodes[number].running.as_ref().unwrap();
    running.within(|| world.nodes[number].handle().unwrap().staleness())
}

/// It may lack what its predecessors had committed, so a node that has applied as much is not up to date.
#[test]
fn a_new_leader_that_has_committed_nothing_yet_does_not_vouch_for_a_local_read() {
    let (mut world, led_by) = cluster(1, [1_000; 3]);
    let (follower, elected) = ((led_by + 1) % 3, (led_by + 2) % 3);
    cut_off(&mut world, follower);
    steps(&mut world, 2_000);
    let before = metrics(&world, follower);
    let (term, envelope) = (before.current_term + 100, envelope(&world, follower));
    let vote = Vote { committed: true, ..Vote::new(term, metrics(&world, elected).id) };
    let blank =
        LogEntry::new(openraft::LogId::new(*vote.leader_id(), before.last_log_index.unwrap() + 1), EntryPayload::Blank);
    let last = before.last_applied;
    for (entries, leader_commit, is_new) in
        [(vec![], last, false), (vec![blank.clone()], last, false), (vec![], Some(blank.log_id), true)]
    {
        let prev_log_id = if is_new { leader_commit } else { last };
        let request = AppendEntriesRequest::<TypeConfig> { vote, prev_log_id, entries, leader_commit };
        for _ in 0..2 {
            let answer = ask(&mut world, follower, Call::Append, envelope, encode(&request).unwrap()).unwrap();
            assert!(decode::<AppendEntriesResponse<TypeConfig>>(&answer).unwrap().is_success());
        }
        let is_up_to_date = staleness(&world, follower) < Duration::from_millis(500);
        assert_eq!(is_up_to_date, is_new, "{:?}", staleness(&world, follower));
    }
}

#[test]
fn a_local_read_counts_the_suspension_of_the_machine_as_staleness() {
    let (mut world, led_by) = cluster(1, [1_000; 3]);
    for number in 0..3 {
        assert!(staleness(&world, number) < Duration::from_millis(200));
    }
    for number in [led_by, (led_by + 1) % 3] {
        cut_off(&mut world, number);
        steps(&mut world, 20);
        clocks::suspend(&mut world, number, 60_000);
        steps(&mut world, 60_000);
        steps(&mut world, 10);
        assert!(staleness(&world, number) > Duration::from_secs(60), "{:?}", staleness(&world, number));
        world.cuts.heal();
        steps(&mut world, 2_000);
        assert!(staleness(&world, number) < Duration::from_millis(200));
    }
}
