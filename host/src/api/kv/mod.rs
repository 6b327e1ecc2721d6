//! Keys and values: everything below `/kv/`. The handlers are in `one`, `batch`, `stream` and `range`. They share `value` and `item`
//! (values and writes as requests bring them), `entry` (entries as responses show them) and `read` (how fresh a read is).

pub(super) mod batch;
mod entry;
mod item;
pub(super) mod one;
pub(super) mod range;
mod read;
pub(super) mod stream;
mod value;
