//! `cargo xtask hook-cost`: what a bound hook costs a busy cluster.
//!
//! Two clusters of three nodes are loaded with writes in turns; one of them has a hook bound to all of the keys. The two runs of a
//! pair follow each other at once, every other pair begins with the hook, and the cost is that of each pair: what else the
//! machine does is nearly the same for both. A cluster is idle while the other is measured.
//!
//! The measurement begins once the plugin is compiled and its instances are pre-initialized, which the nodes do in the background
//! after it was bound. Until then each write pays for a configuration of its own.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::build;
use crate::figures::Figures;
use crate::interrupt::Interrupt;
use crate::loader::{Load, Loader};
use crate::node::{self, Cluster, Settings};

/// Number of nodes.
const NODES: usize = 3;

/// Name of the hook.
const HOOK: &str = "measured";

/// The prefix of the keys that `brink bench` writes.
const PREFIX: &str = "bench/";

/// Size of a value in bytes.
const VALUE_BYTES: u64 = 256;

/// Number of keys.
const KEYS: u64 = 20_000;

/// The most that a hook should cost, as a share of the rate and of the CPU time.
const COST_MAX: f64 = 0.10;

/// The options of `hook-cost`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The plugin of the hook, built from this repository
    #[arg(long, default_value = "json-schema")]
    plugin: Plugin,
    /// Number of pairs of runs
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pairs: u32,
    /// Duration of each run, in seconds
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// Number of clients that write at once
    #[arg(long, default_value_t = 64)]
    clients: u32,
    /// Measure this binary instead of building one
    #[arg(long, value_name = "FILE")]
    brink: Option<PathBuf>,
}

/// Plugins with a configuration that accepts the loader's values, which are strings.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Plugin {
    /// Validates: a string of a pattern and of a length
    JsonSchema,
    /// Validates: bytes and nesting
    Limits,
    /// Transforms: trims the value
    Normalize,
}

impl Plugin {
    fn package(self) -> &'static str {
        match self {
            Self::JsonSchema => "json-schema",
            Self::Limits => "limits",
            Self::Normalize => "normalize",
        }
    }

    fn config(self) -> Value {
        match self {
            Self::JsonSchema => json!({"schema": {"type": "string", "maxLength": 1_024, "pattern": "^[A-Za-z0-9]*$"}}),
            Self::Limits => json!({"bytes_max": 4_096, "depth_max": 4}),
            Self::Normalize => json!({"trim": [""]}),
        }
    }
}

/// Measures the pairs, and prints the cost of each and their median.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let brink = build::given_or_release(options.brink.as_deref())?;
    let package = options.plugin.package();
    build::plugins_only(&[package])?;
    let loader = Loader { brink, interrupt: Interrupt::catch()? };
    let mut clusters = Clusters { with: start(&loader, "with")?, without: start(&loader, "without")? };
    clusters.bind(options, &loader)?;
    let mut pairs = Vec::new();
    for number in 1..=options.pairs {
        let pair = clusters.measure_pair(options, &loader, number % 2 == 0)?;
        eprintln!("--- pair {number} of {}: {}", options.pairs, pair.line());
        pairs.push(pair);
    }
    print(options, &pairs);
    Ok(())
}

fn start(loader: &Loader, name: &str) -> anyhow::Result<Cluster> {
    let dir = build::target_dir()?.join("hook-cost").join(name);
    Cluster::start(&loader.brink, node::free_ports(NODES)?, &dir, Settings::Defaults)
}

/// The clusters with the hook and without it.
struct Clusters {
    with: Cluster,
    without: Cluster,
}

impl Clusters {
    /// Binds the hook, and waits until everything has run once and nothing is left to do.
    fn bind(&mut self, options: &Options, loader: &Loader) -> anyhow::Result<()> {
        let (package, config) = (options.plugin.package(), options.plugin.config().to_string());
        self.with.wait_ready(&loader.interrupt)?;
        self.without.wait_ready(&loader.interrupt)?;
        self.with.brink(&["plugin", "deploy", package, &build::plugin_file(package)?.to_string_lossy()])?;
        self.with.brink(&["plugin", "bind", HOOK, "--plugin", package, "--prefix", PREFIX, "--config", &config])?;
        for cluster in [&mut self.with, &mut self.without] {
            measure(options, loader, cluster)?;
            cluster.come_to_rest(&loader.interrupt)?;
        }
        Ok(())
    }

    fn measure_pair(&mut self, options: &Options, loader: &Loader, with_first: bool) -> anyhow::Result<Pair> {
        let (with, without) = match with_first {
            true => {
                let with = measure(options, loader, &mut self.with)?;
                (with, measure(options, loader, &mut self.without)?)
            }
            false => {
                let without = measure(options, loader, &mut self.without)?;
                (measure(options, loader, &mut self.with)?, without)
            }
        };
        Ok(Pair { with, without })
    }
}

