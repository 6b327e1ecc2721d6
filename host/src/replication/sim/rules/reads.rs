//! What a read counts on, where a follower hears of writes late, or has forgotten what it knew.

use super::*;
use crate::replication::sim::history::Response;
use crate::replication::sim::network::Weather;

/// How long the leader's answer to the first read is on its way.
const LATE_MS: u64 = 60;

/// Time for which a read waits. A call that was lost is made again only after its timeout.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether a strong read found its key. None while it has not been answered.
fn shown(world: &World, read: usize) -> Option<bool> {
    match world.history.operations[read].response.as_ref()? {
        Response::Read(seen) => Some(seen.is_some()),
        other => panic!("{other:?}"),
    }
}

fn begin_read(world: &mut World, number: usize, key: &str) -> usize {
    world.begin(number, Request::StrongRead { key: key.to_owned() }, PATIENCE);
    world.history.operations.len() - 1
}

/// The answer of the leader is older than a write, and the read is younger than the write.
#[test]
fn a_read_that_arrives_during_an_exchange_waits_for_the_next_one() {
    for seed in 1..=5 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        let follower = (led_by + 1) % 3;
        world.weather = Weather::FAST;
        steps(&mut world, 100);
        let early = begin_read(&mut world, follower, "a");
        // The follower asks, and the leader's answer takes long.
        steps(&mut world, 1);
        world.weather = Weather { delay_ms: (LATE_MS, LATE_MS), ..Weather::FAST };
        steps(&mut world, 1);
        let answered_ms = world.now_ms + LATE_MS;
        world.weather = Weather::FAST;
        // The follower does not hear of the write.
        world.cuts.cut(led_by, follower);
        write(&mut world, led_by, "a");
        let late = begin_read(&mut world, follower, "a");
        while world.now_ms + 1 < answered_ms {
            steps(&mut world, 1);
        }
        assert_eq!([shown(&world, early), shown(&world, late)], [None, None], "of seed {seed}");
        world.cuts.heal();
        until(&mut world, |world| shown(world, late).is_some());
        assert_eq!([shown(&world, early), shown(&world, late)], [Some(false), Some(true)], "of seed {seed}");
    }
}

/// Its entry was lost on the way: the leader sends it again only after a timeout.
#[test]
fn a_read_on_a_node_that_lags_says_so() {
    for seed in 1..=5 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        let follower = (led_by + 1) % 3;
        world.weather = Weather::FAST;
        steps(&mut world, 100);
        world.cuts.cut(led_by, follower);
        write(&mut world, led_by, "a");
        world.cuts.heal();
        world.begin(follower, Request::StrongRead { key: "a".to_owned() }, Duration::from_millis(20));
        let read = world.history.operations.len() - 1;
        until(&mut world, |world| world.history.operations[read].response.is_some());
        let answer = world.history.operations[read].response.clone();
        assert!(
            matches!(answer, Some(Response::Refused(Error::Lagging { entries: 1.. }))),
            "of seed {seed}: {answer:?}"
        );
    }
}

/// The position up to which its log is committed was not durable on any disk.
#[test]
fn a_local_read_after_a_restart_shows_what_the_node_has_shown_before() {
    for seed in 1..=5 {
        let (mut world, led_by) = cluster(seed, [1_000; 3]);
        let follower = (led_by + 1) % 3;
        write(&mut world, led_by, "a");
        until(&mut world, |world| has(world, follower, "a"));
        world.crash(follower, true);
        world.start(follower);
        until(&mut world, |world| world.nodes[follower].handle().is_some());
        let recovered = Arc::new(Mutex::new(false));
        let slot = recovered.clone();
        world.nodes[follower].spawn(async move |handle| {
            handle.recover_reads().await;
            *slot.lock() = true;
        });
        until(&mut world, |_| *recovered.lock());
        assert!(has(&world, follower, "a"), "of seed {seed}");
    }
}
