//! What a snapshot holds of the state machine's own values: it must be what the snapshot says of itself, and what this version can
//! read. The state would be replaced by it, and a node that cannot read its state never starts again.

use bytes::Bytes;

use super::state_machine::{APPLIED, LEVEL, MEMBERSHIP, TIME};
use crate::replication::error::Error;
use crate::replication::types::{LogId, SnapshotMeta, StoredMembership, decode_stored};
use crate::storage::FeatureLevel;

/// The values that are compared.
pub(crate) const KEYS: [&str; 4] = [APPLIED, MEMBERSHIP, LEVEL, TIME];

/// Checks the values of [`KEYS`] in a snapshot.
pub(crate) fn check(meta: &SnapshotMeta, values: [Option<Bytes>; KEYS.len()]) -> Result<(), Error> {
    let [applied, membership, level, time] = values.map(Ok);
    let applied: Option<LogId> = decode_stored(applied)?;
    let membership: Option<StoredMembership> = decode_stored(membership)?;
    if applied != meta.last_log_id || membership.unwrap_or_default() != meta.last_membership {
        return Err(Error::Refused("the snapshot holds another state than it says".to_owned()));
    }
    let level: FeatureLevel = decode_stored(level)?.unwrap_or_default();
    if level > FeatureLevel::NEWEST {
        return Err(Error::Refused(format!(
            "the snapshot has feature level {level}, and this version of brink supports {}",
            FeatureLevel::NEWEST
        )));
    }
    decode_stored::<u64>(time).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::types::{Vote, encode};

    #[test]
    fn a_snapshot_that_holds_another_state_than_it_says_or_an_unreadable_one_is_refused() {
        let log_id = |index| openraft::LogId::new(Vote::new(1, 1).leader_id, index);
        let meta = SnapshotMeta { last_log_id: Some(log_id(5)), ..SnapshotMeta::default() };
        let applied = |index| Some(encode(&log_id(index)).unwrap());
        let stored = |index| {
            let membership = StoredMembership::new(Some(log_id(index)), openraft::Membership::default());
            Some(encode(&membership).unwrap())
        };
        let level = |level| Some(encode(&FeatureLevel(level)).unwrap());
        let (newest, junk) = (FeatureLevel::NEWEST.0, Some(Bytes::from_static(&[0xff; 3])));
        for (values, is_sound) in [
            ([applied(5), None, None, None], true),
            ([applied(5), None, level(newest), Some(encode(&7_u64).unwrap())], true),
            ([applied(6), None, None, None], false),
            ([None, None, None, None], false),
            ([junk.clone(), None, None, None], false),
            ([applied(5), stored(5), None, None], false),
            ([applied(5), None, level(newest + 1), None], false),
            ([applied(5), None, junk.clone(), None], false),
            ([applied(5), None, None, junk.clone()], false),
        ] {
            assert_eq!(check(&meta, values.clone()).is_ok(), is_sound, "{values:?}");
        }
    }
}
