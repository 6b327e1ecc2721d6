//! The bounds of what is proposed: each write has its own deadline, nobody's writes are dropped, and no node logs what another
//! could not take.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::rules::{ask, cluster, envelope, has, metrics, steps, until, write};
use super::world::World;
use super::{chaos::leader, course::form, network::Weather, node::Node};
use crate::limits::{COMMAND_BYTES_MAX, KEY_BYTES_MAX, PROPOSE_QUEUE_BYTES_MAX};
use crate::replication::error::Limit;
use crate::replication::peer::protocol::Call;
use crate::replication::proposer::Forwarded;
use crate::replication::types::{Round, RoundWrite, decode, encode};
use crate::replication::{Error, WriteOutcome};
use crate::storage::{Action, FeatureLevel, GuardedWrite, Operation, Outcome, Space, Value};

/// A proposed write, whose outcome comes while the world runs.
type Proposed = Arc<Mutex<Option<Result<Outcome, Error>>>>;

fn put(key: &str) -> GuardedWrite {
    put_all([key], 1)
}

/// A write that gives keys values of so many bytes.
fn put_all<'a>(keys: impl IntoIterator<Item = &'a str>, bytes: usize) -> GuardedWrite {
    let value = Value::json("1".repeat(bytes));
    let put = |key: &str| Operation { space: Space::Kv, key: key.to_owned(), action: Action::Put(value.clone()) };
    GuardedWrite { operations: keys.into_iter().map(put).collect(), ..GuardedWrite::default() }
}

/// Proposes writes on a node at the same moment: for each, the key, its deadline and the time after which its client leaves.
fn propose<const N: usize>(world: &World, number: usize, writes: [(&str, u64, u64); N]) -> [Proposed; N] {
    let proposed = [(); N].map(|()| Proposed::default());
    let calls: Vec<_> = writes
        .into_iter()
        .zip(&proposed)
        .map(|((key, deadline_ms, patience_ms), slot)| (put(key), deadline_ms, patience_ms, slot.clone()))
        .collect();
    world.nodes[number].spawn(async move |handle| {
        let calls =
            calls.into_iter().map(async |(write, deadline_ms, patience_ms, slot): (GuardedWrite, _, _, Proposed)| {
                let deadline = Instant::now() + Duration::from_millis(deadline_ms);
                let proposed = handle.propose(&write, None, deadline);
                *slot.lock() = tokio::time::timeout(Duration::from_millis(patience_ms), proposed).await.ok();
            });
        futures::future::join_all(calls).await;
    });
    proposed
}

fn fate(proposed: &Proposed) -> Option<Result<(), WriteOutcome>> {
    proposed.lock().as_ref().map(|outcome| outcome.as_ref().map(drop).map_err(Error::outcome))
}

fn last_index(world: &World, number: usize) -> Option<u64> {
    metrics(world, number).last_log_index
}

/// Three nodes and their leader, without the checks of client histories.
fn plain_cluster() -> (World, usize) {
    let (mut world, led_by) = cluster(1, [1_000; 3]);
    world.is_observed = false;
    // Until the feature level is raised, which is an entry too.
    steps(&mut world, 500);
    (world, led_by)
}

#[test]
fn a_write_with_a_short_deadline_does_not_shorten_that_of_its_companions() {
    let (mut world, led_by) = plain_cluster();
    let before = last_index(&world, led_by).unwrap();
    world.weather = Weather { delay_ms: (40, 40), ..Weather::CALM };
    let [short, long] = propose(&world, led_by, [("short", 60, 2_000), ("long", 1_000, 2_000)]);
    steps(&mut world, 62);
    assert_eq!(last_index(&world, led_by), Some(before + 1), "both are in one round");
    assert_eq!(fate(&short), Some(Err(WriteOutcome::Unknown)));
    assert_eq!(fate(&long), None);
    until(&mut world, |_| fate(&long) == Some(Ok(())));
}

/// The leader dies; while there is none, the writes of a round wait for the next.
#[test]
fn a_write_that_is_late_or_whose_client_left_is_not_in_the_log_and_its_companions_are() {
    let (mut world, led_by) = plain_cluster();
    let node = (led_by + 1) % 3;
    world.crash(led_by, true);
    let writes = [("stays", 3_000, 3_000), ("late", 100, 3_000), ("left", 3_000, 50)];
    let [stays, late, left] = propose(&world, node, writes);
    steps(&mut world, 110);
    assert_eq!(fate(&late), Some(Err(WriteOutcome::NotWritten)));
    assert_eq!((fate(&stays), fate(&left)), (None, None));
    until(&mut world, |_| fate(&stays) == Some(Ok(())));
    steps(&mut world, 500);
    assert!(has(&world, node, "stays"));
    assert!(!has(&world, node, "late") && !has(&world, node, "left"));
}

