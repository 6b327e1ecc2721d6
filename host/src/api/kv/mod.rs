//! Keys and values: everything below `/kv/`.
//!
//! - `one`: `PUT`, `GET` and `DELETE` of a key.
//! - `batch`: many writes, all or none.
//! - `range`: many keys in order, in pages.
//!
//! They share `value` (values as requests bring them), `entry` (entries as responses show them) and `read` (how fresh a
//! read is).

pub(super) mod batch;
mod entry;
pub(super) mod one;
pub(super) mod range;
mod read;
mod value;
