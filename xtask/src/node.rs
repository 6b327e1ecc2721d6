//! Nodes on this machine: the processes of servers, their ports and CPU time, and clusters of brink.
//!
//! All ports are of 127.0.0.1. A process is ended when it is dropped.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};

use crate::http::ask;
use crate::interrupt::Interrupt;

/// Maximum time for nodes to find each other.
pub(crate) const READY_DEADLINE: Duration = Duration::from_secs(30);

/// Maximum time for a process to end after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(30);

/// Time between two checks of nodes that start or stop.
pub(crate) const POLL: Duration = Duration::from_millis(100);

/// A cluster is at rest if its nodes use less than this share of a core.
const REST_CORES: f64 = 0.15;

/// Time over which that is measured.
const REST_SAMPLE: Duration = Duration::from_secs(2);

/// Maximum time to wait for it.
const REST_DEADLINE: Duration = Duration::from_secs(120);

/// The unit of CPU times in `/proc`.
const TICKS_PER_SECOND: f64 = 100.0;

/// A running server. Dropping it ends it.
pub(crate) struct Process {
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Starts a server that writes to `log.txt` in `dir`, which is created.
    pub(crate) fn start(mut command: Command, dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("{} cannot be created", dir.display()))?;
        let log = dir.join("log.txt");
        let out = File::create(&log)?;
        // A process group of its own: Ctrl-C reaches only this program, which then ends the servers.
        command.process_group(0).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("{program} cannot be started"))?;
        Ok(Self { log, child })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Fails if it has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().last().unwrap_or("its log is empty");
        bail!("a node has ended ({status}): {last}; its log: {}", self.log.display())
    }

    /// The CPU time that it has used so far, in seconds, with that of its children that have ended.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id())).unwrap_or_default();
        // The program's name, in parentheses, may contain anything; the times are the 12th to 15th field after it.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
        fields.skip(11).take(4).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS_PER_SECOND
    }

    /// Asks it to end.
    fn terminate(&self) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::TERM)?)
    }

    /// Waits until it has ended, which must be a success.
    fn wait(&mut self) -> anyhow::Result<()> {
        let status = wait(&mut self.child, STOP_DEADLINE)?;
        ensure!(status.success(), "a node did not stop cleanly: {status}; its log: {}", self.log.display());
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // With its children: Redis has its log rewritten by one. Each leads a process group. Fails only if all have ended.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Waits for the end of a process for a bounded time.
pub(crate) fn wait(child: &mut Child, time_max: Duration) -> anyhow::Result<ExitStatus> {
    let deadline = Instant::now() + time_max;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(Instant::now() < deadline, "the process {} does not end", child.id());
        std::thread::sleep(POLL);
    }
}

/// Ports that are free now. All are bound at once, so that they differ.
pub(crate) fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    let bound: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    bound.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// Removes a directory with all that it holds, if it exists.
pub(crate) fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("{} cannot be removed", dir.display()))?;
    }
    Ok(())
}

/// The view of all nodes, if all have the same.
pub(crate) fn same<T: PartialEq>(mut views: impl Iterator<Item = Option<T>>) -> Option<T> {
    let first = views.next()??;
    views.all(|view| view.as_ref() == Some(&first)).then_some(first)
}

/// The path of a node's API.
pub(crate) const BASE_PATH: &str = "/kv-store/v1";

/// The base URL of a node of brink.
pub(crate) fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}{BASE_PATH}")
}

/// Appends the arguments by which the node on the port `own` finds the others, and keeps its data in `dir`.
pub(crate) fn serve(command: &mut Command, ports: &[u16], own: u16, dir: &Path) {
    let others: Vec<Value> = ports.iter().filter(|port| **port != own).map(|port| json!({"url": url(*port)})).collect();
    command.arg("serve").args(["--listen", &format!("127.0.0.1:{own}"), "--advertise-url", &url(own)]);
    command.arg("--data-dir").arg(dir.join("data")).args(["--log-format", "text"]);
    command.env("REPLICA_NODES", json!(others).to_string());
}

/// The base URLs of nodes of brink, separated by commas.
pub(crate) fn urls(ports: &[u16]) -> String {
    ports.iter().map(|port| url(*port)).collect::<Vec<_>>().join(",")
}

/// Removes the settings of the user from a node's environment: figures must not depend on them.
pub(crate) fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("BRINK_")) {
        command.env_remove(name);
    }
    command.env_remove("REPLICA_NODES");
}

/// The position of the leader's port, if all nodes agree on it.
pub(crate) fn leader(ports: &[u16]) -> Option<usize> {
    let leader = same(ports.iter().map(|port| Some(health(*port)?.pointer("/cluster/leader")?.as_str()?.to_owned())))?;
    ports.iter().position(|port| url(*port) == leader)
}

fn health(port: u16) -> Option<Value> {
    ask(port, "GET", "/kv-store/v1/health/", "")
}

