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
//! With `--paced`, each case is measured again at 70 % of each server's own rate. Latencies then count from the times when
//! requests are due, and show how a server behaves that is busy but not saturated.
//!
//! ```text
//! mod → {compared → case, servers} → peer
//! ```

mod case;
mod compared;
mod peer;
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, ensure};

use self::case::{Case, Load};
use self::compared::Compared;
use self::peer::Peer;
use self::servers::Servers;
use crate::figures::Figures;
use crate::interrupt::Interrupt;
use crate::loader::{self, Loader, Requests};
use crate::{build, tools};

/// Number of runs of each case; the medians count.
const ROUNDS: usize = 3;

/// Size of a value in bytes.
const VALUE_BYTES: u64 = 256;

/// Number of keys.
const KEYS: u64 = 20_000;

/// Replicas of Redis that must have a write, so that a majority of three nodes has it.
const WAIT_REPLICAS: &str = "1";

/// The rate of a paced load as a share of the rate of a server without one.
const PACED_SHARE: f64 = 0.7;

/// The numbers of clients unless told otherwise: of writes, and of reads.
const CLIENTS: (&[u32], &[u32]) = (&[1, 16, 64, 256], &[64]);

/// The options of `bench-peers`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Duration of each run, in seconds
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Numbers of nodes of each server, 1 or 3, separated by commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "3,1")]
    nodes: Vec<usize>,
    /// Numbers of clients, separated by commas [default: 1,16,64,256 for writes, 64 for reads]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    clients: Vec<u32>,
    /// Measure each case also at 70 % of each server's own rate
    #[arg(long)]
    paced: bool,
    /// What brink is compared with, separated by commas
    #[arg(long, value_name = "PEER", value_delimiter = ',', default_value = "etcd,etcd-json,redis,nats")]
    peers: Vec<Peer>,
    /// Measure this part only
    #[arg(long)]
    only: Option<Part>,
    /// Measure this binary instead of building one
    #[arg(long, value_name = "FILE")]
    brink: Option<PathBuf>,
    /// Format of the figures
    #[arg(short, long, default_value = "table")]
    output: Output,
}

/// Parts of the comparison.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Writes,
    Reads,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Installs the peers, builds brink, measures all, and prints the comparison.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(options.nodes.iter().all(|nodes| [1, 3].contains(nodes)), "--nodes: 1, 3 or both");
    let packages: Vec<_> = options.peers.iter().filter_map(|peer| peer.package()).collect();
    tools::install(&packages)?;
    let brink = build::given_or_release(options.brink.as_deref())?;
    let loader = Loader { brink, interrupt: Interrupt::catch()? };
    let peers = std::iter::once(Peer::Brink).chain(options.peers.iter().copied()).collect();
    let bench = Bench { loader, peers, seconds: options.seconds, paced: options.paced };

    let mut compared = Vec::new();
    for nodes in &options.nodes {
        compared.extend(bench.compare_all(*nodes, &cases(options, *nodes))?);
    }
    match options.output {
        Output::Table => compared::print(&compared),
        Output::Json => println!("{}", compared::json(&compared)),
    }
    Ok(())
}

/// The cases for a number of nodes.
fn cases(options: &Options, nodes: usize) -> Vec<Case> {
    let wanted = |part| options.only.is_none_or(|only| only == part);
    let clients = |default| if options.clients.is_empty() { default } else { options.clients.as_slice() };
    let (writes, reads) = CLIENTS;
    let loads = [
        (Part::Writes, Load::Writes, clients(writes)),
        (Part::Reads, Load::StrongReads, clients(reads)),
        (Part::Reads, Load::LocalReads, clients(reads)),
    ];
    let wanted = loads.into_iter().filter(|(part, _, _)| wanted(*part));
    wanted
        .flat_map(|(_, load, clients)| clients.iter().map(move |clients| Case { nodes, load, clients: *clients }))
        .collect()
}

/// The settings of all runs.
struct Bench {
    loader: Loader,
    peers: BTreeSet<Peer>,
    seconds: u64,
    paced: bool,
}

