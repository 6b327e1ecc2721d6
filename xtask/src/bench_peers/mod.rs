//! `cargo xtask bench-peers`: compares brink with etcd, Redis and NATS under the same load.
//!
//! All run on loopback, with their data on the same disk (below the target directory). While one is measured the others are
//! idle. `brink bench` loads all of them, by one connection for each client. The loader shares the machine, so it reports its own
//! CPU time. Since figures drift with the machine, each case alternates between all of them, and the ratio of the medians counts.
//!
//! | server | a write is answered once | strong reads | local reads |
//! |---|---|---|---|
//! | brink, etcd | a majority has synced it | are linearizable | from a follower |
//! | Redis | the primary has synced it and one of two replicas has received it | from the primary | from a replica |
//! | NATS | a majority has it, synced or not | from the leader, which asks no other | from a follower |
//!
//! Writes go to all nodes, the first client to the leader; to Redis' primary only. Strong reads go to the leader, local ones to a
//! follower.
//!
//! ```text
//! mod → {compared → {figures, case}, servers} → peer
//! ```

mod case;
mod compared;
mod figures;
mod peer;
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use self::case::{Case, Load};
use self::compared::Compared;
use self::figures::Figures;
use self::peer::Peer;
use self::servers::Servers;
use crate::{build, tools};

/// Number of runs of each case; the medians count.
const ROUNDS: usize = 3;

/// Size of a value in bytes.
const VALUE_BYTES: &str = "256";

/// Number of keys.
const KEYS: &str = "20000";

/// Duration of the load before the measurement.
const WARMUP: &str = "1s";

/// Maximum time that a run may take beyond its duration, to prepare the keys for example. Longer than the loader waits for an answer.
const RUN_MARGIN: Duration = Duration::from_secs(120);

/// Replicas of Redis that must have a write, so that a majority of three nodes has it.
const WAIT_REPLICAS: &str = "1";

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
    /// What brink is compared with, separated by commas
    #[arg(long, value_name = "PEER", value_delimiter = ',', default_value = "etcd,etcd-json,redis,nats")]
    peers: Vec<Peer>,
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

/// Installs the peers, builds brink, measures all, and prints the comparison.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let packages: Vec<_> = options.peers.iter().filter_map(|peer| peer.package()).collect();
    tools::install(&packages)?;
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
    let peers = std::iter::once(Peer::Brink).chain(options.peers.iter().copied()).collect();
    let bench = Bench { brink, peers, seconds: options.seconds, interrupted };

    let mut compared = Vec::new();
    for nodes in [3, 1] {
        let cases = cases(options, nodes == 1);
        if !cases.is_empty() {
            compared.extend(bench.compare_all(nodes, &cases)?);
        }
    }
    match options.output {
        Output::Table => compared::print(&compared),
        Output::Json => println!("{}", compared::json(&compared)),
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
        .flat_map(|(_, load, default)| clients(default).into_iter().map(|clients| Case { load: *load, clients }))
        .collect()
}

/// The settings of all runs.
struct Bench {
    brink: std::path::PathBuf,
    peers: BTreeSet<Peer>,
    seconds: u64,
    interrupted: Arc<AtomicBool>,
}

impl Bench {
    /// Measures cases on clusters of `nodes` nodes.
    fn compare_all(&self, nodes: usize, cases: &[Case]) -> anyhow::Result<Vec<Compared>> {
        let dir = build::target_dir()?.join("bench-peers");
        let mut clusters = Vec::new();
        for peer in &self.peers {
            let program = peer.package().map_or(self.brink.as_path(), |(program, _)| program.as_ref());
            clusters.push(Servers::start(*peer, nodes, program, &dir)?);
        }
        for servers in &mut clusters {
            servers.wait_ready(&self.interrupted)?;
        }
        let mut compared = Vec::new();
        let mut is_prepared = false;
        for case in cases {
            if case.load.is_read() && !is_prepared {
                clusters.iter().try_for_each(|servers| self.prepare_reads(servers))?;
                is_prepared = true;
            }
            compared.push(self.compare(&mut clusters, *case)?);
        }
        Ok(compared)
    }

