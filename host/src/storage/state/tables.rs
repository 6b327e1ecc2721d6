//! The tables of the state.

use crate::storage::command::Space;
use crate::storage::engine::{Table, fjall::TableOptions};

pub(super) const KV: Table = Table(0);
pub(super) const SYSTEM: Table = Table(1);
/// Format, revision, hook epoch, and the caller's own values.
pub(super) const META: Table = Table(2);
pub(super) const IDEMPOTENCY: Table = Table(3);
/// The large values of [`KV`] and [`SYSTEM`], by the keys of their entries.
pub(super) const KV_VALUES: Table = Table(4);
pub(super) const SYSTEM_VALUES: Table = Table(5);

const KV_MEMTABLE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Smaller for the other tables: a table in memory holds every version of its keys, and positions change with each flush of
/// the buffer before it; one on disk holds one version of each.
const MEMTABLE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Rows larger than this are stored apart from their keys, so that compaction does not copy them.
const SEPARATE_BYTES_MIN: u32 = 4 * 1024;

/// The settings of the tables, in the order of their numbers.
pub(super) const OPTIONS: [TableOptions; 6] = [
    TableOptions { compacts_deletions: true, ..entries("kv", KV_MEMTABLE_BYTES_MAX) },
    entries("system", MEMTABLE_BYTES_MAX),
    TableOptions { separate_bytes_min: None, ..entries("meta", MEMTABLE_BYTES_MAX) },
    TableOptions { separate_bytes_min: None, ..entries("idempotency", MEMTABLE_BYTES_MAX) },
    entries("kv-values", KV_MEMTABLE_BYTES_MAX),
    entries("system-values", MEMTABLE_BYTES_MAX),
];

const fn entries(name: &'static str, memtable_bytes_max: u64) -> TableOptions {
    TableOptions { name, memtable_bytes_max, separate_bytes_min: Some(SEPARATE_BYTES_MIN), compacts_deletions: false }
}

/// The table of a space's entries.
pub(super) const fn of(space: Space) -> Table {
    match space {
        Space::Kv => KV,
        Space::System => SYSTEM,
    }
}

/// The table of a space's large values.
pub(super) const fn values_of(space: Space) -> Table {
    match space {
        Space::Kv => KV_VALUES,
        Space::System => SYSTEM_VALUES,
    }
}

/// The space whose entries a table holds.
pub(super) fn space_of(table: Table) -> Option<Space> {
    [Space::Kv, Space::System].into_iter().find(|space| of(*space) == table)
}
