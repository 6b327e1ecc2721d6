//! What was measured at one size of the state.

use serde_json::{Value, json};

use crate::figures::Figures;

/// The figures at a number of keys and a size of values.
pub(super) struct Row {
    pub(super) keys: u64,
    pub(super) value_bytes: u64,
    /// Time that filling took, in seconds.
    pub(super) fill_seconds: f64,
    /// Size of a node's data directory after filling, in MiB.
    pub(super) disk_mib: f64,
    pub(super) figures: Figures,
}

impl Row {
    /// The head of the table that [`Self::line`] fills.
    pub(super) fn head() -> String {
        format!(
            "{:>9} {:>7} {:>9} {:>9} {:>9} {:>9} {:>8} {:>9}",
            "KEYS", "BYTES", "PER SEC", "P50 MS", "P99 MS", "NODES µs", "FILL S", "DISK MIB"
        )
    }

    pub(super) fn line(&self) -> String {
        let Self { keys, value_bytes, fill_seconds, disk_mib, figures } = self;
        let Figures { rate, p50_ms, p99_ms, errors, .. } = figures;
        let server_us = figures.server_us();
        let line = format!("{keys:>9} {value_bytes:>7} {rate:>9.0} {p50_ms:>9.2} {p99_ms:>9.2} {server_us:>9.1}");
        let line = format!("{line} {fill_seconds:>8.0} {disk_mib:>9.0}");
        if *errors > 0.0 { format!("{line}  {errors} errors in a run") } else { line }
    }

    pub(super) fn json(&self) -> Value {
        let Self { keys, value_bytes, fill_seconds, disk_mib, figures } = self;
        json!({
            "keys": keys, "value_bytes": value_bytes, "fill_seconds": fill_seconds, "disk_mib": disk_mib,
            "figures": figures.json(),
        })
    }
}
