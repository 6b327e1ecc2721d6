//! Faults of networks, disks, clocks, machines and processes: drawn from a seed, injected and reverted.
//!
//! A new kind of fault needs a variant of [`Fault`], its start in [`Testbed::inject`], its end in [`Testbed::revert`] and
//! its probability in [`draw`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;
use serde_json::json;

use crate::client::Client;
use crate::cluster::{Cluster, Options};
use crate::fake_clock::FakeClock;
use crate::fault_fs::{FaultFs, Tail};
use crate::hosts::Hosts;
use crate::probe::first_success;
use crate::workload::Workload;

/// Timeout of a request for a leadership transfer.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);

/// Timeout of a probe's write: longer than the node's own. Others are sent meanwhile.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Interval between a probe's writes.
const PROBE_INTERVAL: Duration = Duration::from_millis(30);

/// Time for started nodes to become ready.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Duration of the syncs before a power cut: long enough that many writes wait for them, and are lost.
const LAST_SYNCS: Duration = Duration::from_millis(100);

/// A fault, with the affected nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Cuts the links between these nodes and the others in both directions.
    Split(Vec<usize>),
    /// Cuts the links from these nodes to the others.
    Mute(Vec<usize>),
    /// Cuts the links from the others to these nodes.
    Deafen(Vec<usize>),
    /// Cuts the links between two nodes in both directions.
    Link(usize, usize),
    /// Pauses processes (SIGSTOP) and resumes them later.
    Pause(Vec<usize>),
    /// Kills processes (SIGKILL) and starts them later.
    Kill(Vec<usize>),
    /// Asks a process to stop (SIGTERM), waits for its end and starts it later.
    Restart(usize),
    /// Stops a process as [`Fault::Restart`] does, and starts it later at another port.
    Move(usize),
    /// Cuts the power of these nodes' machines, which leaves so much of unsynced data, and starts their processes later.
    PowerCut(Vec<usize>, Tail),
    /// Gives each sync of these nodes' disks this duration.
    SlowDisk(Vec<usize>, Duration),
    /// Steps a node's wall clock by so many seconds, and later back.
    ClockStep(usize, i64),
    /// Transfers the leadership to a node.
    Transfer(usize),
}

impl Fault {
    /// The nodes whose processes the fault ends.
    pub fn ended(&self) -> Vec<usize> {
        match self {
            Self::Kill(nodes) | Self::PowerCut(nodes, _) => nodes.clone(),
            Self::Restart(node) | Self::Move(node) => vec![*node],
            _ => Vec::new(),
        }
    }

    /// The nodes that cannot take part in the cluster during the fault.
    pub fn affected(&self) -> Vec<usize> {
        match self {
            Self::Split(nodes) | Self::Mute(nodes) | Self::Deafen(nodes) => nodes.clone(),
            Self::Pause(nodes) | Self::Kill(nodes) | Self::PowerCut(nodes, _) => nodes.clone(),
            Self::Restart(node) | Self::Move(node) => vec![*node],
            Self::Link(..) | Self::SlowDisk(..) | Self::ClockStep(..) | Self::Transfer(_) => Vec::new(),
        }
    }

    /// The kind of fault.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Split(_) => "split",
            Self::Mute(_) => "mute",
            Self::Deafen(_) => "deafen",
            Self::Link(..) => "link",
            Self::Pause(_) => "pause",
            Self::Kill(_) => "kill",
            Self::Restart(_) => "restart",
            Self::Move(_) => "move",
            Self::PowerCut(..) => "power cut",
            Self::SlowDisk(..) => "slow disk",
            Self::ClockStep(..) => "clock step",
            Self::Transfer(_) => "transfer",
        }
    }
}

/// Draws a fault for a cluster of `size` nodes with this leader. It affects no node that an active fault affects.
pub fn draw(rng: &mut Rng, size: usize, leader: usize, active: Option<&Fault>) -> Fault {
    let spared: BTreeSet<usize> = active.map(Fault::affected).unwrap_or_default().into_iter().collect();
    let mut nodes: Vec<usize> = (0..size).filter(|node| !spared.contains(node)).collect();
    rng.shuffle(&mut nodes);
    // Faults of the leader are the most interesting ones.
    if rng.u8(..3) > 0
        && let Some(position) = nodes.iter().position(|node| *node == leader)
    {
        nodes.swap(0, position);
    }
    let minority = nodes[..nodes.len().min(rng.usize(1..=size / 2))].to_vec();
    let majority = nodes[..nodes.len().min(size / 2 + 1)].to_vec();
    match rng.u8(..100) {
        0..12 => Fault::Split(minority),
        12..18 => Fault::Mute(minority),
        18..24 => Fault::Deafen(minority),
        24..30 => Fault::Link(nodes[0], (nodes[0] + 1 + rng.usize(..size - 1)) % size),
        30..40 => Fault::Pause(minority),
        40..43 => Fault::Pause(majority),
        43..51 => Fault::Kill(minority),
        51..53 => Fault::Kill(majority),
        53..55 => Fault::Kill(nodes),
        55..60 => Fault::Restart(nodes[0]),
        60..66 => Fault::Move(nodes[0]),
        66..75 => Fault::PowerCut(minority, draw_tail(rng)),
        75..78 => Fault::PowerCut(majority, draw_tail(rng)),
        78..82 => Fault::PowerCut(nodes, draw_tail(rng)),
        82..87 => Fault::SlowDisk(minority, Duration::from_millis(rng.u64(20..600))),
        87..90 => Fault::SlowDisk(nodes, Duration::from_millis(rng.u64(20..600))),
        // With the clocks of a majority wrong, the cluster's time would be wrong.
        90..97 if !matches!(active, Some(Fault::ClockStep(..))) => Fault::ClockStep(nodes[0], draw_step(rng)),
        _ => Fault::Transfer(nodes[0]),
    }
}

