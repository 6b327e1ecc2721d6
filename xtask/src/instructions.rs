//! `cargo xtask instructions`: how many instructions a node executes for a write and for a read.
//!
//! Times vary with the machine and with what else it does. Instructions, counted by callgrind, vary by a percent or two, so a
//! change that makes requests more expensive shows in each run. The figures are those of the whole process, between two moments: what a node does
//! while it waits counts as well, about 2,000 instructions for each millisecond. The kernel's instructions do not count.
//!
//! The build is optimized, without the link-time optimization of a release, which takes minutes.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use crate::http::Client;
use crate::node::{self, Process};
use crate::{build, tools};

/// The file that shows that callgrind is installed, and its Debian package.
const VALGRIND: (&str, &str) = ("/usr/bin/callgrind_control", "valgrind");

/// The recorded figures, from the top of the repository.
const RECORD: &str = "docs/instructions.json";

/// Maximum growth of a figure over the recorded one.
const GROWTH_MAX: f64 = 0.10;

/// Number of clients that write at once.
const CLIENTS: usize = 64;

/// Number of keys, so that all requests after the first find them.
const KEYS: usize = 512;

/// Requests that are counted for each figure, and those before them that are not.
const REQUESTS: usize = 1_024;

/// Length of a value in bytes.
const VALUE_BYTES: usize = 256;

/// Maximum time for the node to start, under callgrind.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// Pause between attempts to reach it, and until it is at rest.
const POLL: Duration = Duration::from_millis(200);

/// Instructions by what they are for.
type Counts = BTreeMap<String, u64>;

/// The options of `instructions`.
#[derive(Default, clap::Args)]
pub(crate) struct Options {
    /// Record the figures instead of comparing them
    #[arg(long)]
    record: bool,
    /// Count this binary instead of building one
    #[arg(long, value_name = "FILE")]
    brink: Option<PathBuf>,
}

/// What is counted.
#[derive(Clone, Copy)]
enum Load {
    OneWrite,
    ConcurrentWrites,
    StrongRead,
    LocalRead,
}

impl Load {
    const ALL: [Self; 4] = [Self::OneWrite, Self::ConcurrentWrites, Self::StrongRead, Self::LocalRead];

    fn name(self) -> &'static str {
        match self {
            Self::OneWrite => "a write by one client",
            Self::ConcurrentWrites => "a write of 64 clients",
            Self::StrongRead => "a linearizable read",
            Self::LocalRead => "a local read",
        }
    }
}

/// Counts, prints, and compares with the recorded figures.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    tools::install(&[VALGRIND])?;
    let brink = match &options.brink {
        Some(brink) => brink.clone(),
        None => build::counted()?,
    };
    let counts = Counted::start(&brink)?.count_all()?;
    let path = build::root().join(RECORD);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    // Each kind of processor has its own instructions.
    let mut recorded: BTreeMap<String, Counts> = serde_json::from_str(&text)?;
    if options.record {
        recorded.insert(ARCH.to_owned(), counts);
        let text = serde_json::to_string_pretty(&recorded)?;
        return std::fs::write(&path, text + "\n").with_context(|| path.display().to_string());
    }
    match recorded.get(ARCH) {
        Some(recorded) => compare(&counts, recorded),
        None => {
            println!("{RECORD} has no figures for {ARCH}; `cargo xtask instructions --record` adds these: {counts:?}");
            Ok(())
        }
    }
}

/// Prints the figures beside the recorded ones; fails if one has grown too much.
fn compare(counts: &Counts, recorded: &Counts) -> anyhow::Result<()> {
    let mut above = Vec::new();
    println!("instructions of a node for");
    for (name, count) in counts {
        let before = *recorded.get(name).with_context(|| format!("{RECORD} has no figure for {name}"))?;
        let growth = *count as f64 / before as f64 - 1.0;
        println!("  {name:<24} {count:>8}  recorded {before:>8}  {:>+6.1} %", 100.0 * growth);
        if growth > GROWTH_MAX {
            above.push(name.as_str());
        }
    }
    ensure!(
        above.is_empty(),
        "more than {:.0} % above the record: {}; if that is worth it, `cargo xtask instructions --record`",
        100.0 * GROWTH_MAX,
        above.join(", ")
    );
    Ok(())
}

/// A node under callgrind.
struct Counted {
    process: Process,
    port: u16,
    dir: PathBuf,
    /// How often the counts were written to a file so far.
    dumps: u32,
}

