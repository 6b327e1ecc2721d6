//! `cargo xtask flame`: flame graphs of the nodes of a cluster that is busy with writes, one SVG for each node.
//!
//! `perf` samples each node's CPU time with its stacks, user and kernel, by a clock: machines without counters of their own, as most
//! virtual ones are, have no other event. Stacks are unwound with DWARF from the tables that every binary has for panics,
//! so that no special build is needed. Frame pointers would be cheaper to sample, but all code would have to be compiled again with
//! them, and the C code of the allocator has none.

use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use inferno::collapse::Collapse as _;
use inferno::collapse::perf::Folder;
use inferno::flamegraph;

use crate::interrupt::Interrupt;
use crate::loader::{Load, Loader};
use crate::node::{self, Cluster, Settings};
use crate::{build, tools};

/// The file that shows that perf is installed, and its Debian package.
const PERF: (&str, &str) = ("/usr/bin/perf", "linux-perf");

/// Number of nodes.
const NODES: usize = 3;

/// Size of a value in bytes.
const VALUE_BYTES: u64 = 256;

/// Number of keys.
const KEYS: u64 = 20_000;

/// Part of a stack that each sample copies, in bytes; a sample has at most 64 KiB. Deeper frames are cut off.
const STACK_BYTES: u32 = 60 * 1024;

/// Time of the load before sampling begins, and after it has ended.
const MARGIN: Duration = Duration::from_secs(2);

/// Maximum time for perf to write its samples, or to unwind them.
const PERF_DEADLINE: Duration = Duration::from_secs(300);

/// The options of `flame`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Number of clients that write at once
    #[arg(long, default_value_t = 64)]
    clients: u32,
    /// How long to sample, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=120))]
    seconds: u64,
    /// Samples per second of CPU time
    #[arg(long, default_value_t = 499, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    frequency: u32,
    /// Sample this binary instead of building one
    #[arg(long, value_name = "FILE")]
    brink: Option<PathBuf>,
}

/// Loads a cluster, samples its nodes, and draws a flame graph of each.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    tools::install(&[PERF])?;
    let brink = match &options.brink {
        Some(brink) => brink.clone(),
        None => build::counted()?,
    };
    let loader = Loader { brink, interrupt: Interrupt::catch()? };
    let dir = build::target_dir()?.join("flame");
    node::remove_dir(&dir)?;
    let mut cluster = Cluster::start(&loader.brink, node::free_ports(NODES)?, &dir.join("nodes"), Settings::Defaults)?;
    let ports = cluster.wait_ready(&loader.interrupt)?;
    let leader = *ports.first().context("no node runs")?;
    let names = cluster.nodes().zip(1..).map(|((port, process), number)| {
        let name = if port == leader { "leader".to_owned() } else { format!("follower-{number}") };
        (name, process.id())
    });
    let nodes: Vec<(String, u32)> = names.collect();

    let urls = node::urls(&ports);
    let seconds = options.seconds + 2 * MARGIN.as_secs();
    let load = Load::writes(&urls, options.clients, seconds, KEYS, VALUE_BYTES);
    let figures = std::thread::scope(|scope| {
        let load = scope.spawn(|| loader.measure(&load, || cluster.cpu_seconds()));
        let sampled = sample(options, &dir, &nodes);
        let figures = load.join().unwrap_or_else(|_| bail!("the thread of the loader panicked"))?;
        sampled.map(|()| figures)
    })?;
    eprintln!("--- while sampled: {figures}");
    cluster.check()?;
    drop(cluster);
    for (name, _) in &nodes {
        loader.interrupt.check()?;
        let title = format!("{name} of {NODES} nodes, {} clients that write {VALUE_BYTES} bytes", options.clients);
        println!("{}", draw(&dir, name, &title)?);
    }
    Ok(())
}

/// Samples all nodes at the same time.
fn sample(options: &Options, dir: &Path, nodes: &[(String, u32)]) -> anyhow::Result<()> {
    std::thread::sleep(MARGIN);
    let mut samplers = Samplers(Vec::new());
    for (name, process) in nodes {
        let mut perf = Command::new(PERF.0);
        perf.args(["record", "--event", "cpu-clock", "--freq", &options.frequency.to_string()]);
        perf.args(["--call-graph", &format!("dwarf,{STACK_BYTES}"), "--pid", &process.to_string()]);
        perf.arg("--output").arg(data(dir, name)).args(["--", "sleep", &options.seconds.to_string()]);
        let log = File::create(dir.join(format!("{name}.log")))?;
        perf.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        samplers.0.push(perf.spawn().context("perf cannot be started")?);
    }
    for perf in &mut samplers.0 {
        let status = node::wait(perf, Duration::from_secs(options.seconds) + PERF_DEADLINE)?;
        let hint = "does /proc/sys/kernel/perf_event_paranoid allow it?";
        ensure!(status.success(), "perf cannot sample ({status}; {hint}); its output is in {}", dir.display());
    }
    Ok(())
}

/// Running samplers. Dropping them ends them.
struct Samplers(Vec<Child>);

impl Drop for Samplers {
    fn drop(&mut self) {
        for perf in &mut self.0 {
            // Fails only if it has ended already.
            let _ = perf.kill();
            let _ = perf.wait();
        }
    }
}

/// The samples of a node.
fn data(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.data"))
}

/// Draws the flame graph of a node, and returns a line about it.
fn draw(dir: &Path, name: &str, title: &str) -> anyhow::Result<String> {
    let script = dir.join(format!("{name}.stacks"));
    let mut perf = Command::new(PERF.0);
    // Without inlined functions: perf asks another program for each of them, which takes minutes.
    perf.args(["script", "--no-inline", "--input"]).arg(data(dir, name)).stdin(Stdio::null());
    perf.stdout(File::create(&script)?).stderr(File::create(dir.join(format!("{name}.log")))?);
    let mut unwinding = Samplers(vec![perf.spawn().context("perf cannot be started")?]);
    for perf in &mut unwinding.0 {
        let status = node::wait(perf, PERF_DEADLINE)?;
        ensure!(status.success(), "perf cannot unwind the stacks of {name}: {status}");
    }
    let mut folded = Vec::new();
    Folder::default().collapse(BufReader::new(File::open(&script)?), &mut folded)?;
    let folded = String::from_utf8(folded).context("the names of functions are not UTF-8")?;
    // A sample counts as the CPU time since the one before, in nanoseconds.
    let lines = folded.lines().filter_map(|line| {
        let (stack, ns) = line.rsplit_once(' ')?;
        Some((stack, ns.parse::<u64>().ok()? / 1_000))
    });
    let lines: Vec<(&str, u64)> = lines.collect();
    let total_us: u64 = lines.iter().map(|(_, us)| us).sum();
    ensure!(total_us > 0, "perf has no samples of {name}");
    let lines: Vec<String> = lines.into_iter().map(|(stack, us)| format!("{stack} {us}")).collect();
    let svg = dir.join(format!("{name}.svg"));
    let mut options = flamegraph::Options::default();
    options.title = title.to_owned();
    options.count_name = "µs of CPU time".to_owned();
    let out = BufWriter::new(File::create(&svg)?);
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)
        .with_context(|| svg.display().to_string())?;
    Ok(format!("{}: {:.1} s of CPU time", svg.display(), total_us as f64 / 1e6))
}
