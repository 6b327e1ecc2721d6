//! Keys and values: everything below `/kv/`. The handlers are in `one`, `batch` and `range`. They share `value` (values as
//! requests bring them), `entry` (entries as responses show them) and `read` (how fresh a read is).

pub(super) mod batch;
mod entry;
pub(super) mod one;
pub(super) mod range;
mod read;
mod value;
