//! Reading other keys.
//!
//! Each read becomes a precondition of the write: if what was read has changed when the write commits, the write is
//! judged again, so a rule over several keys holds. What is read is committed; the writes of the request itself do not
//! show. A call may read 1,000 times. During `configure`, reads answer [`ReadError::Unavailable`].
//!
//! Compiled natively, these functions read from `mock::Store`.
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

/// Whether a key has an entry. Cheaper than [`get`], also for the write: it need not be judged again when the value of
/// the key changes, only when the key goes.
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