/// Draws what a power cut leaves: nothing, a part of one record, or many records and a part of another.
fn draw_tail(rng: &mut Rng) -> Tail {
    match rng.u8(..3) {
        0 => Tail::Lost,
        1 => Tail::Torn { bytes: rng.usize(1..200) },
        _ => Tail::Torn { bytes: rng.usize(200..20_000) },
    }
}

/// Draws the step of a clock, in seconds: some seconds, minutes or hours in either direction.
fn draw_step(rng: &mut Rng) -> i64 {
    let unit = [1, 60, 600][rng.usize(..3)];
    let sign = if rng.bool() { 1 } else { -1 };
    sign * unit * rng.i64(2..60)
}

/// A cluster whose nodes have a host, a disk and a wall clock each, and the workload on it.
pub struct Testbed {
    /// The nodes.
    pub cluster: Cluster,
    /// Their hosts.
    pub hosts: Hosts,
    /// Their disks. They are dropped after the cluster, so that no process uses a disk that is unmounted.
    pub disks: Vec<FaultFs>,
    /// Their wall clocks.
    pub clocks: Vec<FakeClock>,
    /// The workload.
    pub workload: Arc<Workload>,
}

impl Testbed {
    /// Starts a cluster whose nodes have these arguments.
    pub async fn start(size: usize, args: Vec<String>) -> Self {
        let hosts = Hosts::new(size);
        let disks: Vec<FaultFs> = (0..size).map(|_| FaultFs::mount()).collect();
        let clocks: Vec<FakeClock> = (0..size).map(|_| FakeClock::new()).collect();
        let mut places = hosts.places();
        for (place, clock) in places.iter_mut().zip(&clocks) {
            place.wrapper.extend(clock.wrapper());
        }
        let mut cluster = Cluster::prepare_at(places, Options { args, ..Options::default() });
        for (node, disk) in cluster.nodes.iter_mut().zip(&disks) {
            node.keep_data_on(disk);
            node.start();
        }
        cluster.ready().await;
        let workload = Workload::new(&cluster);
        Self { cluster, hosts, disks, clocks, workload }
    }

    /// Starts a fault.
    pub async fn inject(&mut self, fault: &Fault) {
        let size = self.cluster.nodes.len();
        let pairs = |nodes: &[usize]| {
            let others: Vec<usize> = (0..size).filter(|node| !nodes.contains(node)).collect();
            nodes.iter().flat_map(|node| others.iter().map(|other| (*node, *other))).collect::<Vec<_>>()
        };
        match fault {
            Fault::Split(nodes) => {
                for (node, other) in pairs(nodes) {
                    self.hosts.cut(node, other);
                    self.hosts.cut(other, node);
                }
            }
            Fault::Mute(nodes) => pairs(nodes).into_iter().for_each(|(node, other)| self.hosts.cut(node, other)),
            Fault::Deafen(nodes) => pairs(nodes).into_iter().for_each(|(node, other)| self.hosts.cut(other, node)),
            Fault::Link(one, other) => {
                self.hosts.cut(*one, *other);
                self.hosts.cut(*other, *one);
            }
            Fault::Pause(nodes) => nodes.iter().for_each(|node| self.cluster.nodes[*node].signal(Signal::STOP)),
            Fault::Kill(nodes) => self.kill(nodes),
            Fault::PowerCut(nodes, tail) => self.cut_power(nodes, *tail).await,
            Fault::SlowDisk(nodes, sync) => nodes.iter().for_each(|node| self.disks[*node].slow_syncs("", *sync)),
            Fault::ClockStep(node, seconds) => self.clocks[*node].set(&format!("{seconds:+}")),
            Fault::Restart(node) | Fault::Move(node) => {
                let stopped = tokio::task::block_in_place(|| self.cluster.nodes[*node].stop());
                assert!(stopped, "node {node} does not stop cleanly: {}", self.cluster.nodes[*node].log());
                self.workload.note_restart(*node);
            }
            Fault::Transfer(node) => {
                let body = json!({ "url": self.cluster.nodes[*node].url }).to_string();
                let client = Client::with_timeout(&self.cluster.nodes[*node].url, TRANSFER_TIMEOUT);
                let headers = [("content-type", "application/json")];
                // The transfer may fail because of another fault.
                let _ = client.try_send("PUT", "/cluster/leader/", &headers, body).await;
            }
        }
    }

