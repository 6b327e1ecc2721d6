//! The bytes of plugin versions in the replicated state, in pieces, so that no write waits behind a whole component.
//!
//! The keys are `components/<digest>/<number>`. An upload commits its pieces one by one, and then the entry that names the
//! version, with the precondition that all pieces still exist. Nobody reads the pieces before that. An upload that fails
//! leaves pieces that no entry names; the next change of the registry after [`ABANDONED_AFTER_MS`] removes them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::entry::{delete, precondition, put};
use super::error::Error;
use crate::limits::PLUGIN_BYTES_MAX;
use crate::storage::{Data, Fact, Operation, Precondition, Space, Value};

pub(super) const PREFIX: &str = "components/";

/// Size of a piece in bytes; the last piece of a version may be smaller. Four pieces share a proposal round.
const PIECE_BYTES: usize = 1024 * 1024;

/// Age after which pieces that no entry names belong to a failed upload.
const ABANDONED_AFTER_MS: u64 = 15 * 60 * 1000;

/// The keys of the stored pieces at one moment.
pub(super) struct StoredPieces {
    by_digest: BTreeMap<String, Vec<String>>,
    /// For each version that no entry names: the time at which its last piece was stored, in Unix milliseconds.
    unnamed_since_ms: BTreeMap<String, u64>,
}

impl StoredPieces {
    /// Reads the keys of all pieces, and the last piece of each version that is not in `named`.
    pub(super) fn read(data: &Data, named: &BTreeSet<String>) -> Result<Self, Error> {
        let mut by_digest: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for key in data.keys(Space::System, PREFIX)? {
            let path = key.strip_prefix(PREFIX).unwrap_or(&key);
            let digest = path.split('/').next().unwrap_or(path).to_owned();
            by_digest.entry(digest).or_default().push(key);
        }
        let mut unnamed_since_ms = BTreeMap::new();
        for (digest, keys) in by_digest.iter().filter(|(digest, _)| !named.contains(*digest)) {
            let last = keys.last().map(|key| data.get(Space::System, key)).transpose()?.flatten();
            unnamed_since_ms.extend(last.map(|piece| (digest.clone(), piece.meta.updated_at_ms)));
        }
        Ok(Self { by_digest, unnamed_since_ms })
    }

    /// The operations that store the missing pieces of a version, one for each piece.
    pub(super) fn missing(&self, digest: &str, component: &Bytes) -> Vec<Operation> {
        let stored: BTreeSet<&String> = self.of(digest).iter().collect();
        let pieces = pieces(digest, component).filter(|(key, _)| !stored.contains(key));
        let value = |bytes| Value::of_type("application/wasm", bytes);
        pieces.map(|(key, bytes)| put(key, value(bytes))).collect()
    }

    /// The preconditions that the pieces of a version still exist. Their bytes cannot change: they follow from their keys.
    pub(super) fn still_exist(&self, digest: &str) -> Vec<Precondition> {
        self.of(digest).iter().map(|key| precondition(Fact::Exists { key: key.clone() })).collect()
    }

    /// The operations that remove all pieces that are not `needed`, except those of uploads that may still be running.
    pub(super) fn removals(&self, needed: &BTreeSet<String>, now_ms: u64) -> Vec<Operation> {
        let may_be_uploading = |digest: &String| {
            let since_ms = self.unnamed_since_ms.get(digest);
            since_ms.is_some_and(|since_ms| now_ms <= since_ms.saturating_add(ABANDONED_AFTER_MS))
        };
        let removed =
            self.by_digest.iter().filter(|(digest, _)| !needed.contains(*digest) && !may_be_uploading(digest));
        removed.flat_map(|(_, keys)| keys).map(|key| delete(key.clone())).collect()
    }

    fn of(&self, digest: &str) -> &[String] {
        self.by_digest.get(digest).map_or(&[], Vec::as_slice)
    }
}

/// The bytes of a version; `None` if no piece is stored. The caller checks the digest to know whether any are missing.
pub(super) fn read(data: &Data, digest: &str) -> Result<Option<Bytes>, Error> {
    let mut component = Vec::new();
    for number in 0..PLUGIN_BYTES_MAX.div_ceil(PIECE_BYTES) {
        let Some(piece) = data.get(Space::System, &key(digest, number))? else { break };
        component.extend_from_slice(&piece.value.bytes);
    }
    Ok((!component.is_empty()).then(|| component.into()))
}