impl Bench {
    /// Measures cases on clusters of `nodes` nodes.
    fn compare_all(&self, nodes: usize, cases: &[Case]) -> anyhow::Result<Vec<Compared>> {
        let dir = build::target_dir()?.join("bench-peers");
        let mut clusters = Vec::new();
        for peer in &self.peers {
            let program = peer.package().map_or(self.loader.brink.as_path(), |(program, _)| program.as_ref());
            clusters.push(Servers::start(*peer, nodes, program, &dir)?);
        }
        for servers in &mut clusters {
            servers.wait_ready(&self.loader.interrupt)?;
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

    /// Measures a case on all clusters, first without a given rate, since that decides the rate of the paced runs.
    fn compare(&self, clusters: &mut [Servers], case: Case) -> anyhow::Result<Compared> {
        let mut full = self.medians(clusters, case, |_| None)?;
        let mut paced = Vec::new();
        if self.paced {
            let rate = |peer| full.get(&peer).map(|figures| ((PACED_SHARE * figures.rate) as u64).max(1));
            paced.extend(self.medians(clusters, case, rate)?);
        }
        let brink = full.remove(&Peer::Brink).context("brink was not measured")?;
        Ok(Compared { case, brink, peers: full.into_iter().collect(), paced })
    }

    /// The medians of some rounds, in which all clusters take turns.
    fn medians(
        &self,
        clusters: &mut [Servers],
        case: Case,
        rate: impl Fn(Peer) -> Option<u64>,
    ) -> anyhow::Result<BTreeMap<Peer, Figures>> {
        let mut runs: BTreeMap<Peer, Vec<Figures>> = BTreeMap::new();
        for round in 0..ROUNDS {
            for turn in 0..clusters.len() {
                // Each round begins with another: a run may warm the machine for the next.
                let index = (round + turn) % clusters.len();
                let servers = clusters.get_mut(index).context("no servers run")?;
                let figures = self.measure(servers, case, rate(servers.peer()))?;
                runs.entry(servers.peer()).or_default().push(figures);
            }
        }
        Ok(runs.into_iter().map(|(peer, runs)| (peer, Figures::median(runs))).collect())
    }

    /// Writes every key once. The loader does so before its first read; that load ends at once.
    fn prepare_reads(&self, servers: &Servers) -> anyhow::Result<()> {
        let urls = servers.urls_leader_first()?;
        let first = urls.first().context("no node runs")?;
        self.loader.run(&self.load(servers.peer(), first, Requests::Prepare))?;
        Ok(())
    }

    /// One run of the loader.
    fn measure(&self, servers: &mut Servers, case: Case, rate: Option<u64>) -> anyhow::Result<Figures> {
        servers.wait_ready(&self.loader.interrupt)?;
        let (peer, urls) = (servers.peer(), servers.urls_leader_first()?);
        let first = urls.first().context("no node runs")?;
        let has_primary = peer == Peer::Redis && case.nodes > 1;
        let urls = match case.load {
            Load::Writes if has_primary => first.clone(),
            Load::Writes => urls.join(","),
            Load::StrongReads => first.clone(),
            Load::LocalReads => urls.get(1).unwrap_or(first).clone(),
        };
        let requests = match case.load {
            Load::Writes => Requests::Writes { wait_replicas: has_primary.then_some(WAIT_REPLICAS) },
            Load::StrongReads => Requests::Reads { consistency: "strong" },
            Load::LocalReads => Requests::Reads { consistency: "local" },
        };
        let load = loader::Load { clients: case.clients, rate, ..self.load(peer, &urls, requests) };
        let figures = self.loader.measure(&load, || servers.cpu_seconds())?;
        let pace = rate.map_or(String::new(), |rate| format!(", {rate} requests/s"));
        eprintln!(
            "--- {} {:?}, nodes: {}, clients: {}{pace}: {figures}",
            peer.name(),
            case.load,
            case.nodes,
            case.clients
        );
        Ok(figures)
    }

    /// A load with what all have in common.
    fn load<'a>(&self, peer: Peer, urls: &'a str, requests: Requests<'a>) -> loader::Load<'a> {
        let seconds = self.seconds;
        let (api, keys, value_bytes) = (peer.api(), KEYS, VALUE_BYTES);
        loader::Load { api, urls, requests, clients: 1, seconds, keys, value_bytes, rate: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(clients: &[u32], only: Option<Part>) -> Options {
        let (nodes, clients, peers) = (vec![3, 1], clients.to_vec(), vec![Peer::EtcdJson]);
        Options { seconds: 1, nodes, clients, paced: false, peers, only, brink: None, output: Output::Table }
    }

    #[test]
    fn the_cases_are_those_with_targets_unless_told_otherwise() {
        let all = cases(&options(&[], None), 3);
        assert_eq!(all.len(), 6);
        assert!(all.iter().all(|case| case.rate_target(Peer::EtcdJson).is_some()));
        let single = cases(&options(&[], Some(Part::Writes)), 1);
        assert_eq!(single.len(), 4);
        assert!(single.iter().all(|case| case.rate_target(Peer::EtcdJson) == Some(2.0)));
        assert!(single.iter().all(|case| case.cpu_target_us().is_none()));
    }

    #[test]
    fn numbers_of_clients_hold_for_writes_and_reads() {
        let some = cases(&options(&[8, 9], None), 3);
        let found: Vec<_> = some.iter().map(|case| (case.load.is_read(), case.clients)).collect();
        assert_eq!(found, [(false, 8), (false, 9), (true, 8), (true, 9), (true, 8), (true, 9)]);
        assert!(some.iter().all(|case| case.rate_target(Peer::EtcdJson).is_none() && case.cpu_target_us().is_none()));
    }
}