    /// Ends a fault, and waits until nodes that it had ended answer again.
    pub async fn revert(&mut self, fault: &Fault) {
        match fault {
            Fault::Split(_) | Fault::Mute(_) | Fault::Deafen(_) | Fault::Link(..) => self.hosts.heal(),
            Fault::Pause(nodes) => nodes.iter().for_each(|node| self.cluster.nodes[*node].signal(Signal::CONT)),
            Fault::SlowDisk(nodes, _) => nodes.iter().for_each(|node| self.disks[*node].heal()),
            Fault::ClockStep(node, _) => self.clocks[*node].set("+0"),
            Fault::Kill(_) | Fault::PowerCut(..) | Fault::Restart(_) | Fault::Move(_) => {
                if let Fault::Move(node) = fault {
                    self.move_node(*node);
                }
                for node in fault.ended() {
                    self.cluster.nodes[node].start();
                    self.workload.note_restart(node);
                }
                for node in fault.ended() {
                    self.cluster.nodes[node].answers().await;
                }
            }
            Fault::Transfer(_) => {}
        }
    }

    fn kill(&mut self, nodes: &[usize]) {
        // All signals come first, so that the processes die at the same moment.
        nodes.iter().for_each(|node| self.cluster.nodes[*node].signal(Signal::KILL));
        for node in nodes {
            tokio::task::block_in_place(|| self.cluster.nodes[*node].kill());
            self.workload.note_restart(*node);
        }
    }

    async fn cut_power(&mut self, nodes: &[usize], tail: Tail) {
        nodes.iter().for_each(|node| self.disks[*node].slow_syncs("", LAST_SYNCS));
        tokio::time::sleep(LAST_SYNCS).await;
        nodes.iter().for_each(|node| self.cluster.nodes[*node].signal(Signal::KILL));
        // A process ends only after its syncs under way, and the power does not wait for them.
        nodes.iter().for_each(|node| self.disks[*node].stop_syncs());
        self.kill(nodes);
        for node in nodes {
            tokio::task::block_in_place(|| self.disks[*node].cut(tail));
        }
    }

    /// Gives a node its other address. Each node has two, so that it also comes back to where it was before. The other nodes,
    /// and the node itself, are told nothing: their `REPLICA_NODES` stay.
    fn move_node(&mut self, node: usize) {
        let moved = &mut self.cluster.nodes[node];
        moved.move_to(moved.port ^ 1);
        self.workload.follow(node, &moved.url);
    }

    /// The leader that most answering nodes name.
    pub async fn leader(&self) -> usize {
        let mut votes = vec![0; self.cluster.nodes.len()];
        for node in &self.cluster.nodes {
            let client = Client::with_timeout(&node.url, Duration::from_millis(500));
            let Ok(answer) = client.try_send("GET", "/cluster/leader/", &[], "").await else { continue };
            let idempotent =
                self.cluster.nodes.iter().position(|node| Some(node.url.as_str()) == answer.json["url"].as_str());
            if let Some(idempotent) = idempotent {
                votes[idempotent] += 1;
            }
        }
        (0..votes.len()).max_by_key(|node| votes[*node]).unwrap()
    }

    /// The times from `since` until the first of these nodes, and until all of them, have acknowledged a write; at most
    /// `limit`.
    pub async fn first_and_last_write(&self, nodes: &[usize], since: Instant, limit: Duration) -> (Duration, Duration) {
        let probes: Vec<_> = nodes
            .iter()
            .map(|node| {
                let client = Client::with_timeout(&self.cluster.nodes[*node].url, PROBE_TIMEOUT);
                let path = format!("/kv/probe/{node}/");
                tokio::spawn(
                    async move { first_success(&client, |_| path.clone(), PROBE_INTERVAL, since, limit).await },
                )
            })
            .collect();
        let mut pauses = Vec::new();
        for probe in probes {
            pauses.push(probe.await.unwrap());
        }
        (pauses.iter().min().copied().unwrap(), pauses.iter().max().copied().unwrap())
    }

    /// Waits until all nodes are ready.
    pub async fn settle(&self) {
        let began = Instant::now();
        self.cluster.ready().await;
        assert!(began.elapsed() < START_LIMIT, "the cluster was not ready within {START_LIMIT:?}");
    }
}