/// Whose settings the nodes of a cluster have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settings {
    /// Those of the user's environment.
    Users,
    /// None, so that all have their defaults.
    Defaults,
}

/// Nodes of brink that form a cluster. Dropping it ends them.
pub(crate) struct Cluster {
    brink: PathBuf,
    ports: Vec<u16>,
    processes: Vec<Process>,
    dir: PathBuf,
}

impl Cluster {
    /// Starts a node on each port, with empty data directories below `dir`.
    pub(crate) fn start(brink: &Path, ports: Vec<u16>, dir: &Path, settings: Settings) -> anyhow::Result<Self> {
        remove_dir(dir)?;
        let mut cluster = Self { brink: brink.to_owned(), ports, processes: Vec::new(), dir: dir.to_owned() };
        for (number, port) in (1..).zip(&cluster.ports) {
            let dir = dir.join(format!("node{number}"));
            let mut command = Command::new(brink);
            if settings == Settings::Defaults {
                without_settings(&mut command);
            }
            serve(&mut command, &cluster.ports, *port, &dir);
            cluster.processes.push(Process::start(command, &dir)?);
        }
        Ok(cluster)
    }

    /// Waits until every node sees all others and the same leader. Returns the ports of all nodes, the leader's first.
    pub(crate) fn wait_ready(&mut self, interrupt: &Interrupt) -> anyhow::Result<Vec<u16>> {
        let began = Instant::now();
        loop {
            if let Some(leader) = self.agreed_leader() {
                let mut ports = self.ports.clone();
                ports.rotate_left(leader);
                return Ok(ports);
            }
            self.check()?;
            interrupt.check()?;
            let logs = self.dir.display();
            ensure!(began.elapsed() < READY_DEADLINE, "the nodes did not find each other; their logs are in {logs}");
            std::thread::sleep(POLL);
        }
    }

    /// The position of the leader, if every node sees all others.
    fn agreed_leader(&self) -> Option<usize> {
        let count = self.ports.len() as u64;
        let seen = |port: &u16| health(*port)?.pointer("/cluster/healthy_nodes")?.as_u64();
        self.ports.iter().all(|port| seen(port) == Some(count)).then(|| leader(&self.ports))?
    }

    /// Waits until the nodes have done what they do in the background, for a bounded time.
    pub(crate) fn come_to_rest(&mut self, interrupt: &Interrupt) -> anyhow::Result<()> {
        let deadline = Instant::now() + REST_DEADLINE;
        while Instant::now() < deadline {
            let before = self.cpu_seconds();
            std::thread::sleep(REST_SAMPLE);
            interrupt.check()?;
            self.check()?;
            if self.cpu_seconds() - before < REST_CORES * REST_SAMPLE.as_secs_f64() {
                return Ok(());
            }
        }
        eprintln!("--- the nodes still work after {} s; the measurement begins", REST_DEADLINE.as_secs());
        Ok(())
    }

    /// Fails if a node has ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        self.processes.iter_mut().try_for_each(Process::check)
    }

    /// Stops the nodes cleanly.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        self.processes.iter().try_for_each(Process::terminate)?;
        self.processes.iter_mut().try_for_each(Process::wait)
    }

    /// The base URLs of all nodes.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.ports.iter().map(|port| url(*port)).collect()
    }

    /// The port and the process of each node.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (u16, &Process)> {
        self.ports.iter().copied().zip(&self.processes)
    }

    /// The CPU time that the nodes have used so far, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.processes.iter().map(Process::cpu_seconds).sum()
    }

    /// Runs a command of `brink` that calls the first node, and returns what it printed.
    pub(crate) fn brink(&self, args: &[&str]) -> anyhow::Result<String> {
        let first = *self.ports.first().context("no node runs")?;
        let output: Output = Command::new(&self.brink)
            .args(args)
            .args(["--url", &url(first)])
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("{} cannot be run", self.brink.display()))?;
        ensure!(output.status.success(), "brink {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_counts_only_if_all_nodes_have_it() {
        assert_eq!(same([Some(1), Some(1)].into_iter()), Some(1));
        assert_eq!(same([Some(1), Some(2)].into_iter()), None);
        assert_eq!(same([Some(1), None].into_iter()), None);
        assert_eq!(same(std::iter::empty::<Option<u8>>()), None);
    }

    #[test]
    fn a_process_is_bounded_in_time_and_its_cpu_time_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut busy = Command::new("sh");
        busy.args(["-c", "while :; do :; done"]);
        let mut process = Process::start(busy, dir.path()).unwrap();
        assert!(wait(&mut process.child, Duration::from_millis(300)).is_err());
        assert!(process.cpu_seconds() > 0.0);
        process.check().unwrap();
        process.terminate().unwrap();
        assert!(process.wait().unwrap_err().to_string().contains("did not stop cleanly"));
        assert!(process.check().is_err());
    }
}
