//! The bytes of plugin versions in the replicated state: in pieces, so that no write waits behind a whole one.
//!
//! The keys are `components/<digest>/<number>`. An upload commits piece after piece and then the entry that names the
//! version, on the condition that all pieces are still there. Until then nobody reads them, and an upload that does not get
//! that far leaves pieces that nobody names: a change of the registry removes them when they have been left for
//! [`ABANDONED_AFTER`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::Error;
use super::known::{delete, put};
use crate::limits::PLUGIN_BYTES_MAX;
use crate::storage::{AskedBy, Data, EntryMeta, Fact, Operation, Precondition, RangeQuery, Space, Value};

/// Keys of the system space under this prefix are the bytes of plugin versions.
const PREFIX: &str = "components/";

/// The bytes of one piece; the last one of a version may have fewer. Four share a round of proposals.
const PIECE_BYTES: usize = 1024 * 1024;

/// After how long pieces that nobody names are taken for those of an upload that has ended.
const ABANDONED_AFTER: Duration = Duration::from_secs(15 * 60);

/// The pieces that are stored, without their bytes, as of one look.
pub(super) struct Stored {
    by_digest: BTreeMap<String, Vec<(String, EntryMeta)>>,
}

impl Stored {
    pub(super) fn read(data: &Data) -> Result<Self, Error> {
        let query = RangeQuery {
            space: Space::System,
            prefix: Some(PREFIX.to_owned()),
            keys_only: true,
            ..RangeQuery::default()
        };
        let mut by_digest: BTreeMap<String, Vec<(String, EntryMeta)>> = BTreeMap::new();
        for entry in data.scan(&query)?.entries {
            let path = entry.key.strip_prefix(PREFIX).unwrap_or(&entry.key);
            let digest = path.split('/').next().unwrap_or(path).to_owned();
            by_digest.entry(digest).or_default().push((entry.key, entry.meta));
        }
        Ok(Self { by_digest })
    }

    /// The writes that store what is missing of a version, one for each piece.
    pub(super) fn missing(&self, digest: &str, component: &Bytes) -> Vec<Operation> {
        let stored: BTreeSet<&str> = self.of(digest).iter().map(|(key, _)| key.as_str()).collect();
        let pieces = pieces(digest, component).filter(|(key, _)| !stored.contains(key.as_str()));
        let value = |bytes| Value { content_type: "application/wasm".to_owned(), bytes };
        pieces.map(|(key, bytes)| put(key, value(bytes))).collect()
    }

    /// The conditions that a version is still whole which was whole on this look. Its pieces cannot have become others: their
    /// bytes follow from their keys.
    pub(super) fn is_whole(&self, digest: &str) -> Vec<Precondition> {
        let is_there = |key: &String| Precondition {
            asked_by: AskedBy::Client,
            space: Space::System,
            fact: Fact::Exists { key: key.clone() },
        };
        self.of(digest).iter().map(|(key, _)| is_there(key)).collect()
    }

    /// The writes that remove what is not needed: the versions that nobody names any more, and pieces that nobody has named
    /// for long.
    pub(super) fn removals(&self, needed: &BTreeSet<String>, let_go: &BTreeSet<String>, now_ms: u64) -> Vec<Operation> {
        let patience_ms = u64::try_from(ABANDONED_AFTER.as_millis()).unwrap_or(u64::MAX);
        let is_abandoned = |pieces: &[(String, EntryMeta)]| {
            let newest_ms = pieces.iter().map(|(_, meta)| meta.updated_at_ms).max().unwrap_or(0);
            now_ms > newest_ms.saturating_add(patience_ms)
        };
        let unneeded = self.by_digest.iter().filter(|(digest, _)| !needed.contains(*digest));
        let removed = unneeded.filter(|(digest, pieces)| let_go.contains(*digest) || is_abandoned(pieces));
        removed.flat_map(|(_, pieces)| pieces).map(|(key, _)| delete(key.clone())).collect()
    }

    fn of(&self, digest: &str) -> &[(String, EntryMeta)] {
        self.by_digest.get(digest).map_or(&[], Vec::as_slice)
    }
}

/// The bytes of a version; `None` if there is none. Whether they are all there is for the digest to tell.
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
        let write =
            GuardedWrite { operations, preconditions, hook_epoch: None, proposed_at_ms: at_ms, idempotency: None };
        data.apply(&[write], &[]).unwrap().remove(0)
    }

    fn upload(data: &Data, component: &Bytes, at_ms: u64) -> String {
        let digest = hooks::digest(component);
        for piece in Stored::read(data).unwrap().missing(&digest, component) {
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
            assert!(Stored::read(&data).unwrap().missing(&digest, &component).is_empty(), "{len} bytes");
            apply(&data, vec![delete(key(&digest, 0))], Vec::new(), 0);
            assert_eq!(Stored::read(&data).unwrap().missing(&digest, &component).len(), 1, "{len} bytes");
        }
        assert_eq!(read(&data, "absent").unwrap(), None);
    }

    #[test]
    fn a_version_that_has_lost_a_piece_cannot_be_named() {
        let (_dir, data) = data();
        let component = Bytes::from(vec![1; PIECE_BYTES * 2]);
        let digest = upload(&data, &component, 0);
        let name = || vec![put("plugins/p".to_owned(), Value::json("{}"))];
        let is_whole = Stored::read(&data).unwrap().is_whole(&digest);
        assert!(matches!(apply(&data, name(), is_whole.clone(), 0), Outcome::Applied { .. }));
        // To store a piece again changes nothing, to take one away does.
        let again = Stored { by_digest: BTreeMap::new() }.missing(&digest, &component);
        apply(&data, again, Vec::new(), 0);
        assert!(matches!(apply(&data, name(), is_whole.clone(), 0), Outcome::Applied { .. }));
        apply(&data, vec![delete(key(&digest, 1))], Vec::new(), 0);
        assert!(matches!(apply(&data, name(), is_whole, 0), Outcome::PreconditionFailed { .. }));
    }

    #[test]
    fn what_is_removed_was_let_go_or_abandoned() {
        let (_dir, data) = data();
        let patience_ms = u64::try_from(ABANDONED_AFTER.as_millis()).unwrap();
        let version = |number: u8| Bytes::from(vec![number; PIECE_BYTES + 1]);
        let [needed, let_go, abandoned] = [1, 2, 3].map(|number| upload(&data, &version(number), 0));
        let under_way = upload(&data, &version(4), patience_ms);
        let set = |digest: &String| BTreeSet::from([digest.clone()]);
        let removals = Stored::read(&data).unwrap().removals(&set(&needed), &set(&let_go), patience_ms + 1);
        assert_eq!(removals.len(), 4);
        apply(&data, removals, Vec::new(), 0);
        assert_eq!(Stored::read(&data).unwrap().by_digest.into_keys().collect::<BTreeSet<_>>(), {
            BTreeSet::from([needed, under_way])
        });
        assert_eq!(read(&data, &abandoned).unwrap(), None);
    }
}
