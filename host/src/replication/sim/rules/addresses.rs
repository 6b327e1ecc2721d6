//! Members that come back at other URLs, and copies of their disks.

use super::*;
use crate::replication::sim::node::PeerList;
use crate::storage::memory::SimDisk;

/// The URLs of all nodes but one.
fn all_but(world: &World, number: usize) -> Vec<String> {
    world.nodes.iter().filter(|node| node.number != number).map(|node| node.url.clone()).collect()
}

/// Three nodes, one of which has moved and was followed, and its disks from before.
fn one_that_was_followed(seed: u64) -> (World, usize, [SimDisk; 2]) {
    let (mut world, led_by) = cluster(seed, [1_000; 3]);
    write(&mut world, led_by, "x");
    let mover = (led_by + 1) % 3;
    steps(&mut world, 500);
    world.crash(mover, true);
    let before = [world.nodes[mover].log_disk.copy(), world.nodes[mover].data_disk.copy()];
    world.nodes[mover].url = "http://elsewhere".to_owned();
    world.start(mover);
    until(&mut world, |world| moves::is_followed(world, mover));
    (world, mover, before)
}

#[test]
fn members_that_all_move_find_each_other_by_lists_that_also_lead_nowhere_and_to_themselves() {
    for seed in 1..=5 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        write(&mut world, led_by, "x");
        let ids: Vec<u64> = (0..3).map(|number| metrics(&world, number).id).collect();
        (0..3).for_each(|number| world.crash(number, true));
        for node in &mut world.nodes {
            let former = std::mem::replace(&mut node.url, format!("{}-moved", url(node.number)));
            // In some seeds the former URL still leads to the node.
            node.aliases = if seed % 2 == 0 { vec![former] } else { Vec::new() };
        }
        for number in 0..3 {
            let extra = [url(number), "http://nowhere".to_owned()];
            let urls = all_but(&world, number).into_iter().chain(extra).collect();
            world.nodes[number].peers = PeerList::right(urls);
            world.start(number);
        }
        until(&mut world, |world| (0..3).all(|number| is_ready(world, number)));
        until(&mut world, |world| (0..3).all(|number| moves::is_followed(world, number)));
        assert_eq!(ids, (0..3).map(|number| metrics(&world, number).id).collect::<Vec<_>>());
        finish_quietly(&mut world);
    }
}

/// A copy could acknowledge and vote beside the original, each forgetting what the other has promised.
#[test]
fn a_copy_of_a_disk_takes_no_part_while_the_original_runs() {
    for seed in 1..=5 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        write(&mut world, led_by, "x");
        let original = (led_by + 1) % 3;
        let mut copy = Node::new(3, &[0, 1, 2, 3], seed, 1_000, 10_000);
        copy.log_disk = world.nodes[original].log_disk.copy();
        copy.data_disk = world.nodes[original].data_disk.copy();
        world.nodes.push(copy);
        world.start(3);
        until(&mut world, |world| world.nodes[3].handle().is_some());
        let term = metrics(&world, led_by).current_term + 1_000;
        let candidate = metrics(&world, led_by).id;
        for round in 0..20 {
            assert!(!grants(&mut world, 3, Vote::new(term + round, candidate)), "of seed {seed}");
            steps(&mut world, 50);
        }
        let standing = world.nodes[3].handle().unwrap().0.view.check_standing();
        assert!(matches!(standing, Err(Error::Barred(_))), "of seed {seed}: {standing:?}");
        let original = world.nodes[original].handle().unwrap().0.view.check_standing();
        assert!(original.is_ok(), "of seed {seed}: {original:?}");
        write(&mut world, led_by, "x");
        world.crash(3, false);
        world.nodes.pop();
        finish_quietly(&mut world);
    }
}

/// It has missed the membership that has it elsewhere, so by its own log it has its place.
#[test]
fn a_member_that_moves_back_before_it_knows_that_it_was_followed_is_followed_again() {
    for seed in 1..=5 {
        let (mut world, mover, before) = one_that_was_followed(seed);
        world.crash(mover, true);
        [world.nodes[mover].log_disk, world.nodes[mover].data_disk] = before;
        world.nodes[mover].url = url(mover);
        world.start(mover);
        until(&mut world, |world| moves::is_followed(world, mover));
        finish_quietly(&mut world);
    }
}

/// As before, and the others have moved as well: neither finds the other by the log.
#[test]
fn a_member_that_has_its_place_by_an_old_log_finds_others_that_have_moved_by_its_list() {
    for seed in 1..=5 {
        let (mut world, mover, before) = one_that_was_followed(seed);
        (0..3).for_each(|number| world.crash(number, true));
        [world.nodes[mover].log_disk, world.nodes[mover].data_disk] = before;
        for node in &mut world.nodes {
            node.url = if node.number == mover { url(mover) } else { format!("{}-moved", url(node.number)) };
        }
        (0..3).for_each(|number| world.nodes[number].peers = PeerList::right(all_but(&world, number)));
        let others = [(mover + 1) % 3, (mover + 2) % 3];
        others.into_iter().for_each(|number| world.start(number));
        until(&mut world, |world| others.iter().all(|number| moves::is_followed(world, *number)));
        // By now the others have their places, and no longer look for nodes of their lists.
        steps(&mut world, 500);
        world.start(mover);
        until(&mut world, |world| moves::is_followed(world, mover));
        finish_quietly(&mut world);
    }
}
