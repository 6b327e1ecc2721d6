//! Entries of the system space: reading a prefix, encoding and decoding JSON, and the operations that change them.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::Error;
use crate::limits::{PAGE_ENTRIES_MAX, PLUGIN_LIST_MAX};
use crate::storage::{
    Action, AskedBy, Data, Entry, Fact, Operation, Precondition, RangeDigest, RangeQuery, Space, Value,
};

/// All entries under a prefix, and the precondition that they have not changed.
pub(super) fn read_prefix(data: &Data, prefix: &str) -> Result<(Vec<Entry>, Precondition), Error> {
    let end = format!("{prefix}{}", char::MAX);
    let limit = u32::try_from(PLUGIN_LIST_MAX).unwrap_or(u32::MAX);
    let query = RangeQuery {
        space: Space::System,
        prefix: Some(prefix.to_owned()),
        limit: Some(PAGE_ENTRIES_MAX),
        ..RangeQuery::default()
    };
    let entries = data.scan(&query)?.entries;
    let seen = entries.iter().take(PLUGIN_LIST_MAX).map(|entry| (entry.key.as_str(), entry.meta.revision));
    let fact = Fact::Range { start: prefix.to_owned(), end, limit, digest: RangeDigest::of(seen) };
    Ok((entries, precondition(fact)))
}

/// A precondition on the system space. Its failure is the answer to the transaction that set it.
pub(super) fn precondition(fact: Fact) -> Precondition {
    Precondition { asked_by: AskedBy::Client, space: Space::System, fact }
}

pub(super) fn name_of(entry: &Entry, prefix: &str) -> String {
    entry.key.strip_prefix(prefix).unwrap_or(&entry.key).to_owned()
}

pub(super) fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, Error> {
    serde_json::from_slice(&entry.value.bytes).map_err(|source| Error::Undecodable { key: entry.key.clone(), source })
}

pub(super) fn put_json<T: Serialize>(key: String, value: &T) -> Result<Operation, Error> {
    match serde_json::to_vec(value) {
        Ok(text) => Ok(put(key, Value::json(text))),
        Err(source) => Err(Error::Undecodable { key, source }),
    }
}

pub(super) fn put(key: String, value: Value) -> Operation {
    Operation { space: Space::System, key, action: Action::Put(value) }
}

pub(super) fn delete(key: String) -> Operation {
    Operation { space: Space::System, key, action: Action::Delete }
}
