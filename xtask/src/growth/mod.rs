//! `cargo xtask growth`: what a write costs when a cluster holds more keys, or larger values.
//!
//! For each size, three nodes with empty disks are filled with keys, come to rest, and are loaded with writes to random ones of
//! these keys. A write that costs the same at any size is a flat line in the plot.
//!
//! ```text
//! mod → {fill, plot} → row
//! ```

mod fill;
mod plot;
mod row;

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::Value;

use self::fill::Fill;
use self::plot::Series;
use self::row::Row;
use crate::build;
use crate::figures::Figures;
use crate::interrupt::Interrupt;
use crate::loader::{Load, Loader};
use crate::node::{self, Cluster, Settings};

/// Number of nodes.
const NODES: usize = 3;

/// Size of values in bytes while the number of keys grows.
const VALUE_BYTES: u64 = 256;

/// Number of keys while the size of values grows.
const KEYS: u64 = 20_000;

/// Number of runs for each size; the medians count.
const ROUNDS: usize = 3;

/// The unit in which the system counts the blocks of a file.
const BLOCK_BYTES: u64 = 512;

/// The options of `growth`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Numbers of keys with values of 256 bytes, separated by commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "20000,1000000")]
    keys: Vec<u64>,
    /// Sizes of values in bytes with 20,000 keys, separated by commas
    #[arg(long, value_name = "BYTES", value_delimiter = ',', default_value = "16,256,4096,262144")]
    value_bytes: Vec<u64>,
    /// Number of clients that write at once
    #[arg(long, default_value_t = 64)]
    clients: u32,
    /// Duration of each of three runs, in seconds
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Most MiB of keys and values on a node: larger numbers of keys are left out, larger values have fewer keys
    #[arg(long, value_name = "MIB", default_value_t = 4_096)]
    mib_max: u64,
    /// Most minutes to fill the nodes for one size
    #[arg(long, value_name = "MINUTES", default_value_t = 30)]
    fill_minutes_max: u64,
    /// Measure this binary instead of building one
    #[arg(long, value_name = "FILE")]
    brink: Option<PathBuf>,
}

/// Measures each size, prints a table, and writes the figures and a plot below the target directory.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let sizes = sizes(options);
    ensure!(!sizes.is_empty(), "nothing is left to measure");
    let brink = build::given_or_release(options.brink.as_deref())?;
    let loader = Loader { brink, interrupt: Interrupt::catch()? };
    let dir = build::target_dir()?.join("growth");
    std::fs::create_dir_all(&dir)?;
    let mut rows = Vec::new();
    for size in sizes {
        rows.push(measure(options, &loader, size, &dir.join("nodes"))?);
        // After each size: the next may take long, or fail.
        save(&rows, options, &dir)?;
    }
    println!("\n{}", Row::head());
    rows.iter().for_each(|row| println!("{}", row.line()));
    println!("\nplot: {0}/growth.svg, figures: {0}/growth.json", dir.display());
    Ok(())
}

/// The sizes to measure, each once.
fn sizes(options: &Options) -> Vec<Fill> {
    let mut sizes: Vec<Fill> = Vec::new();
    for keys in &options.keys {
        if *keys > keys_max(options, VALUE_BYTES) {
            eprintln!("{keys} keys are left out: their values have more than {} MiB (--mib-max)", options.mib_max);
        } else {
            sizes.push(Fill { keys: *keys, value_bytes: VALUE_BYTES });
        }
    }
    for value_bytes in &options.value_bytes {
        let size = Fill { keys: KEYS.min(keys_max(options, *value_bytes)), value_bytes: *value_bytes };
        if !sizes.contains(&size) {
            sizes.push(size);
        }
    }
    sizes
}

/// The number of keys that fit into the space of a node.
fn keys_max(options: &Options, value_bytes: u64) -> u64 {
    options.mib_max * 1024 * 1024 / value_bytes.max(1)
}

/// Fills a new cluster and measures it. Removes its data.
fn measure(options: &Options, loader: &Loader, size: Fill, dir: &Path) -> anyhow::Result<Row> {
    let Fill { keys, value_bytes } = size;
    let mut cluster = Cluster::start(&loader.brink, node::free_ports(NODES)?, dir, Settings::Defaults)?;
    let leader = *cluster.wait_ready(&loader.interrupt)?.first().context("no node runs")?;
    eprintln!("--- {keys} keys, values of {value_bytes} bytes: filling");
    let began = Instant::now();
    size.run(leader, began + Duration::from_secs(60 * options.fill_minutes_max), &loader.interrupt)?;
    let fill_seconds = began.elapsed().as_secs_f64();
    cluster.come_to_rest(&loader.interrupt)?;
    let disk_mib = dir_bytes(dir)? as f64 / NODES as f64 / (1024.0 * 1024.0);

    let urls = node::urls(&cluster.wait_ready(&loader.interrupt)?);
    let load = Load::writes(&urls, options.clients, options.seconds, keys, value_bytes);
    let mut runs = Vec::new();
    for _ in 0..ROUNDS {
        let figures = loader.measure(&load, || cluster.cpu_seconds())?;
        eprintln!("--- {keys} keys, values of {value_bytes} bytes: {figures}");
        runs.push(figures);
        cluster.check()?;
    }
    // Their data may fill the disk for the next size.
    drop(cluster);
    node::remove_dir(dir)?;
    Ok(Row { keys, value_bytes, fill_seconds, disk_mib, figures: Figures::median(runs) })
}

/// The bytes that all files below a directory take up.
fn dir_bytes(dir: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let entry = entry?;
        // A file that the node has removed meanwhile counts nothing.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { dir_bytes(&entry.path())? } else { BLOCK_BYTES * metadata.blocks() };
    }
    Ok(bytes)
}

/// Writes the figures and the plot.
fn save(rows: &[Row], options: &Options, dir: &Path) -> anyhow::Result<()> {
    let json: Value = rows.iter().map(Row::json).collect();
    std::fs::write(dir.join("growth.json"), format!("{json:#}\n"))?;
    let title =
        format!("Writes of {} clients to {NODES} nodes, values of {VALUE_BYTES} bytes or {KEYS} keys", options.clients);
    let keys = |row: &&Row| row.value_bytes == VALUE_BYTES && options.keys.contains(&row.keys);
    let bytes = |row: &&Row| {
        row.keys == KEYS.min(keys_max(options, row.value_bytes)) && options.value_bytes.contains(&row.value_bytes)
    };
    let series = [
        Series::new("keys", rows.iter().filter(keys), |row| row.keys as f64),
        Series::new("bytes of a value", rows.iter().filter(bytes), |row| row.value_bytes as f64),
    ];
    plot::draw(&dir.join("growth.svg"), &title, &series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_is_measured_once_and_within_the_space() {
        let options = Options {
            keys: vec![20_000, 100_000_000],
            value_bytes: vec![16, 256, 262_144],
            clients: 1,
            seconds: 1,
            mib_max: 1_024,
            fill_minutes_max: 1,
            brink: None,
        };
        let found: Vec<_> = sizes(&options).into_iter().map(|size| (size.keys, size.value_bytes)).collect();
        assert_eq!(found, [(20_000, 256), (20_000, 16), (4_096, 262_144)]);
    }
}