#[test]
fn a_write_that_is_still_queued_at_its_deadline_is_not_written() {
    let (mut world, led_by) = plain_cluster();
    let node = (led_by + 1) % 3;
    world.nodes[led_by].paused_until_ms = Some(world.now_ms + 300);
    // As many rounds as may be in flight, each a little after the other.
    let in_flight: Vec<_> = (0..8)
        .map(|number| {
            let [proposed] = propose(&world, node, [(&format!("in flight/{number}"), 2_000, 2_000)]);
            steps(&mut world, 21);
            proposed
        })
        .collect();
    let [queued] = propose(&world, node, [("queued", 40, 2_000)]);
    steps(&mut world, 70);
    let outcome = queued.lock().take();
    assert!(matches!(outcome, Some(Err(Error::Busy { limit: Limit::Deadline }))), "{outcome:?}");
    assert!(in_flight.iter().all(|proposed| fate(proposed).is_none()));
    until(&mut world, |_| in_flight.iter().all(|proposed| fate(proposed).is_some()));
    steps(&mut world, 500);
    assert!(!has(&world, node, "queued"));
}

/// Proposes writes with values of so many bytes on a node, one after the other, and returns what has become of them at once.
fn propose_large<const N: usize>(
    world: &mut World,
    number: usize,
    sizes: [usize; N],
) -> [Option<Result<Outcome, Error>>; N] {
    let proposed = [(); N].map(|()| Proposed::default());
    for (bytes, slot) in sizes.into_iter().zip(proposed.clone()) {
        world.nodes[number].spawn(async move |handle| {
            let action = Action::Put(Value::json(vec![b'1'; bytes]));
            let operations = vec![Operation { space: Space::Kv, key: "large".to_owned(), action }];
            let write = GuardedWrite { operations, ..GuardedWrite::default() };
            let outcome = handle.propose(&write, None, Instant::now() + Duration::from_secs(60)).await;
            *slot.lock() = Some(outcome);
        });
        steps(world, 1);
    }
    proposed.map(|slot| slot.lock().take())
}

#[test]
fn a_write_that_is_too_large_or_finds_no_room_is_refused_at_once() {
    let (mut world, led_by) = plain_cluster();
    let before = last_index(&world, led_by);
    let too_large = propose_large(&mut world, led_by, [COMMAND_BYTES_MAX]);
    assert!(matches!(too_large, [Some(Err(Error::TooLarge { .. }))]), "{too_large:?}");

    // What waits for a leader, who is gone, counts.
    world.crash(led_by, true);
    let mib = 1 << 20;
    let outcomes = propose_large(&mut world, (led_by + 1) % 3, [24 * mib, 24 * mib, 16 * mib, 1]);
    let busy = |outcome: &Option<_>| matches!(outcome, Some(Err(Error::Busy { limit: Limit::QueuedBytes })));
    assert!(busy(&outcomes[2]) && [0, 1, 3].iter().all(|fits| outcomes[*fits].is_none()), "{outcomes:?}");
    assert_eq!(last_index(&world, (led_by + 1) % 3), before);
}

/// What an earlier version, or a damaged node, might send.
#[test]
fn a_round_that_could_not_be_replicated_or_applied_is_refused_before_it_is_logged() {
    let (mut world, led_by) = plain_cluster();
    let command = |key: &str| put(key).encode(FeatureLevel::FIRST).unwrap();
    let bodies = [
        (vec![], 1_000),
        (vec![Bytes::from_static(b"\xff\xff")], 1_000),
        (vec![command("sound"), Bytes::from_static(b"\x01")], 1_000),
        (vec![command("")], 1_000),
        (vec![command(&"k".repeat(KEY_BYTES_MAX + 1))], 1_000),
        (vec![vec![0; COMMAND_BYTES_MAX + 1].into()], 1_000),
        (vec![vec![0; 3 << 20].into(), vec![0; 3 << 20].into()], 1_000),
        (vec![command("many"); 1_025], 1_000),
        (vec![command("late")], 0),
    ];
    let before = last_index(&world, led_by);
    let to = envelope(&world, led_by);
    for (index, (commands, remaining_ms)) in bodies.into_iter().enumerate() {
        let writes = commands.into_iter().map(|command| RoundWrite { trace: None, command }).collect();
        let body =
            encode(&(Round { stamped_at_ms: None, raises_to: None, writes }, Duration::from_millis(remaining_ms)))
                .unwrap();
        let outcome = match ask(&mut world, led_by, Call::Propose, to, body) {
            Ok(answer) => match decode(&answer).unwrap() {
                Forwarded::Failed { outcome, .. } => outcome,
                answer => panic!("{index}: {answer:?}"),
            },
            Err(error) => error.outcome(),
        };
        assert_eq!(outcome, WriteOutcome::NotWritten, "{index}");
        assert_eq!(last_index(&world, led_by), before, "{index}");
    }
    write(&mut world, led_by, "after");
}

