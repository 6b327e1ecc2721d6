//! Commands that cannot be applied, in the log: every node passes over them alike, however it batches entries.

use super::*;
use crate::replication::types::{Round, RoundWrite, Vote, decode_shared, encode};
use crate::storage::memory::SimDisk;
use crate::storage::{Action, Operation, Outcome, Space, Value, simulated_data};

fn machine(data: &Data) -> StateMachine {
    let (applied, telemetry) = (Arc::new(Applied::of(data).unwrap()), Telemetry::disabled());
    StateMachine { data: data.clone(), applied, telemetry, blocking: Blocking::Threads }
}

fn put(key: &str) -> GuardedWrite {
    let action = Action::Put(Value::json("1"));
    let operations = vec![Operation { space: Space::Kv, key: key.to_owned(), action }];
    GuardedWrite { operations, proposed_at_ms: 9, ..GuardedWrite::default() }
}

fn entry(index: u64, round: Round) -> LogEntry {
    LogEntry::new(LogId::new(*Vote::new(1, 1).leader_id(), index), EntryPayload::Normal(round))
}

fn round(stamped_at_ms: Option<u64>, raises_to: Option<FeatureLevel>, commands: Vec<bytes::Bytes>) -> Round {
    let writes = commands.into_iter().map(|command| RoundWrite { trace: None, command }).collect();
    Round { stamped_at_ms, raises_to, writes }
}

/// A command that is sound, malformed, or beyond a bound.
fn any_command(rng: &mut fastrand::Rng) -> bytes::Bytes {
    let encoded_at = [FeatureLevel::FIRST, FeatureLevel::STAMPED][rng.usize(0..2)];
    let key = match rng.u8(0..10) {
        0 => String::new(),
        1 => "k".repeat(1_025),
        2 => "k".repeat(65_536),
        _ => format!("k{}", rng.u8(0..40)),
    };
    let mut command = put(&key).encode(encoded_at).unwrap().to_vec();
    match rng.u8(0..6) {
        0 => command.truncate(rng.usize(0..command.len())),
        1 => command.push(rng.u8(..)),
        2 => command = (0..rng.usize(0..20)).map(|_| rng.u8(..)).collect(),
        _ => {}
    }
    command.into()
}

/// A log in which the cluster begins at the first level, has a time later, and then the newest level.
fn any_log(rng: &mut fastrand::Rng) -> Vec<LogEntry> {
    let rounds = (1..=300).map(|index| {
        let commands = (0..rng.usize(1..5)).map(|_| any_command(rng)).collect();
        let stamped_at_ms = (index > 100 && rng.bool()).then_some(index);
        let raises_to = (index == 200).then_some(FeatureLevel::CLOSED);
        entry(index, round(if index == 200 { Some(index) } else { stamped_at_ms }, raises_to, commands))
    });
    // As each node reads them from its own log.
    rounds.map(|entry| decode_shared(&encode(&entry).unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn nodes_that_batch_entries_differently_refuse_the_same_commands() {
    for seed in 1..=20 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let log = any_log(&mut rng);
        let mut states = Vec::new();
        for batch_max in [1, 7, 256] {
            let disk = SimDisk::new(seed);
            let data = simulated_data::open(&disk, 1 << 20).unwrap();
            let (mut machine, mut outcomes, mut rest) = (machine(&data), Vec::new(), &log[..]);
            while !rest.is_empty() {
                let (batch, after) = rest.split_at(rng.usize(1..=batch_max).min(rest.len()));
                let applied = machine.apply_entries(&Arc::new(batch.to_vec())).await.unwrap();
                outcomes.extend(applied.into_iter().flatten());
                rest = after;
                if rng.u8(0..8) == 0 {
                    // As after a restart.
                    machine.applied = Arc::new(Applied::of(&data).unwrap());
                }
            }
            assert_eq!(machine.applied.level(), FeatureLevel::CLOSED);
            states.push((simulated_data::digest(&data), outcomes));
        }
        let unusable = states[0].1.iter().filter(|outcome| **outcome == Outcome::Unusable).count();
        assert!((100..states[0].1.len() - 100).contains(&unusable), "{unusable} of {}", states[0].1.len());
        assert!(states.iter().all(|state| *state == states[0]), "of seed {seed}");
    }
}

/// The level is that of the entry, and not of the batch.
#[tokio::test]
async fn a_batch_may_hold_the_entry_that_raises_the_level() {
    let data = simulated_data::open(&SimDisk::new(1), 1 << 20).unwrap();
    let machine = machine(&data);
    let longer = |key: &str| [&put(key).encode(FeatureLevel::STAMPED).unwrap()[..], &[0]].concat().into();
    let log = [
        round(Some(5), None, vec![longer("before")]),
        round(Some(6), Some(FeatureLevel::CLOSED), vec![longer("with")]),
        round(Some(7), None, vec![longer("after"), put("sound").encode(FeatureLevel::CLOSED).unwrap()]),
    ];
    let log: Vec<_> = (1..).zip(log).map(|(index, round)| entry(index, round)).collect();
    let outcomes = machine.apply_entries(&Arc::new(log)).await.unwrap();
    let is_applied = |outcome: &Outcome| matches!(outcome, Outcome::Applied { .. });
    let applied: Vec<_> = outcomes.iter().flatten().map(is_applied).collect();
    assert_eq!(applied, [true, false, false, true]);
    assert_eq!(Applied::of(&data).unwrap().level(), FeatureLevel::CLOSED);
}

/// A log that a version before left, which ended on it at each start.
#[tokio::test]
async fn a_log_with_a_command_that_cannot_be_decoded_is_applied_to_its_end() {
    let data = simulated_data::open(&SimDisk::new(1), 1 << 20).unwrap();
    let machine = machine(&data);
    let stamped = put("of a later level").encode(FeatureLevel::STAMPED).unwrap();
    let commands = vec![b"\xff\xff"[..].into(), stamped, put("sound").encode(FeatureLevel::FIRST).unwrap()];
    let outcomes = machine.apply_entries(&Arc::new(vec![entry(1, round(None, None, commands))])).await.unwrap();
    assert!(matches!(outcomes[0][..], [Outcome::Unusable, Outcome::Unusable, Outcome::Applied { revision: 1, .. }]));
    let last: Option<LogId> = decode_stored(data.meta(APPLIED)).unwrap();
    assert_eq!(last.unwrap().index(), 1);
}
