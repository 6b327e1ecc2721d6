//! A node's store and log for native tests of plugins. This module does not exist in WebAssembly.
//!
//! ```
//! use brink_guest::{Rejection, log, mock, store};
//!
//! fn check() -> Result<(), Rejection> {
//!     if store::exists("frozen")? {
//!         log::info!("a write was refused");
//!         return Err(Rejection::new("frozen", "nothing may be written now"));
//!     }
//!     Ok(())
//! }
//!
//! let open = mock::Store::new().json("frozen", &true).open();
//! assert!(check().is_err());
//! assert_eq!(mock::take_lines(), [(log::Level::Info, "a write was refused".to_owned())]);
//! drop(open);
//!
//! let _open = mock::Store::new().open();
//! assert!(check().is_ok());
//! ```

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;

use serde::Serialize;

use crate::Entry;
use crate::bindings::validating::brink::hooks::log::Level;
use crate::bindings::validating::brink::hooks::store::ReadError;

/// Maximum number of reads in one call, as on a node.
const READS_MAX: usize = 1_000;

/// Maximum number of keys in one answer of `list`, as on a node.
const LIST_MAX: u32 = 1_000;

thread_local! {
    static OPEN: RefCell<Option<Reads>> = const { RefCell::new(None) };
    static LINES: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

/// The entries that the functions of [`store`](crate::store) find on this thread while the store is open.
#[derive(Debug, Clone, Default)]
pub struct Store {
    entries: BTreeMap<String, Entry>,
}

/// A guard that keeps a [`Store`] open on this thread. Once it is dropped, reads answer [`ReadError::Unavailable`] again.
#[derive(Debug)]
#[must_use = "the store is closed when this is dropped"]
pub struct Open(std::marker::PhantomData<*const ()>);

struct Reads {
    store: Store,
    count: usize,
}

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an entry with a JSON value.
    ///
    /// # Panics
    ///
    /// If `value` has no JSON form, for example a map whose keys are not strings.
    #[must_use]
    #[allow(clippy::panic, reason = "exists for tests only")]
    pub fn json(self, key: impl Into<String>, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(value) => self.raw(key, "application/json", value),
            Err(error) => panic!("the value has no JSON form: {error}"),
        }
    }

    /// Adds an entry with a value of any media type. If the key has an entry already, its version goes up by one.
    #[must_use]
    pub fn raw(mut self, key: impl Into<String>, content_type: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        let (key, content_type, value) = (key.into(), content_type.into(), value.into());
        let version = self.entries.get(&key).map_or(1, |entry| entry.version + 1);
        let revision = self.entries.values().map(|entry| entry.revision).max().unwrap_or(0) + 1;
        self.entries.insert(key.clone(), Entry { key, content_type, value, version, revision });
        self
    }

    /// Makes the functions of [`store`](crate::store) read from this store, on this thread, until the guard is dropped.
    /// This starts a new call, with 1,000 reads.
    pub fn open(self) -> Open {
        OPEN.set(Some(Reads { store: self, count: 0 }));
        Open(std::marker::PhantomData)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.set(None);
    }
}

/// Takes the lines logged on this thread since the last call.
pub fn take_lines() -> Vec<(Level, String)> {
    LINES.take()
}

pub(crate) fn get(key: &str) -> Result<Option<Entry>, ReadError> {
    read(|store| store.entries.get(key).cloned())
}

pub(crate) fn exists(key: &str) -> Result<bool, ReadError> {
    read(|store| store.entries.contains_key(key))
}

pub(crate) fn list(start: &str, end: &str, limit: u32) -> Result<Vec<String>, ReadError> {
    if limit == 0 || limit > LIST_MAX {
        return Err(ReadError::Limit(format!("limit is {limit}; allowed: 1 to {LIST_MAX}")));
    }
    let upper = if end.is_empty() { Bound::Unbounded } else { Bound::Included(end) };
    read(|store| {
        if !end.is_empty() && start > end {
            return Vec::new();
        }
        let keys = store.entries.range::<str, _>((Bound::Included(start), upper)).map(|(key, _)| key.clone());
        keys.take(limit as usize).collect()
    })
}

pub(crate) fn write(level: Level, message: &str) {
    LINES.with_borrow_mut(|lines| lines.push((level, message.to_owned())));
}

fn read<T>(answer: impl FnOnce(&Store) -> T) -> Result<T, ReadError> {
    OPEN.with_borrow_mut(|open| match open {
        None => Err(ReadError::Unavailable("no `mock::Store` is open on this thread".to_owned())),
        Some(reads) if reads.count == READS_MAX => Err(ReadError::Limit(format!("a call may read {READS_MAX} times"))),
        Some(reads) => {
            reads.count += 1;
            Ok(answer(&reads.store))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_reads_like_a_nodes() {
        let store = Store::new().json("a", &1).raw("b", "text/plain", "x").json("a", &2).json("c", &3);
        let _open = store.open();
        let entry = get("a").unwrap().unwrap();
        assert_eq!((entry.value.as_slice(), entry.version, entry.revision), (&b"2"[..], 2, 3));
        assert!(exists("b").unwrap() && !exists("d").unwrap());
        assert_eq!(list("a", "b", 10).unwrap(), ["a", "b"]);
        assert_eq!(list("b", "", 10).unwrap(), ["b", "c"]);
        assert_eq!(list("", "", 1).unwrap(), ["a"]);
        assert!(list("c", "a", 10).unwrap().is_empty());
    }

    #[test]
    fn limits_are_those_of_a_node() {
        let _open = Store::new().open();
        assert!(matches!(list("", "", 0), Err(ReadError::Limit(_))));
        assert!(matches!(list("", "", 1_001), Err(ReadError::Limit(_))));
        for _ in 0..1_000 {
            assert!(!exists("a").unwrap());
        }
        assert!(matches!(get("a"), Err(ReadError::Limit(_))));
    }

    #[test]
    fn a_store_is_closed_with_its_guard() {
        drop(Store::new().open());
        assert!(matches!(get("a"), Err(ReadError::Unavailable(_))));
    }
}