/// One run.
fn measure(options: &Options, loader: &Loader, cluster: &mut Cluster) -> anyhow::Result<Figures> {
    let urls = node::urls(&cluster.wait_ready(&loader.interrupt)?);
    let load = Load::writes(&urls, options.clients, options.seconds, KEYS, VALUE_BYTES);
    loader.measure(&load, || cluster.cpu_seconds())
}

/// Two runs that followed each other.
struct Pair {
    with: Figures,
    without: Figures,
}

impl Pair {
    /// The part of the rate that the hook costs.
    fn rate_cost(&self) -> f64 {
        1.0 - self.with.rate / self.without.rate.max(1.0)
    }

    /// What the hook adds to the CPU time of a write, as a part of it.
    fn cpu_cost(&self) -> f64 {
        self.with.server_us() / self.without.server_us().max(0.1) - 1.0
    }

    fn line(&self) -> String {
        let of = |figures: &Figures| {
            let Figures { rate, p99_ms, .. } = figures;
            format!("{rate:.0}/s, p99 {p99_ms:.1} ms, {:.1} µs", figures.server_us())
        };
        let (rate, cpu) = (100.0 * self.rate_cost(), 100.0 * self.cpu_cost());
        format!("without {}; with {}; rate {rate:+.1} %, CPU {cpu:+.1} %", of(&self.without), of(&self.with))
    }
}

/// A figure of all pairs: its median, its least and its most.
#[derive(Debug, PartialEq)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(pairs: &[Pair], figure: fn(&Pair) -> f64) -> Option<Self> {
        let mut values: Vec<f64> = pairs.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        // Of an even number, the mean of the two in the middle.
        let (low, high) = (values.get((values.len() - 1) / 2)?, values.get(values.len() / 2)?);
        Some(Self { median: (low + high) / 2.0, least, most })
    }

    fn line(&self) -> String {
        let Self { median, least, most } = self;
        let verdict = if *median <= COST_MAX { "met" } else { "missed" };
        format!(
            "{:+.1} % (median; {:+.1} to {:+.1} %), goal of at most {:.0} % {verdict}",
            100.0 * median,
            100.0 * least,
            100.0 * most,
            100.0 * COST_MAX
        )
    }
}

fn print(options: &Options, pairs: &[Pair]) {
    let Options { clients, seconds, plugin, .. } = options;
    println!(
        "\na hook of {}, {clients} clients, {NODES} nodes, {} pairs of {seconds} s each",
        plugin.package(),
        pairs.len()
    );
    println!(
        "{:>13} {:>13} {:>13} {:>13} {:>9} {:>9}",
        "PER S WITHOUT", "PER S WITH", "µs WITHOUT", "µs WITH", "RATE %", "CPU %"
    );
    for pair in pairs {
        let (without, with) = (&pair.without, &pair.with);
        let (rate, cpu) = (100.0 * pair.rate_cost(), 100.0 * pair.cpu_cost());
        let (us_without, us_with) = (without.server_us(), with.server_us());
        let rates = format!("{:>13.0} {:>13.0}", without.rate, with.rate);
        println!("{rates} {us_without:>13.1} {us_with:>13.1} {rate:>9.1} {cpu:>9.1}");
    }
    for (name, figure) in
        [("rate", Pair::rate_cost as fn(&Pair) -> f64), ("CPU of a write over all nodes", Pair::cpu_cost)]
    {
        if let Some(spread) = Spread::of(pairs, figure) {
            println!("cost in {name}: {}", spread.line());
        }
    }
    // On a machine that is short of CPU time, calls of a plugin may exceed their time limit.
    let failed: f64 = pairs.iter().map(|pair| pair.with.errors + pair.without.errors).sum();
    if failed > 0.0 {
        println!("{failed} writes failed; they count neither in the rates nor in the latencies");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::run;

    #[test]
    fn the_cost_is_that_of_each_pair() {
        let pair = |with| Pair { with: run(with, 1.0), without: run(10_000.0, 1.0) };
        let pairs = [pair(9_000.0), pair(8_000.0), pair(10_500.0), pair(9_500.0)];
        let spread = Spread::of(&pairs, Pair::rate_cost).unwrap();
        assert_eq!(spread.line(), "+7.5 % (median; -5.0 to +20.0 %), goal of at most 10 % met");
        // The nodes use one core in each run of `run`.
        assert!((pairs[1].cpu_cost() - 0.25).abs() < 1e-9);
        assert!(Spread::of(&pairs[1..2], Pair::rate_cost).unwrap().line().ends_with("missed"));
        assert_eq!(Spread::of(&[], Pair::rate_cost), None);
    }
}
