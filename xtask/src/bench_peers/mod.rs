//! `cargo xtask bench-peers`: compares brink and etcd under the same load.
//!
//! Both run on loopback, with their data on the same disk (below the target directory) and their default durability: a
//! write is answered once a majority has synced it. While one is measured the other is idle. `brink bench` loads both; it
//! can use etcd's JSON gateway. The loader shares the machine, so it reports its own CPU time. Since figures drift with the
//! machine, each case alternates between the two, and the ratio of the medians counts.
//!
//! Writes go to all nodes, the first client to the leader. Strong reads go to the leader, local ones to a follower.

mod case;
mod figures;
mod servers;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use self::case::{Case, Load};
use self::figures::{Compared, Figures};
use self::servers::{Peer, Servers};
use crate::{build, test};

/// The file that shows that etcd is installed, and its Debian package.
const ETCD: (&str, &str) = ("/usr/bin/etcd", "etcd-server");

/// Number of runs of each case; the medians count.
const ROUNDS: usize = 3;

/// Size of a value in bytes.
const VALUE_BYTES: &str = "256";

/// Number of keys.
const KEYS: &str = "20000";

/// Duration of the load before the measurement.
const WARMUP: &str = "1s";

/// Maximum time that a run may take beyond its duration, to prepare the keys for example.
const RUN_MARGIN: Duration = Duration::from_secs(60);

/// Time between two checks of a running loader.
const POLL: Duration = Duration::from_millis(50);

/// The options of `bench-peers`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Duration of each run, in seconds
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Numbers of clients, separated by commas [default: 1,16,64,256 for writes, 64 for reads]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    clients: Vec<u32>,
    /// Measure this part only
    #[arg(long)]
    only: Option<Part>,
    /// Measure this binary instead of building one
    #[arg(long, value_name = "FILE")]
    brink: Option<std::path::PathBuf>,
    /// Format of the figures
    #[arg(short, long, default_value = "table")]
    output: Output,
}

/// Parts of the comparison.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Writes to three nodes
    Writes,
    /// Reads from three nodes
    Reads,
    /// Writes to a single node
    Single,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Installs etcd, builds brink, measures both, and prints the comparison.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    test::install(&[ETCD])?;
    let brink = match &options.brink {
        Some(brink) => brink.clone(),
        None => {
            build::run(&build::cargo(), &["build", "--release", "--package", "brink"])?;
            build::target_dir()?.join("release").join("brink")
        }
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = interrupted.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;
    let bench = Bench { brink, seconds: options.seconds, interrupted };

    let mut compared = Vec::new();
    for nodes in [3, 1] {
        let cases = cases(options, nodes == 1);
        if !cases.is_empty() {
            compared.extend(bench.compare_all(nodes, &cases)?);
        }
    }
    match options.output {
        Output::Table => figures::print(&compared),
        Output::Json => println!("{}", figures::json(&compared)),
    }
    Ok(())
}

/// The cases for three nodes, or for a single node.
fn cases(options: &Options, single: bool) -> Vec<Case> {
    let wanted = |part| options.only.is_none_or(|only| only == part);
    let clients = |default: &[u32]| if options.clients.is_empty() { default.to_vec() } else { options.clients.clone() };
    let loads: &[(Part, Load, &[u32])] = if single {
        &[(Part::Single, Load::SingleWrites, &[1, 16, 64, 256])]
    } else {
        &[
            (Part::Writes, Load::Writes, &[1, 16, 64, 256]),
            (Part::Reads, Load::StrongReads, &[64]),
            (Part::Reads, Load::LocalReads, &[64]),
        ]
    };
    let wanted = loads.iter().filter(|(part, _, _)| wanted(*part));
    wanted
        .flat_map(|(_, load, default)| clients(default).into_iter().map(|clients| Case::new(*load, clients)))
        .collect()
}

/// The settings of all runs.
struct Bench {
    brink: std::path::PathBuf,
    seconds: u64,
    interrupted: Arc<AtomicBool>,
}

