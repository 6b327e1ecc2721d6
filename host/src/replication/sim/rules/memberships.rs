//! Changes of the membership that meet each other, or the end of a leader.

use super::*;
use crate::replication::Role;

/// How late the node answers that becomes a learner: after it has become one.
const ASKED_LATE_MS: u64 = 150;

/// The node has lost its disk and is about to be replaced by itself, under another id.
#[test]
fn a_node_that_is_removed_while_it_rejoins_stays_removed() {
    let (mut world, led_by) = cluster(1, [1_000; 3]);
    let loser = (led_by + 1) % 3;
    world.crash(loser, true);
    world.nodes[loser].wipe();
    world.start(loser);
    let with_url = |world: &World| {
        let nodes = metrics(world, led_by).membership_config;
        nodes.nodes().filter(|(_, node)| url_of(node) == url(loser)).count()
    };
    until(&mut world, |world| with_url(world) == 2);
    let removed = Arc::new(Mutex::new(None));
    let slot = removed.clone();
    world.nodes[led_by].spawn(async move |handle| {
        let done = handle.remove_member(&url(loser), Instant::now() + DEADLINE).await;
        *slot.lock() = Some(done);
    });
    until(&mut world, |_| removed.lock().is_some());
    removed.lock().take().unwrap().unwrap();
    steps(&mut world, 1_000);
    assert_eq!(with_url(&world), 0);
}

/// The leader is lost in the middle of a change from three voters to two.
#[test]
fn a_joint_membership_is_completed_by_the_next_leader() {
    let (mut world, led_by) = cluster(1, [1_000; 3]);
    let others = [(led_by + 1) % 3, (led_by + 2) % 3];
    let rest = begin_to_leave(&mut world, led_by, others);
    world.crash(led_by, true);
    until(&mut world, |world| configs(world, others[0]) == vec![rest.clone()]);
    write(&mut world, others[0], "after");
}

/// A voter is elected in the middle of a change that takes its vote away, and then completes it.
#[test]
fn a_leader_without_a_vote_hands_over() {
    for seed in 1..=5 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        until(&mut world, |world| (0..3).all(|number| is_ready(world, number)));
        let (leaving, other) = ((led_by + 1) % 3, (led_by + 2) % 3);
        let rest = begin_to_leave(&mut world, led_by, [led_by, other]);
        let id = metrics(&world, leaving).id;
        world.nodes[led_by].spawn(async move |handle| {
            handle.0.view.raft.raft().trigger().transfer_leader(id).await.unwrap();
        });
        until(&mut world, |world| leader(world) == Some(leaving));
        until(&mut world, |world| configs(world, other) == vec![rest.clone()]);
        until(&mut world, |world| leader(world).is_some_and(|now| now != leaving));
        write(&mut world, leaving, "after");
    }
}

/// Has the leader append the first half of a change after which only `rest` have votes, as if it were lost then. Returns when the
/// others have it, with the ids of `rest`.
fn begin_to_leave(world: &mut World, led_by: usize, rest: [usize; 2]) -> BTreeSet<u64> {
    let rest: BTreeSet<u64> = rest.iter().map(|number| metrics(world, *number).id).collect();
    let before = metrics(world, led_by).membership_config;
    let nodes: BTreeMap<u64, _> = before.membership().nodes().map(|(id, node)| (*id, node.clone())).collect();
    let joint = openraft::Membership::new(vec![before.voter_ids().collect(), rest.clone()], nodes).unwrap();
    world.nodes[led_by].spawn(async move |handle| {
        let raft = handle.0.view.raft.raft();
        raft.append_membership(joint, openraft::EntryPayload::<_, _, _>::Blank, []).await.unwrap();
    });
    until(world, |world| (0..3).all(|number| configs(world, number).len() == 2));
    rest
}

fn configs(world: &World, number: usize) -> Vec<BTreeSet<u64>> {
    metrics(world, number).membership_config.membership().get_joint_config().clone()
}

/// Its list names those it was started with, and a node that was added later leads.
#[test]
fn a_node_that_lost_its_disk_rejoins_though_it_does_not_know_the_leader() {
    for seed in 1..=5 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        until(&mut world, |world| (0..3).all(|number| is_ready(world, number)));
        world.nodes.push(Node::new(3, &[0, 1, 2], seed + 3, 1_000, 10_000));
        world.start(3);
        world.nodes[led_by].spawn(async move |handle| {
            handle.add_member(&url(3), Role::Voter, Instant::now() + 2 * DEADLINE).await.unwrap();
        });
        until(&mut world, |world| metrics(world, led_by).membership_config.voter_ids().count() == 4);
        lead(&mut world, 3);
        let loser = (led_by + 1) % 3;
        world.crash(loser, true);
        world.nodes[loser].wipe();
        world.start(loser);
        let is_member = |world: &World| {
            let id = world.nodes[loser].is_identified().then(|| metrics(world, loser).id);
            metrics(world, 3).membership_config.voter_ids().any(|voter| Some(voter) == id)
        };
        until(&mut world, is_member);
        assert_eq!(leader(&world), Some(3), "of seed {seed}");
        finish_quietly(&mut world);
    }
}

/// While the removal of one node asks the others whether they can be reached, the one that answers late becomes a learner. The
/// removal was planned with it as a voter.
#[test]
fn a_removal_does_not_undo_a_change_that_was_made_meanwhile() {
    for seed in 1..=5 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        until(&mut world, |world| (0..3).all(|number| is_ready(world, number)));
        let (demoted, removed) = ((led_by + 1) % 3, (led_by + 2) % 3);
        let ids = [led_by, demoted].map(|number| metrics(&world, number).id);
        world.nodes[demoted].paused_until_ms = Some(world.now_ms + ASKED_LATE_MS);
        let (demoted, removed) = (url(demoted), url(removed));
        world.nodes[led_by].spawn(async move |handle| {
            handle.add_member(&demoted, Role::Learner, Instant::now() + DEADLINE).await.unwrap();
        });
        world.nodes[led_by].spawn(async move |handle| {
            handle.remove_member(&removed, Instant::now() + DEADLINE).await.unwrap();
        });
        let voters = |world: &World| metrics(world, led_by).membership_config.voter_ids().collect::<Vec<_>>();
        until(&mut world, |world| voters(world).len() == 2);
        assert!(!voters(&world).contains(&ids[1]), "of seed {seed}");
        steps(&mut world, 1_000);
        assert_eq!(voters(&world), [ids[0]], "of seed {seed}");
    }
}