    /// Measures a case on all clusters, brink's first.
    fn compare(&self, clusters: &mut [Servers], case: Case) -> anyhow::Result<Compared> {
        let mut runs: BTreeMap<Peer, Vec<Figures>> = BTreeMap::new();
        for round in 0..ROUNDS {
            for turn in 0..clusters.len() {
                // Each round begins with another: a run may warm the machine for the next.
                let index = (round + turn) % clusters.len();
                let servers = clusters.get_mut(index).context("no servers run")?;
                let figures = self.measure(servers, case)?;
                runs.entry(servers.peer()).or_default().push(figures);
            }
        }
        let mut median = |peer| runs.remove(&peer).map(Figures::median);
        let brink = median(Peer::Brink).context("brink was not measured")?;
        let peers = self.peers.iter().filter_map(|peer| Some((*peer, median(*peer)?))).collect();
        Ok(Compared { case, brink, peers })
    }

    /// Writes every key once. The loader does so before its first read; that load ends at once.
    fn prepare_reads(&self, servers: &Servers) -> anyhow::Result<()> {
        let urls = servers.urls_leader_first()?;
        let mut command = self.loader(servers.peer(), urls.first().context("no node runs")?);
        command.args(["--reads", "1", "--clients", "1", "--warmup", "0s", "--duration", "1ms"]);
        self.run_loader(command)?;
        Ok(())
    }

    /// One run of the loader.
    fn measure(&self, servers: &mut Servers, case: Case) -> anyhow::Result<Figures> {
        servers.wait_ready(&self.interrupted)?;
        let (peer, urls) = (servers.peer(), servers.urls_leader_first()?);
        let first = urls.first().context("no node runs")?;
        let urls = match case.load {
            Load::Writes if peer == Peer::Redis => first.clone(),
            Load::Writes | Load::SingleWrites => urls.join(","),
            Load::StrongReads => first.clone(),
            Load::LocalReads => urls.get(1).unwrap_or(first).clone(),
        };
        let mut command = self.loader(peer, &urls);
        command.args(["--clients", &case.clients.to_string(), "--duration", &format!("{}s", self.seconds)]);
        command.args(["--warmup", WARMUP]);
        match case.load {
            Load::Writes if peer == Peer::Redis => drop(command.args(["--wait-replicas", WAIT_REPLICAS])),
            Load::Writes | Load::SingleWrites => {}
            Load::StrongReads => drop(command.args(["--reads", "1", "--prepared", "--consistency", "strong"])),
            Load::LocalReads => drop(command.args(["--reads", "1", "--prepared", "--consistency", "local"])),
        }
        let (began, cpu_before) = (Instant::now(), servers.cpu_seconds());
        let report = self.run_loader(command)?;
        let server_cores = (servers.cpu_seconds() - cpu_before) / began.elapsed().as_secs_f64();
        let figures = Figures::of(&report, server_cores).context("the loader reports no figures")?;
        eprintln!("--- {} {:?}, {} clients: {figures}", peer.name(), case.load, case.clients);
        Ok(figures)
    }

    /// The loader with the options of all runs.
    fn loader(&self, peer: Peer, urls: &str) -> Command {
        let mut command = Command::new(&self.brink);
        command.args(["bench", "--output", "json", "--api", peer.api(), "--url", urls]);
        command.args(["--value-bytes", VALUE_BYTES, "--keys", KEYS]);
        command
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
        let peers = vec![Peer::EtcdJson];
        Options { seconds: 1, clients: clients.to_vec(), peers, only, brink: None, output: Output::Table }
    }

    #[test]
    fn the_cases_are_those_with_targets_unless_told_otherwise() {
        let all: Vec<Case> = [false, true].into_iter().flat_map(|single| cases(&options(&[], None), single)).collect();
        assert_eq!(all.len(), 10);
        assert!(all.iter().all(|case| case.rate_target(Peer::EtcdJson).is_some()));
        let some = cases(&options(&[8], Some(Part::Writes)), false);
        assert_eq!(some, [Case { load: Load::Writes, clients: 8 }]);
        assert_eq!(
            (Load::Writes.is_read(), some[0].rate_target(Peer::EtcdJson), some[0].cpu_target_us()),
            (false, None, None)
        );
        assert!(cases(&options(&[], Some(Part::Writes)), true).is_empty());
    }
}
