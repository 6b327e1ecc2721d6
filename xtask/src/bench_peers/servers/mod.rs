//! A cluster of one of the servers: starts its nodes, finds the leader, measures CPU time, and stops the nodes.
//!
//! ```text
//! mod → {brink, etcd, redis, nats} → node
//! ```

mod brink;
mod etcd;
mod nats;
mod node;
mod redis;

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use self::node::{Ports, free_ports};
use super::peer::Peer;

/// Maximum time for the nodes to find each other.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// Time between two checks whether they have.
const POLL: Duration = Duration::from_millis(100);

/// The unit of CPU times in `/proc`.
const TICKS_PER_SECOND: f64 = 100.0;

/// Running nodes. Dropping it ends them.
pub(super) struct Servers {
    peer: Peer,
    ports: Vec<Ports>,
    nodes: Vec<Node>,
}

struct Node {
    log: std::path::PathBuf,
    process: Child,
}

impl Servers {
    /// Starts nodes with empty data directories.
    pub(super) fn start(peer: Peer, count: usize, program: &Path, dir: &Path) -> anyhow::Result<Self> {
        let dir = dir.join(peer.name());
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("{} cannot be removed", dir.display()))?;
        }
        let mut servers = Self { peer, ports: free_ports(count)?, nodes: Vec::new() };
        for (number, ports) in servers.ports.iter().enumerate() {
            let dir = dir.join(number.to_string());
            std::fs::create_dir_all(&dir)?;
            let log = dir.join("log.txt");
            let out = File::create(&log)?;
            let mut command = Command::new(program);
            let arguments = match peer {
                Peer::Brink => brink::arguments,
                Peer::Etcd | Peer::EtcdJson => etcd::arguments,
                Peer::Redis => redis::arguments,
                Peer::Nats => nats::arguments,
            };
            arguments(&mut command, &servers.ports, number, *ports, &dir);
            // A process group of its own: Ctrl-C reaches only this program, which then ends the nodes.
            command.process_group(0).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
            let process = command.spawn().with_context(|| format!("{} cannot be started", program.display()))?;
            servers.nodes.push(Node { log, process });
        }
        Ok(servers)
    }

    pub(super) fn peer(&self) -> Peer {
        self.peer
    }

    /// Waits until all nodes know the leader.
    pub(super) fn wait_ready(&mut self, interrupted: &AtomicBool) -> anyhow::Result<()> {
        let (began, name) = (Instant::now(), self.peer.name());
        while self.leader().is_none() {
            for node in &mut self.nodes {
                if let Some(status) = node.process.try_wait()? {
                    bail!("a node of {name} has ended ({status}); its log: {}", node.log.display());
                }
            }
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if began.elapsed() > READY_DEADLINE {
                bail!("the nodes of {name} did not find each other");
            }
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
        let url = |ports| match self.peer {
            Peer::Brink => brink::url(ports),
            Peer::Etcd | Peer::EtcdJson | Peer::Redis | Peer::Nats => format!("http://127.0.0.1:{}", ports.client),
        };
        Ok(ports.into_iter().map(url).collect())
    }

    /// The CPU time that the nodes have used so far.
    pub(super) fn cpu_seconds(&self) -> f64 {
        self.nodes.iter().map(|node| cpu_seconds(node.process.id())).sum()
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

impl Drop for Servers {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // With its children: Redis has its log rewritten by one. Each node leads a process group. Fails only if all have ended.
            let _ = kill_process_group(Pid::from_child(&node.process), Signal::KILL);
            let _ = node.process.wait();
        }
    }
}

/// The CPU time that a process has used so far, in seconds, with that of its children that have ended.
fn cpu_seconds(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The program's name, in parentheses, may contain anything; the times are the 12th to 15th field after it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(4).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}