impl Bench {
    /// Measures cases on clusters of `nodes` nodes.
    fn compare_all(&self, nodes: usize, cases: &[Case]) -> anyhow::Result<Vec<Compared>> {
        let dir = build::target_dir()?.join("bench-peers");
        let mut brink = Servers::start(Peer::Brink, nodes, &self.brink, &dir)?;
        let mut etcd = Servers::start(Peer::Etcd, nodes, ETCD.0.as_ref(), &dir)?;
        brink.wait_ready(&self.interrupted)?;
        etcd.wait_ready(&self.interrupted)?;
        let mut compared = Vec::new();
        for case in cases {
            let mut runs = (Vec::new(), Vec::new());
            for round in 0..ROUNDS {
                // Alternate the order: the first run may warm the machine for the second.
                let order = if round % 2 == 0 { [Peer::Brink, Peer::Etcd] } else { [Peer::Etcd, Peer::Brink] };
                for peer in order {
                    let (servers, runs) = match peer {
                        Peer::Brink => (&mut brink, &mut runs.0),
                        Peer::Etcd => (&mut etcd, &mut runs.1),
                    };
                    runs.push(self.measure(servers, *case)?);
                }
            }
            compared.push(Compared { case: *case, brink: Figures::median(runs.0), etcd: Figures::median(runs.1) });
        }
        Ok(compared)
    }

    /// One run of the loader.
    fn measure(&self, servers: &mut Servers, case: Case) -> anyhow::Result<Figures> {
        servers.wait_ready(&self.interrupted)?;
        let urls = servers.urls_leader_first()?;
        let first = urls.first().context("no node runs")?;
        let urls = match case.load {
            Load::Writes | Load::SingleWrites => urls.join(","),
            Load::StrongReads => first.clone(),
            Load::LocalReads => urls.get(1).unwrap_or(first).clone(),
        };
        let (clients, duration) = (case.clients.to_string(), format!("{}s", self.seconds));
        let mut command = Command::new(&self.brink);
        command.args(["bench", "--output", "json", "--url", &urls, "--clients", &clients, "--duration", &duration]);
        command.args(["--warmup", WARMUP, "--value-bytes", VALUE_BYTES, "--keys", KEYS]);
        command.args(["--api", servers.peer().name()]);
        match case.load {
            Load::Writes | Load::SingleWrites => {}
            Load::StrongReads => drop(command.args(["--reads", "1", "--consistency", "strong"])),
            Load::LocalReads => drop(command.args(["--reads", "1", "--consistency", "local"])),
        }
        let (began, cpu_before) = (Instant::now(), servers.cpu_seconds());
        let report = self.run_loader(command)?;
        let server_cores = (servers.cpu_seconds() - cpu_before) / began.elapsed().as_secs_f64();
        let figures = Figures::of(&report, server_cores).context("the loader reports no figures")?;
        eprintln!("--- {} {:?}, {} clients: {figures}", servers.peer().name(), case.load, case.clients);
        Ok(figures)
    }

    /// Runs the loader to its end, and returns what it reports.
    fn run_loader(&self, mut command: Command) -> anyhow::Result<Value> {
        let mut loader = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("the loader")?;
        let deadline = Instant::now() + Duration::from_secs(self.seconds) + RUN_MARGIN;
        // The report is shorter than a pipe's buffer, so it can be read at the end.
        let status = loop {
            if let Some(status) = loader.try_wait()? {
                break status;
            }
            let interrupted = self.interrupted.load(Ordering::Relaxed);
            if interrupted || Instant::now() > deadline {
                loader.kill()?;
                loader.wait()?;
                bail!(if interrupted { "interrupted" } else { "the loader does not end" });
            }
            std::thread::sleep(POLL);
        };
        if self.interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        if !status.success() {
            bail!("the loader failed: {status}");
        }
        let report = loader.stdout.take().context("the loader's report")?;
        serde_json::from_reader(report).context("the loader's report is not JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(clients: &[u32], only: Option<Part>) -> Options {
        Options { seconds: 1, clients: clients.to_vec(), only, brink: None, output: Output::Table }
    }

    #[test]
    fn the_cases_are_those_with_targets_unless_told_otherwise() {
        let all: Vec<Case> = [false, true].into_iter().flat_map(|single| cases(&options(&[], None), single)).collect();
        assert_eq!(all.len(), 10);
        assert!(all.iter().all(|case| case.target.is_some()));
        let some = cases(&options(&[8], Some(Part::Writes)), false);
        assert_eq!(some, [Case { load: Load::Writes, clients: 8, target: None }]);
        assert!(cases(&options(&[], Some(Part::Writes)), true).is_empty());
    }
}