impl Counted {
    fn start(brink: &Path) -> anyhow::Result<Self> {
        let dir = build::target_dir()?.join("instructions");
        node::remove_dir(&dir)?;
        let port = *node::free_ports(1)?.first().context("no port is free")?;
        let mut command = Command::new("valgrind");
        command.args(["--tool=callgrind", "--instr-atstart=no"]);
        command.arg(format!("--callgrind-out-file={}", dir.join("counts").display()));
        command.arg(brink).arg("serve").args(["--listen", &format!("127.0.0.1:{port}")]);
        node::without_settings(&mut command);
        // One worker, however many cores there are.
        command.arg("--data-dir").arg(dir.join("data")).env("TOKIO_WORKER_THREADS", "1");
        let mut node = Self { process: Process::start(command, &dir)?, port, dir, dumps: 0 };
        let began = Instant::now();
        while !Client::connect(port).is_ok_and(|mut client| client.is_ready()) {
            node.process.check()?;
            let log = node.process.log().display();
            ensure!(began.elapsed() < READY_DEADLINE, "the node does not start; its log: {log}");
            std::thread::sleep(POLL);
        }
        std::thread::sleep(POLL);
        Ok(node)
    }

    /// Counts each load, once all keys are written and everything has run before.
    fn count_all(mut self) -> anyhow::Result<Counts> {
        let mut clients: Vec<Client> = (0..CLIENTS).map(|_| Client::connect(self.port)).collect::<Result<_, _>>()?;
        for load in Load::ALL {
            run_load(load, &mut clients)?;
        }
        self.control("-i", Some("on"))?;
        let mut counts = Counts::new();
        for load in Load::ALL {
            // The first requests are translated by valgrind while they run.
            run_load(load, &mut clients)?;
            self.control("-z", None)?;
            run_load(load, &mut clients)?;
            let count = self.dump()?;
            // callgrind_control reports no failure.
            ensure!(count > 0, "callgrind has counted nothing");
            counts.insert(load.name().to_owned(), count / REQUESTS as u64);
        }
        Ok(counts)
    }

    fn control(&self, option: &str, value: Option<&str>) -> anyhow::Result<()> {
        let mut command = Command::new(VALGRIND.0);
        command.arg(option).args(value).arg(self.process.id().to_string());
        let output = command.stdin(Stdio::null()).output().context("callgrind_control cannot be run")?;
        ensure!(output.status.success(), "callgrind_control: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// The instructions since the counts were set to zero.
    fn dump(&mut self) -> anyhow::Result<u64> {
        self.control("-d", None)?;
        self.dumps += 1;
        let path = self.dir.join(format!("counts.{}", self.dumps));
        for line in BufReader::new(File::open(&path).with_context(|| path.display().to_string())?).lines() {
            if let Some(totals) = line?.strip_prefix("totals: ") {
                return Ok(totals.trim().parse()?);
            }
        }
        bail!("{} has no totals", path.display())
    }
}

/// Sends [`REQUESTS`] requests.
fn run_load(load: Load, clients: &mut [Client]) -> anyhow::Result<()> {
    let body = format!("{{\"value\":\"{}\"}}", "x".repeat(VALUE_BYTES));
    let path = |number: usize| format!("/kv-store/v1/kv/counted/{}/", number % KEYS);
    let (method, query, body) = match load {
        Load::OneWrite | Load::ConcurrentWrites => ("PUT", "", body.as_str()),
        Load::StrongRead => ("GET", "?consistency=strong", ""),
        Load::LocalRead => ("GET", "?consistency=local", ""),
    };
    let at_once = if matches!(load, Load::ConcurrentWrites) { CLIENTS } else { 1 };
    for first in (0..REQUESTS).step_by(at_once) {
        for (client, number) in clients.iter_mut().take(at_once).zip(first..) {
            client.begin(method, &(path(number) + query), body)?;
        }
        clients.iter_mut().take(at_once).try_for_each(Client::finish)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_may_grow_by_a_tenth() {
        let counts = |count| Counts::from([("a write".to_owned(), count)]);
        assert!(compare(&counts(1_099), &counts(1_000)).is_ok());
        assert!(compare(&counts(900), &counts(1_000)).is_ok());
        let error = compare(&counts(1_101), &counts(1_000)).unwrap_err().to_string();
        assert!(error.starts_with("more than 10 % above the record: a write;"), "{error}");
        assert!(compare(&counts(1), &Counts::new()).is_err());
    }
}
