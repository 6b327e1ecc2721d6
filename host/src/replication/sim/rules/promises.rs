//! What others count on: that a vote is durable before it is given, and that only the node with an id answers for it.
//!
//! Random faults do not meet the moments at which these rules matter.

use super::*;

/// Time that a sync of the voter's log takes.
const SYNC_MS: u64 = 40;

/// Of two candidates of one term, openraft prefers the one with the higher id. If the voter forgot that it has made that one
/// the leader, it would help the other to lead as well.
#[test]
fn a_voter_that_crashes_at_once_still_knows_its_vote() {
    for seed in 1..=10 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        let voter = (led_by + 1) % 3;
        let term = metrics(&world, led_by).current_term + 1_000;
        let mut candidates = [led_by, (led_by + 2) % 3].map(|number| metrics(&world, number).id);
        candidates.sort_unstable();
        cut_off(&mut world, voter);
        steps(&mut world, 2 * silence_ms());
        world.nodes[voter].log_disk.set_sync_time(SYNC_MS..=SYNC_MS);
        assert!(grants(&mut world, voter, Vote::new(term, candidates[1])), "of seed {seed}");
        world.crash(voter, true);
        world.start(voter);
        steps(&mut world, 2 * silence_ms());
        assert!(!grants(&mut world, voter, Vote::new(term, candidates[0])), "of seed {seed}");
        assert!(grants(&mut world, voter, Vote::new(term + 1_000, candidates[0])), "of seed {seed}");
    }
}

/// The leader still has an id in its membership that nobody has any more, and calls it at the URL of the node that had it.
#[test]
fn a_node_that_lost_its_disk_does_not_acknowledge_as_the_node_that_it_was() {
    for seed in 1..=5 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        write(&mut world, led_by, "x");
        let (loser, other) = ((led_by + 1) % 3, (led_by + 2) % 3);
        world.crash(other, true);
        world.crash(loser, true);
        world.nodes[loser].wipe();
        world.start(loser);
        until(&mut world, |world| world.nodes[loser].is_identified());
        for round in 0..20 {
            world.begin(led_by, put(&format!("x/{round}")), DEADLINE);
            steps(&mut world, 100);
        }
        assert!(!has(&world, led_by, "x/0"), "one of three voters is left, of seed {seed}");
        world.start(other);
        until(&mut world, |world| is_ready(world, loser));
        finish_quietly(&mut world);
    }
}

/// The leader and this voter alone have acknowledged a write. Without it, the voter must not help another to lead.
#[test]
fn a_voter_that_lost_what_it_acknowledged_elects_nobody_who_lacks_it() {
    for seed in 1..=5 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        let (loser, other) = ((led_by + 1) % 3, (led_by + 2) % 3);
        for round in 0..20 {
            write(&mut world, led_by, &format!("x/{round}"));
        }
        until(&mut world, |world| has(world, other, "x/19"));
        cut_off(&mut world, other);
        write(&mut world, led_by, "a");
        world.nodes[loser].lies = true;
        world.crash(loser, true);
        world.crash(led_by, true);
        world.cuts.heal();
        world.start(loser);
        for _ in 0..3_000 {
            world.step().unwrap();
            assert_eq!(leader(&world), None, "of seed {seed}");
        }
        world.start(led_by);
        until(&mut world, |world| is_ready(world, loser));
        assert!((0..3).all(|number| has(&world, number, "a")), "of seed {seed}");
        finish_quietly(&mut world);
    }
}

/// The leader knows that the node had acknowledged more than it has now.
#[test]
fn a_voter_whose_loss_was_accepted_is_sent_again_what_it_lost() {
    for seed in 1..=10 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        let loser = (led_by + 1) % 3;
        for round in 0..20 {
            write(&mut world, led_by, &format!("x/{round}"));
        }
        until(&mut world, |world| has(world, loser, "x/19"));
        world.nodes[loser].lies = true;
        world.crash(loser, true);
        world.nodes[loser].accepts_loss = true;
        world.start(loser);
        until(&mut world, |world| world.nodes[loser].handle().is_some() && has(world, loser, "x/19"));
        finish_quietly(&mut world);
    }
}
