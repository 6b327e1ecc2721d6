//! A cluster of brink or etcd: starts its nodes, finds the leader, measures CPU time, and stops the nodes.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// Maximum time for the nodes to find each other.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// Time between two checks whether they have.
const POLL: Duration = Duration::from_millis(100);

/// Maximum time for a node to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// The unit of CPU times in `/proc`.
const TICKS_PER_SECOND: f64 = 100.0;

/// The two servers that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Brink,
    Etcd,
}

impl Peer {
    /// The name of the server, which is also its value for the loader's `--api`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Brink => "brink",
            Self::Etcd => "etcd",
        }
    }

    /// The base URL of a node, for the loader.
    fn url(self, port: u16) -> String {
        match self {
            Self::Brink => format!("http://127.0.0.1:{port}/kv-store/v1"),
            Self::Etcd => format!("http://127.0.0.1:{port}"),
        }
    }
}

/// Running nodes. Dropping it ends them.
pub(super) struct Servers {
    peer: Peer,
    nodes: Vec<Node>,
}

struct Node {
    /// The port for clients.
    port: u16,
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
        let ports = free_ports(2 * count)?;
        let ports: Vec<(u16, u16)> =
            ports.chunks_exact(2).filter_map(|pair| Some((*pair.first()?, *pair.last()?))).collect();
        let mut servers = Self { peer, nodes: Vec::new() };
        for (number, (port, _)) in ports.iter().enumerate() {
            let dir = dir.join(number.to_string());
            std::fs::create_dir_all(&dir)?;
            let log = dir.join("log.txt");
            let out = File::create(&log)?;
            let mut command = Command::new(program);
            match peer {
                Peer::Brink => brink_arguments(&mut command, &ports, *port, &dir),
                Peer::Etcd => etcd_arguments(&mut command, &ports, number, &dir),
            }
            // A process group of its own: Ctrl-C reaches only this program, which then ends the nodes.
            command.process_group(0).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
            let process = command.spawn().with_context(|| format!("{} cannot be started", program.display()))?;
            servers.nodes.push(Node { port: *port, log, process });
        }
        Ok(servers)
    }

    pub(super) fn peer(&self) -> Peer {
        self.peer
    }

    /// Waits until all nodes know the leader.
    pub(super) fn wait_ready(&mut self, interrupted: &AtomicBool) -> anyhow::Result<()> {
        let began = Instant::now();
        while self.leader().is_none() {
            for node in &mut self.nodes {
                if let Some(status) = node.process.try_wait()? {
                    bail!("a node of {} has ended ({status}); its log: {}", self.peer.name(), node.log.display());
                }
            }
            if interrupted.load(Ordering::Relaxed) {
                bail!("interrupted");
            }
            if began.elapsed() > READY_DEADLINE {
                bail!("the nodes of {} did not find each other", self.peer.name());
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// The base URLs of all nodes, the leader's first.
    pub(super) fn urls_leader_first(&self) -> anyhow::Result<Vec<String>> {
        let leader = self.leader().with_context(|| format!("the nodes of {} have no leader", self.peer.name()))?;
        let others = self.nodes.iter().map(|node| node.port).filter(|port| *port != leader);
        Ok(std::iter::once(leader).chain(others).map(|port| self.peer.url(port)).collect())
    }

    /// The CPU time that the nodes have used so far.
    pub(super) fn cpu_seconds(&self) -> f64 {
        self.nodes.iter().map(|node| cpu_seconds(node.process.id())).sum()
    }

    /// The port of the leader, if all nodes agree on it.
    fn leader(&self) -> Option<u16> {
        let views: Vec<Value> = self.nodes.iter().map(|node| self.view(node.port)).collect::<Option<_>>()?;
        let leader_of = |view: &Value| match self.peer {
            Peer::Brink => view.pointer("/cluster/leader").cloned(),
            Peer::Etcd => view.get("leader").cloned(),
        };
        let leader = leader_of(views.first()?)?;
        if views.iter().any(|view| leader_of(view).as_ref() != Some(&leader)) {
            return None;
        }
        let is_leader = |node: &Node, view: &Value| match self.peer {
            Peer::Brink => leader == json!(self.peer.url(node.port)),
            Peer::Etcd => view.pointer("/header/member_id") == Some(&leader),
        };
        self.nodes.iter().zip(&views).find(|(node, view)| is_leader(node, view)).map(|(node, _)| node.port)
    }

    /// A node's view of its cluster.
    fn view(&self, port: u16) -> Option<Value> {
        match self.peer {
            Peer::Brink => ask(port, "GET", "/kv-store/v1/health/", ""),
            Peer::Etcd => ask(port, "POST", "/v3/maintenance/status", "{}"),
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // Fails only if the node has ended already.
            let _ = node.process.kill();
            let _ = node.process.wait();
        }
    }
}

fn brink_arguments(command: &mut Command, ports: &[(u16, u16)], port: u16, dir: &Path) {
    let others = ports.iter().map(|(port, _)| *port).filter(|other| *other != port);
    let others: Vec<_> = others.map(|port| json!({"url": Peer::Brink.url(port)})).collect();
    command.arg("serve").args(["--listen", &format!("127.0.0.1:{port}")]);
    command.args(["--advertise-url", &Peer::Brink.url(port)]).arg("--data-dir").arg(dir.join("data"));
    command.env("REPLICA_NODES", json!(others).to_string());
}

/// Only addresses are set; all other settings have etcd's defaults, fsync included.
fn etcd_arguments(command: &mut Command, ports: &[(u16, u16)], number: usize, dir: &Path) {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let members: Vec<String> =
        ports.iter().enumerate().map(|(number, (_, peer))| format!("node{number}={}", url(*peer))).collect();
    let (client, peer) = ports.get(number).copied().unwrap_or_default();
    command.arg("--name").arg(format!("node{number}")).arg("--data-dir").arg(dir.join("data"));
    for flag in ["--listen-client-urls", "--advertise-client-urls"] {
        command.args([flag, &url(client)]);
    }
    for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
        command.args([flag, &url(peer)]);
    }
    command.args(["--initial-cluster", &members.join(","), "--initial-cluster-state", "new", "--logger", "zap"]);
}

/// Sends a request to a node and returns the answer if it is JSON.
fn ask(port: u16, method: &str, path: &str, body: &str) -> Option<Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE)).ok()?;
    // HTTP/1.0 has no chunks and no persistent connections: the answer ends with the connection.
    let head = format!("{method} {path} HTTP/1.0\r\nhost: 127.0.0.1\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// The CPU time that a process has used so far, in seconds.
fn cpu_seconds(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The program's name, in parentheses, may contain anything; the times are the 12th and 13th field after it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
}

/// Ports that are free now. All are bound at once, so that they differ.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let listeners = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    Ok(listeners.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?.iter().map(|a| a.port()).collect())
}
