//! The rule that a command in the log that cannot be applied is the same refusal on every node, and ends none.

use super::*;
use crate::replication::types::{Round, RoundWrite};
use crate::storage::AskedBy;
use crate::storage::{Action, Fact, FeatureLevel, GuardedWrite, Operation, Outcome, Precondition, RangeDigest, Value};

/// Interval at which such commands are proposed.
const EVERY_MS: u64 = 40;

/// How long they are.
const MS: u64 = 3_000;

fn put(key: &str) -> GuardedWrite {
    let action = Action::Put(Value::json("\"not of a client\""));
    let operations = vec![Operation { space: Space::Kv, key: key.to_owned(), action }];
    GuardedWrite { operations, ..GuardedWrite::default() }
}

/// A command that decodes at no level.
fn malformed(rng: &mut fastrand::Rng) -> Bytes {
    let mut command = put("malformed").encode(FeatureLevel::STAMPED).unwrap().to_vec();
    match rng.u8(0..3) {
        0 => command.truncate(rng.usize(2..command.len())),
        1 => command[1] = rng.u8(3..),
        _ => command = vec![0xff; rng.usize(1..20)],
    }
    command.into()
}

/// A command that decodes, and is beyond a bound.
fn unbounded(rng: &mut fastrand::Rng) -> Bytes {
    let write = match rng.u8(0..4) {
        0 => put(""),
        1 => put(&"k".repeat(1_025)),
        2 => put(&"k".repeat(65_536)),
        _ => {
            let (start, end, digest) = (String::new(), String::new(), RangeDigest([0; 32]));
            let fact = Fact::Range { start, end, limit: u32::MAX, digest };
            let precondition = Precondition { asked_by: AskedBy::Client, space: Space::Kv, fact };
            GuardedWrite { preconditions: vec![precondition], ..put("range") }
        }
    };
    write.encode(FeatureLevel::CLOSED).unwrap()
}

/// Has the leader propose a command that no node checks any more, between two sound ones. Outcomes go to `outcomes`.
fn propose(world: &World, number: usize, command: Bytes, outcomes: &Arc<Mutex<Vec<Vec<Outcome>>>>) {
    let outcomes = outcomes.clone();
    world.nodes[number].spawn(async move |handle| {
        let view = &handle.0.view;
        let sound = put("sound").encode(FeatureLevel::STAMPED).unwrap();
        let writes = [sound.clone(), command, sound].map(|command| RoundWrite { trace: None, command });
        let round = Round { stamped_at_ms: Some(view.stamp_ms()), raises_to: None, writes: writes.into() };
        if let Ok(written) = view.raft.raft().client_write(round).await {
            outcomes.lock().push(written.data);
        }
    });
}

#[test]
fn a_command_that_cannot_be_applied_ends_no_node_and_is_refused_by_all() {
    for seed in 1..=6 {
        // Small, so that nodes that were away catch up by snapshots as well.
        let snapshot_entries = if seed % 2 == 0 { 20 } else { 10_000 };
        let node = |number| Node::new(number, &[0, 1, 2], seed + number as u64, 1_000, snapshot_entries);
        let mut world = World::new(seed, (0..3).map(node).collect());
        form(&mut world).unwrap();
        until(&mut world, |world| (0..3).all(|number| is_ready(world, number)));
        let outcomes = Arc::default();
        let mut rng = fastrand::Rng::with_seed(seed);
        world.clients_act = true;
        for ms in 0..MS {
            world.step().unwrap();
            let Some(led_by) = leader(&world) else { continue };
            if ms % EVERY_MS == 0 {
                let is_closed = status(&world, led_by).level >= FeatureLevel::CLOSED;
                let command = if is_closed && rng.bool() { unbounded(&mut rng) } else { malformed(&mut rng) };
                propose(&world, led_by, command, &outcomes);
            }
            // One node comes back to a log with such commands, and later all of them.
            match ms {
                500 => world.crash((led_by + 1) % 3, true),
                1_200 => (0..3).for_each(|number| {
                    if world.nodes[number].running.is_none() {
                        world.start(number)
                    }
                }),
                2_000 => {
                    (0..3).for_each(|number| world.crash(number, true));
                    (0..3).for_each(|number| world.start(number));
                }
                _ => {}
            }
        }
        finish_quietly(&mut world);
        let outcomes: Vec<Vec<Outcome>> = std::mem::take(&mut outcomes.lock());
        assert!(outcomes.len() > 10, "{} rounds of seed {seed}", outcomes.len());
        for outcomes in outcomes {
            let [Outcome::Applied { .. }, Outcome::Unusable, Outcome::Applied { .. }] = &outcomes[..] else {
                panic!("{outcomes:?} of seed {seed}")
            };
        }
    }
}
