//! The identity of a node that lost its disk: it never returns under its former id (P8).

use super::chaos::leader;
use super::course::finish;
use super::node::Node;
use super::world::World;

fn is_identified(world: &World, number: usize) -> bool {
    world.nodes[number].handle().is_some_and(|handle| handle.0.server.identity.is_identified())
}

#[test]
fn a_node_that_lost_its_disk_does_not_learn_its_old_cluster_from_a_founder_without_a_log() {
    for seed in 1..=10 {
        let node = |number| Node::new(number, &[0, 1, 2], seed + number as u64, 1_000, 10_000);
        let mut world = World::new(seed, (0..3).map(node).collect());
        (0..3).for_each(|number| world.start(number));
        while !is_identified(&world, 2) {
            world.step().unwrap();
        }
        // It founds the cluster, and hears nothing from it afterwards.
        (0..2).for_each(|other| world.cuts.cut_both(2, other));
        let led_by = loop {
            world.step().unwrap();
            if let Some(leader) = leader(&world) {
                break leader;
            }
        };
        let loser = 1 - led_by;
        let lost_id = world.nodes[loser].handle().unwrap().0.server.view.raft.id();
        (0..200).for_each(|_| world.step().unwrap());
        world.crash(loser, true);
        world.nodes[loser].wipe();
        // It meets only that founder.
        world.cuts.heal();
        (0..3).filter(|other| *other != led_by).for_each(|other| world.cuts.cut_both(led_by, other));
        world.start(loser);
        for _ in 0..4_000 {
            world.step().unwrap();
            if is_identified(&world, loser) {
                assert_ne!(world.nodes[loser].handle().unwrap().0.server.view.raft.id(), lost_id, "of seed {seed}");
            }
        }
        world.cuts.heal();
        world.clients_act = true;
        finish(&mut world).unwrap_or_else(|violation| panic!("seed {seed}: {violation:?}"));
    }
}