fn pieces<'a>(digest: &'a str, component: &'a Bytes) -> impl Iterator<Item = (String, Bytes)> + 'a {
    let starts = (0..component.len()).step_by(PIECE_BYTES);
    starts.enumerate().map(move |(number, start)| {
        let end = component.len().min(start + PIECE_BYTES);
        (key(digest, number), component.slice(start..end))
    })
}

fn key(digest: &str, number: usize) -> String {
    format!("{PREFIX}{digest}/{number:04}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hooks;
    use crate::storage::{GuardedWrite, Outcome};

    fn data() -> (tempfile::TempDir, Data) {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::open(dir.path(), 1024 * 1024).unwrap();
        (dir, data)
    }

    fn apply(data: &Data, operations: Vec<Operation>, preconditions: Vec<Precondition>, at_ms: u64) -> Outcome {
        let write = GuardedWrite { operations, preconditions, proposed_at_ms: at_ms, ..GuardedWrite::default() };
        data.apply(&[write], &[]).unwrap().remove(0)
    }

    fn stored(data: &Data) -> StoredPieces {
        StoredPieces::read(data, &BTreeSet::new()).unwrap()
    }

    fn upload(data: &Data, component: &Bytes, at_ms: u64) -> String {
        let digest = hooks::digest(component);
        for piece in stored(data).missing(&digest, component) {
            apply(data, vec![piece], Vec::new(), at_ms);
        }
        digest
    }

    #[test]
    fn a_component_comes_back_as_it_was_stored_and_only_what_is_missing_is_stored_again() {
        let (_dir, data) = data();
        for len in [1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, PIECE_BYTES * 11] {
            let component: Bytes = (0..len).map(|index| (index / 7 + len) as u8).collect();
            let digest = upload(&data, &component, 0);
            assert!(read(&data, &digest).unwrap() == Some(component.clone()), "{len} bytes");
            assert!(stored(&data).missing(&digest, &component).is_empty(), "{len} bytes");
            apply(&data, vec![delete(key(&digest, 0))], Vec::new(), 0);
            assert_eq!(stored(&data).missing(&digest, &component).len(), 1, "{len} bytes");
        }
        assert_eq!(read(&data, "absent").unwrap(), None);
    }

    #[test]
    fn a_version_that_has_lost_a_piece_cannot_be_named() {
        let (_dir, data) = data();
        let component = Bytes::from(vec![1; PIECE_BYTES * 2]);
        let digest = upload(&data, &component, 0);
        let name = || vec![put("plugins/p".to_owned(), Value::json("{}"))];
        let still_exist = stored(&data).still_exist(&digest);
        assert!(matches!(apply(&data, name(), still_exist.clone(), 0), Outcome::Applied { .. }));
        // Storing a piece again changes nothing; removing one does.
        let again = pieces(&digest, &component).map(|(key, bytes)| put(key, Value::of_type("application/wasm", bytes)));
        let again = again.collect();
        apply(&data, again, Vec::new(), 0);
        assert!(matches!(apply(&data, name(), still_exist.clone(), 0), Outcome::Applied { .. }));
        apply(&data, vec![delete(key(&digest, 1))], Vec::new(), 0);
        assert!(matches!(apply(&data, name(), still_exist, 0), Outcome::PreconditionFailed { .. }));
    }

    #[test]
    fn what_is_removed_was_let_go_or_abandoned() {
        let (_dir, data) = data();
        let version = |number: u8| Bytes::from(vec![number; PIECE_BYTES + 1]);
        let [needed, let_go, abandoned] = [1, 2, 3].map(|number| upload(&data, &version(number), 0));
        let under_way = upload(&data, &version(4), ABANDONED_AFTER_MS);
        let set = |digest: &String| BTreeSet::from([digest.clone()]);
        let named = BTreeSet::from([needed.clone(), let_go]);
        let removals = StoredPieces::read(&data, &named).unwrap().removals(&set(&needed), ABANDONED_AFTER_MS + 1);
        assert_eq!(removals.len(), 4);
        apply(&data, removals, Vec::new(), 0);
        assert_eq!(stored(&data).by_digest.into_keys().collect::<BTreeSet<_>>(), {
            BTreeSet::from([needed, under_way])
        });
        assert_eq!(read(&data, &abandoned).unwrap(), None);
    }
}