#[test]
fn a_leader_without_room_refuses_a_round_as_not_written() {
    let (mut world, led_by) = plain_cluster();
    let to = envelope(&world, led_by);
    let answer = ask(&mut world, led_by, Call::Propose, to, vec![0; PROPOSE_QUEUE_BYTES_MAX].into()).unwrap();
    let answer = decode(&answer).unwrap();
    assert!(matches!(answer, Forwarded::Failed { outcome: WriteOutcome::NotWritten, is_busy: true, .. }), "{answer:?}");
}

/// Makes a write on a node.
fn commit(world: &mut World, number: usize, write: GuardedWrite) {
    let outcome = Proposed::default();
    let slot = outcome.clone();
    world.nodes[number].spawn(async move |handle| {
        *slot.lock() = Some(handle.propose(&write, None, Instant::now() + Duration::from_secs(2)).await);
    });
    until(world, |_| fate(&outcome).is_some());
    let outcome = outcome.lock().take();
    assert!(matches!(outcome, Some(Ok(_))), "{outcome:?}");
}

/// Several reads of the log are needed for them.
const LARGE_BYTES: usize = 3 << 20;
const LARGE_COUNT: usize = 5;

/// Room for the rest of a write: its keys, and the lengths of its parts.
const REST_BYTES: usize = 1_024;

#[test]
fn a_follower_that_lacks_large_writes_gets_them_in_parts_from_the_log_or_in_a_snapshot() {
    for (snapshot_entries, by) in [(10_000, "append"), (2, "snapshot")] {
        let node = |number| Node::new(number, &[0, 1, 2], number as u64, 1_000, snapshot_entries);
        let mut world = World::new(1, (0..3).map(node).collect());
        world.is_observed = false;
        form(&mut world).unwrap();
        steps(&mut world, 600);
        let led_by = leader(&world).unwrap();
        let (behind, other) = ((led_by + 1) % 3, (led_by + 2) % 3);
        world.crash(behind, true);
        for number in 0..LARGE_COUNT {
            commit(&mut world, [led_by, other][number % 2], put_all([format!("large/{number}").as_str()], LARGE_BYTES));
        }
        // The leader keeps the log for a node that was reached lately.
        steps(&mut world, 12_000);
        (world.largest_body, world.messages) = (0, Vec::new());
        world.start(behind);
        until(&mut world, |world| {
            let node = &world.nodes[behind];
            node.handle().is_some() && (0..LARGE_COUNT).all(|number| has(world, behind, &format!("large/{number}")))
        });
        let is_snapshot = world.messages.iter().any(|(message, _)| message.contains("snapshot"));
        assert_eq!(is_snapshot, by == "snapshot", "{:?}", world.messages);
        // A read of the log goes on as long as it has less than its maximum.
        assert!(world.largest_body < 3 * LARGE_BYTES, "{} bytes", world.largest_body);
    }
}

/// On its way it is in three frames: from its node to the leader, and from there to each follower.
#[test]
fn the_largest_write_reaches_all_nodes_from_a_follower() {
    let (mut world, led_by) = plain_cluster();
    let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let largest = put_all(keys, (COMMAND_BYTES_MAX - REST_BYTES) / keys.len());
    commit(&mut world, (led_by + 1) % 3, largest);
    until(&mut world, |world| (0..3).all(|number| has(world, number, "a")));
    assert!(world.largest_body > COMMAND_BYTES_MAX - REST_BYTES);
}

/// The answer to a forwarded round, as the version before knew it.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
enum ForwardedBefore {
    Done(Vec<Outcome>),
    NotLeader,
    DiskFull(()),
    Failed { successful: u32, outcome: WriteOutcome },
}

#[test]
fn nodes_of_the_version_before_understand_a_busy_leader_and_are_understood() {
    let outcome = WriteOutcome::NotWritten;
    let sent = encode(&Forwarded::Failed { successful: 2, outcome, is_busy: true }).unwrap();
    let read = decode(&sent).unwrap();
    assert!(matches!(read, ForwardedBefore::Failed { successful: 2, outcome: WriteOutcome::NotWritten }), "{read:?}");
    let sent = encode(&ForwardedBefore::Failed { successful: 2, outcome }).unwrap();
    let read = decode(&sent).unwrap();
    assert!(matches!(read, Forwarded::Failed { successful: 2, is_busy: false, .. }), "{read:?}");
}
