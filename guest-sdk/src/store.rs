//! Reading other keys.
//!
//! Each read becomes a precondition of the write: if the value has changed by the time the write commits, the write is
//! judged again. So a rule over several keys holds. Reads return committed values, without the writes of the request
//! itself. A call may read 1,000 times. During `configure`, reads answer [`ReadError::Unavailable`].
//!
//! In native builds, these functions read from `mock::Store`.
//!
//! ```
//! use brink_guest::{mock, store};
//!
//! let _open = mock::Store::new().json("users/ann", &serde_json::json!({"name": "Ann"})).open();
//! assert!(store::exists("users/ann")?);
//! assert!(store::get("users/bob")?.is_none());
//! assert_eq!(store::list("users/", "", 10)?, ["users/ann"]);
//! # Ok::<(), brink_guest::Rejection>(())
//! ```

use crate::Entry;
#[cfg(target_arch = "wasm32")]
use crate::bindings::validating::brink::hooks::store as node;
pub use crate::bindings::validating::brink::hooks::store::ReadError;
#[cfg(not(target_arch = "wasm32"))]
use crate::mock as node;

/// The entry of a key, or `None`.
///
/// # Errors
///
/// [`ReadError::Limit`] if the call has read too often or too much, [`ReadError::Unavailable`] if the store cannot be
/// read now.
pub fn get(key: &str) -> Result<Option<Entry>, ReadError> {
    node::get(key)
}

/// Whether a key has an entry. This is cheaper than [`get`], for the write too: a new value of the key does not cause the
/// write to be judged again, only its deletion or creation does.
///
/// # Errors
///
/// As for [`get`].
pub fn exists(key: &str) -> Result<bool, ReadError> {
    node::exists(key)
}

/// The keys from `start` to `end`, both inclusive, in byte order, the first `limit` of them. An empty `end` means no
/// upper bound.
///
/// # Errors
///
/// As for [`get`]; also [`ReadError::Limit`] if `limit` is not 1 to 1,000.
pub fn list(start: &str, end: &str, limit: u32) -> Result<Vec<String>, ReadError> {
    node::list(start, end, limit)
}

/// The keys that start with `prefix`, in byte order, the first `limit` of them.
///
/// # Errors
///
/// As for [`list`].
pub fn list_prefix(prefix: &str, limit: u32) -> Result<Vec<String>, ReadError> {
    let mut keys = node::list(prefix, &after(prefix), limit)?;
    keys.retain(|key| key.starts_with(prefix));
    Ok(keys)
}

/// The first string after all that start with `prefix`. If there is none, the empty string, which means no bound.
fn after(prefix: &str) -> String {
    let mut start = prefix.to_owned();
    while let Some(last) = start.pop() {
        // `RangeInclusive<char>` skips the surrogates.
        if let Some(next) = (last..=char::MAX).nth(1) {
            start.push(next);
            break;
        }
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mock;

    #[test]
    fn a_prefix_is_a_range() {
        let keys = ["a", "a/", "a/1", "a/\u{10FFFF}\u{10FFFF}x", "a0", "a0/"];
        let store = keys.into_iter().fold(mock::Store::new(), |store, key| store.json(key, &1));
        let _open = store.open();
        assert_eq!(list_prefix("a/", 10).unwrap(), ["a/", "a/1", "a/\u{10FFFF}\u{10FFFF}x"]);
        assert_eq!(list_prefix("a/", 3).unwrap().len(), 3);
        assert_eq!(list_prefix("a/\u{10FFFF}", 10).unwrap().len(), 1);
        assert_eq!(list_prefix("", 10).unwrap(), keys);
    }

    #[test]
    fn the_bound_of_a_prefix_is_a_text() {
        assert_eq!(after("a/"), "a0");
        assert_eq!(after("a\u{D7FF}"), "a\u{E000}");
        assert_eq!(after("a\u{10FFFF}\u{10FFFF}"), "b");
        assert_eq!(after("\u{10FFFF}"), "");
    }
}
