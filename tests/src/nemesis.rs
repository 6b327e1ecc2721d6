//! Faults of networks, machines and processes, drawn from a seed, inflicted and taken back.
//!
//! To add a kind of fault: a variant of [`Fault`], how it begins in [`Field::inflict`], how it ends in [`Field::relieve`],
//! and its share in [`draw`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::process::Signal;
use serde_json::json;

use crate::hosts::Hosts;
use crate::workload::Desk;
use crate::{Client, Cluster};

/// How long a client that asks for a change of the leader waits.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(2);

/// How long a probe waits before it tries again. A write that was on its way to a leader that is gone is lost.
const PROBE_PATIENCE: Duration = Duration::from_millis(200);

/// How long nodes that were started may take until they answer.
const START_LIMIT: Duration = Duration::from_secs(30);

/// One fault, and the nodes it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// These nodes and the others do not hear each other.
    Split(Vec<usize>),
    /// What the first nodes send to the others is lost; what the others send arrives.
    Mute(Vec<usize>),
    /// What the others send to the first nodes is lost; what the first nodes send arrives.
    Deafen(Vec<usize>),
    /// Two nodes do not hear each other; all others hear both.
    Link(usize, usize),
    /// Processes are stopped and go on later, as if no time had passed (SIGSTOP).
    Pause(Vec<usize>),
    /// Processes end at once (SIGKILL) and are started later.
    Kill(Vec<usize>),
    /// A process is asked to stop (SIGTERM), and started once it has.
    Restart(usize),
    /// The leadership goes to a node.
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

    /// The nodes that cannot do their part while the fault lasts.
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

/// Draws a fault for a cluster of `size` nodes with this leader. Nodes in `spared` are left alone by it.
pub fn draw(rng: &mut Rng, size: usize, leader: usize, spared: &BTreeSet<usize>) -> Fault {
    let mut nodes: Vec<usize> = (0..size).filter(|node| !spared.contains(node)).collect();
    rng.shuffle(&mut nodes);
    // The leader is the most interesting victim.
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

/// Where faults happen: a cluster, each node on a host of its own, and the clients who must not be misled.
pub struct Field {
    /// The nodes.
    pub cluster: Cluster,
    /// Their hosts.
    pub hosts: Hosts,
    /// The clients' desk.
    pub desk: Arc<Desk>,
}

impl Field {
    /// Begins a fault.
    pub async fn inflict(&mut self, fault: &Fault) {
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
                // All signals first: they die in the same moment.
                nodes.iter().for_each(|node| self.cluster.nodes[*node].signal(Signal::KILL));
                for node in nodes {
                    self.cluster.nodes[*node].kill();
                    self.desk.note_life(*node);
                }
            }
            Fault::Restart(node) => {
                let stopped = tokio::task::block_in_place(|| self.cluster.nodes[*node].stop());
                assert!(stopped, "node {node} does not stop cleanly: {}", self.cluster.nodes[*node].log());
                self.desk.note_life(*node);
            }
            Fault::Transfer(node) => {
                let body = json!({ "url": self.cluster.nodes[*node].url }).to_string();
                let client = Client::with_patience(&self.cluster.nodes[*node].url, TRANSFER_PATIENCE);
                let headers = [("content-type", "application/json")];
                // It need not succeed: another fault may be in the way.
                let _ = client.try_send("PUT", "/cluster/leader/", &headers, body).await;
            }
        }
    }

    /// Ends a fault. Nodes that were ended answer again when this returns.
    pub async fn relieve(&mut self, fault: &Fault) {
        match fault {
            Fault::Split(_) | Fault::Mute(_) | Fault::Deafen(_) | Fault::Link(..) => self.hosts.heal(),
            Fault::Pause(nodes) => nodes.iter().for_each(|node| self.cluster.nodes[*node].signal(Signal::CONT)),
            Fault::Kill(_) | Fault::Restart(_) => {
                for node in fault.ended() {
                    self.cluster.nodes[node].start();
                    self.desk.note_life(node);
                }
                for node in fault.ended() {
                    self.cluster.nodes[node].answers().await;
                }
            }
            Fault::Transfer(_) => {}
        }
    }

    /// The leader, as most nodes that answer name it; the first node if none does.
    pub async fn leader(&self) -> usize {
        let mut votes = vec![0; self.cluster.nodes.len()];
        for node in &self.cluster.nodes {
            let client = Client::with_patience(&node.url, Duration::from_millis(500));
            let Ok(answer) = client.try_send("GET", "/cluster/leader/", &[], "").await else { continue };
            let named =
                self.cluster.nodes.iter().position(|node| Some(node.url.as_str()) == answer.json["url"].as_str());
            if let Some(named) = named {
                votes[named] += 1;
            }
        }
        (0..votes.len()).max_by_key(|node| votes[*node]).unwrap()
    }

    /// How long it takes, from `since` on, until the first of these nodes has taken a write, and until all have; `limit`
    /// if that takes longer.
    pub async fn first_and_last_write(&self, nodes: &[usize], since: Instant, limit: Duration) -> (Duration, Duration) {
        let probes: Vec<_> = nodes
            .iter()
            .map(|node| {
                let client = Client::with_patience(&self.cluster.nodes[*node].url, PROBE_PATIENCE);
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
        assert!(began.elapsed() < START_LIMIT, "the cluster is whole again, and not ready in {START_LIMIT:?}");
    }
}

/// Writes until one write succeeds.
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
