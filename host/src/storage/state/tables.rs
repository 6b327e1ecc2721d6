//! The tables of the state.

use crate::storage::command::Space;
use crate::storage::engine::{Table, fjall::TableOptions};

pub(super) const KV: Table = Table(0);
pub(super) const SYSTEM: Table = Table(1);
/// Format, revision, hook epoch, and the caller's own values.
pub(super) const META: Table = Table(2);
pub(super) const IDEMPOTENCY: Table = Table(3);

const KV_MEMTABLE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Smaller for the other tables: a table in memory holds every version of its keys, and positions change with every
/// apply; a flushed one holds one version of each.
const MEMTABLE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Values larger than this are stored apart from their keys, so that compaction does not copy them.
const SEPARATE_BYTES_MIN: Option<u32> = Some(4 * 1024);

/// The settings of the tables, in the order of their numbers.
pub(super) const OPTIONS: [TableOptions; 4] = [
    TableOptions { name: "kv", memtable_bytes_max: KV_MEMTABLE_BYTES_MAX, separate_bytes_min: SEPARATE_BYTES_MIN },
    TableOptions { name: "system", memtable_bytes_max: MEMTABLE_BYTES_MAX, separate_bytes_min: SEPARATE_BYTES_MIN },
    TableOptions { name: "meta", memtable_bytes_max: MEMTABLE_BYTES_MAX, separate_bytes_min: None },
    TableOptions { name: "idempotency", memtable_bytes_max: MEMTABLE_BYTES_MAX, separate_bytes_min: None },
];

pub(super) const fn of(space: Space) -> Table {
    match space {
        Space::Kv => KV,
        Space::System => SYSTEM,
    }
}
