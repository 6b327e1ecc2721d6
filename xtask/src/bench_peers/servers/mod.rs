//! A cluster of one of the servers: starts its nodes, finds the leader, measures CPU time, and stops the nodes.
//!
//! ```text
//! mod → {brink, etcd, redis, nats} → ports
//! ```

mod brink;
mod etcd;
mod nats;
mod ports;
mod redis;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};

use self::ports::Ports;
use super::peer::Peer;
use crate::interrupt::Interrupt;
use crate::node::{self, POLL, Process, READY_DEADLINE};

/// Running nodes. Dropping it ends them.
pub(super) struct Servers {
    peer: Peer,
    ports: Vec<Ports>,
    nodes: Vec<Process>,
}

impl Servers {
    /// Starts nodes with empty data directories.
    pub(super) fn start(peer: Peer, count: usize, program: &Path, dir: &Path) -> anyhow::Result<Self> {
        let dir = dir.join(peer.name());
        node::remove_dir(&dir)?;
        let mut servers = Self { peer, ports: Ports::free(count)?, nodes: Vec::new() };
        for (number, ports) in servers.ports.iter().enumerate() {
            let dir = dir.join(number.to_string());
            let mut command = Command::new(program);
            let arguments = match peer {
                Peer::Brink => brink::arguments,
                Peer::Etcd | Peer::EtcdJson => etcd::arguments,
                Peer::Redis => redis::arguments,
                Peer::Nats => nats::arguments,
            };
            arguments(&mut command, &servers.ports, number, *ports, &dir);
            servers.nodes.push(Process::start(command, &dir)?);
        }
        Ok(servers)
    }

    pub(super) fn peer(&self) -> Peer {
        self.peer
    }

    /// Waits until all nodes know the leader.
    pub(super) fn wait_ready(&mut self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let (began, name) = (Instant::now(), self.peer.name());
        while self.leader().is_none() {
            self.nodes.iter_mut().try_for_each(Process::check).context(name)?;
            interrupt.check()?;
            ensure!(began.elapsed() < READY_DEADLINE, "the nodes of {name} did not find each other");
            if self.peer == Peer::Nats {
                // Repeated until it is answered by a bucket with a leader.
                let _ = nats::request_bucket(&self.ports);
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// The base URLs of all nodes, the leader's first.
    pub(super) fn urls_leader_first(&self) -> anyhow::Result<Vec<String>> {
        let leader = self.leader().with_context(|| format!("the nodes of {} have no leader", self.peer.name()))?;
        let mut ports = self.ports.clone();
        ports.rotate_left(leader);
        let url = |ports: Ports| match self.peer {
            Peer::Brink => node::url(ports.client),
            Peer::Etcd | Peer::EtcdJson | Peer::Redis | Peer::Nats => format!("http://127.0.0.1:{}", ports.client),
        };
        Ok(ports.into_iter().map(url).collect())
    }

    /// The CPU time that the nodes have used so far.
    pub(super) fn cpu_seconds(&self) -> f64 {
        self.nodes.iter().map(Process::cpu_seconds).sum()
    }

    /// The number of the leader, if all nodes agree on it.
    fn leader(&self) -> Option<usize> {
        match self.peer {
            Peer::Brink => brink::leader(&self.ports),
            Peer::Etcd | Peer::EtcdJson => etcd::leader(&self.ports),
            Peer::Redis => redis::leader(&self.ports),
            Peer::Nats => nats::leader(&self.ports),
        }
    }
}
