//! Faults of networks, machines and processes: drawn from a seed, injected and reverted.
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
use crate::cluster::Cluster;
use crate::hosts::Hosts;
use crate::workload::Workload;

/// Timeout of a request for a leadership transfer.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);

/// Timeout of a probe's write. A write in flight to a lost leader is lost.
const PROBE_TIMEOUT: Duration = Duration::from_millis(200);

/// Time for started nodes to become ready.
const START_LIMIT: Duration = Duration::from_secs(30);

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
    /// Transfers the leadership to a node.
    Transfer(usize),
}

impl Fault {
    /// The nodes whose processes the fault ends.
    pub fn ended(&self) -> Vec<usize> {
        match self {
            Self::Kill(nodes) => nodes.clone(),
            Self::Restart(node) => vec![*node],
            _ => Vec::new(),
        }
    }

    /// The nodes that cannot take part in the cluster during the fault.
    pub fn affected(&self) -> Vec<usize> {
        match self {
            Self::Split(nodes) | Self::Mute(nodes) | Self::Deafen(nodes) => nodes.clone(),
            Self::Pause(nodes) | Self::Kill(nodes) => nodes.clone(),
            Self::Restart(node) => vec![*node],
            Self::Link(..) | Self::Transfer(_) => Vec::new(),
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
            Self::Transfer(_) => "transfer",
        }
    }
}

/// Draws a fault for a cluster of `size` nodes with this leader. It does not affect the nodes in `spared`.
pub fn draw(rng: &mut Rng, size: usize, leader: usize, spared: &BTreeSet<usize>) -> Fault {
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
        0..16 => Fault::Split(minority),
        16..24 => Fault::Mute(minority),
        24..32 => Fault::Deafen(minority),
        32..40 => Fault::Link(nodes[0], (nodes[0] + 1 + rng.usize(..size - 1)) % size),
        40..56 => Fault::Pause(minority),
        56..60 => Fault::Pause(majority),
        60..76 => Fault::Kill(minority),
        76..81 => Fault::Kill(majority),
        81..86 => Fault::Kill(nodes),
        86..93 => Fault::Restart(nodes[0]),
        _ => Fault::Transfer(nodes[0]),
    }
}

/// A cluster whose nodes have a host each, and the workload on it.
pub struct Testbed {
    /// The nodes.
    pub cluster: Cluster,
    /// Their hosts.
    pub hosts: Hosts,
    /// The workload.
    pub workload: Arc<Workload>,
}

impl Testbed {
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
            Fault::Kill(nodes) => {
                // All signals come first, so that the processes die at the same moment.
                nodes.iter().for_each(|node| self.cluster.nodes[*node].signal(Signal::KILL));
                for node in nodes {
                    self.cluster.nodes[*node].kill();
                    self.workload.note_restart(*node);
                }
            }
            Fault::Restart(node) => {
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
            Fault::Kill(_) | Fault::Restart(_) => {
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
                tokio::spawn(probe(client, format!("/kv/probe/{node}/"), since, limit))
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

/// Repeats a write until it succeeds.
async fn probe(client: Client, path: String, since: Instant, limit: Duration) -> Duration {
    let headers = [("content-type", "application/json"), ("prefer", "return=minimal")];
    while since.elapsed() < limit {
        let sent = client.try_send("PUT", &path, &headers, r#"{"value":1}"#).await;
        if sent.is_ok_and(|answer| answer.status < 300) {
            return since.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    limit
}
