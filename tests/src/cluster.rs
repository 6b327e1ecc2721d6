//! Clusters of real `brink serve` processes on loopback, each with its own data directory.

use std::ffi::OsString;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Client, FaultFs, eventually};

/// How long a cluster may take to form. Generous: the machine may be busy with other tests.
const FORM_LIMIT: Duration = Duration::from_secs(30);

/// How a cluster's nodes are started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// More arguments of `brink serve`.
    pub args: Vec<String>,
    /// More environment variables.
    pub env: Vec<(String, String)>,
}

/// Where a node runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// The address it listens on.
    pub address: SocketAddr,
    /// The command, with its arguments, that the node's own is appended to; it must become the node's process.
    pub wrapper: Vec<String>,
}

/// A cluster of nodes. Dropping it kills them.
pub struct Cluster {
    /// The nodes, in the order of their ports.
    pub nodes: Vec<Node>,
    _dir: TempDir,
}

impl Cluster {
    /// Starts a cluster and waits until every node knows its leader.
    pub async fn start(size: usize) -> Self {
        Self::start_with(size, Options::default()).await
    }

    /// Starts a cluster with options.
    pub async fn start_with(size: usize, options: Options) -> Self {
        let mut cluster = Self::prepare(size, options);
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.ready().await;
        cluster
    }

    /// Lays a cluster out on loopback without starting its nodes.
    pub fn prepare(size: usize, options: Options) -> Self {
        let places = free_ports(size)
            .into_iter()
            .map(|port| Place { address: SocketAddr::from(([127, 0, 0, 1], port)), wrapper: Vec::new() });
        Self::prepare_at(places.collect(), options)
    }

    /// Lays a cluster out, a node at each place, without starting its nodes.
    pub fn prepare_at(places: Vec<Place>, options: Options) -> Self {
        let dir = tempfile::Builder::new().prefix("brink-test-").tempdir().unwrap();
        let urls: Vec<String> = places.iter().map(|place| format!("http://{}/kv-store/v1", place.address)).collect();
        let nodes = places
            .into_iter()
            .zip(&urls)
            .enumerate()
            .map(|(index, (place, url))| {
                let others = urls.iter().filter(|other| *other != url);
                let others: Vec<_> = others.map(|url| serde_json::json!({ "url": url })).collect();
                Node {
                    client: Client::new(url),
                    url: url.clone(),
                    port: place.address.port(),
                    place,
                    dir: dir.path().join(format!("node{}", index + 1)),
                    data_dir: None,
                    advertise_url: None,
                    replica_nodes: if others.is_empty() { None } else { Some(serde_json::json!(others).to_string()) },
                    options: options.clone(),
                    child: None,
                }
            })
            .collect();
        Self { nodes, _dir: dir }
    }

    /// Waits until every running node knows its leader.
    pub async fn ready(&self) {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            node.ready().await;
        }
    }

    /// A client of one node.
    pub fn client(&self, index: usize) -> &Client {
        &self.nodes[index].client
    }

    /// The position of the leader, as the running nodes agree on it.
    pub async fn leader(&self) -> usize {
        eventually(FORM_LIMIT, "the nodes agree on a leader", || async {
            let mut leaders = Vec::new();
            for node in self.nodes.iter().filter(|node| node.is_running()) {
                let health = node.client.get("/health/").await.json;
                leaders.push(health["cluster"]["leader"].as_str()?.to_owned());
            }
            leaders.dedup();
            let [leader] = leaders.as_slice() else { return None };
            let leader = self.nodes.iter().position(|node| node.url == *leader)?;
            self.nodes[leader].is_running().then_some(leader)
        })
        .await
    }
}

impl Cluster {
    /// Ends every process in the same moment, as a loss of power does.
    pub fn kill_all(&mut self) {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            node.signal(Signal::KILL);
        }
        for node in &mut self.nodes {
            node.kill();
        }
    }
}

/// One node of a [`Cluster`].
pub struct Node {
    /// A client of this node.
    pub client: Client,
    /// Its base URL.
    pub url: String,
    /// The port it listens on.
    pub port: u16,
    place: Place,
    /// Its directory: data, unless that is elsewhere, and log file.
    pub dir: PathBuf,
    data_dir: Option<PathBuf>,
    advertise_url: Option<String>,
    replica_nodes: Option<String>,
    options: Options,
    child: Option<Child>,
}

impl Node {
    /// Starts the node's process.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts the node's process with more arguments, this time.
    pub fn start_with(&mut self, args: &[&str]) {
        assert!(self.child.is_none(), "the node runs already");
        std::fs::create_dir_all(&self.dir).unwrap();
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let words = self.place.wrapper.iter().map(OsString::from).chain([brink_bin().into_os_string()]);
        let words: Vec<OsString> = words.collect();
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg("serve")
            .args(["--listen", &self.place.address.to_string()])
            .args(["--advertise-url", self.advertise_url.as_ref().unwrap_or(&self.url)])
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(&self.options.args)
            .args(args)
            .envs(self.options.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if !self.place.address.ip().is_loopback() {
            command.arg("--allow-anonymous");
        }
        if let Some(nodes) = &self.replica_nodes {
            command.env("REPLICA_NODES", nodes);
        }
        self.child = Some(command.spawn().unwrap());
    }

    /// Has the node, when it is started next, know these other nodes instead of all.
    pub fn knows(&mut self, others: &[String]) {
        let list: Vec<_> = others.iter().map(|url| serde_json::json!({ "url": url })).collect();
        self.replica_nodes = if list.is_empty() { None } else { Some(serde_json::json!(list).to_string()) };
    }

    /// Has the node call itself by another URL, such as the one that is in its data.
    pub fn advertise(&mut self, url: &str) {
        self.advertise_url = Some(url.to_owned());
    }

    /// Has the node keep its data on a disk of its own.
    pub fn keep_data_on(&mut self, disk: &FaultFs) {
        self.data_dir = Some(disk.path().join("data"));
    }

    /// Waits until the node knows its leader.
    pub async fn ready(&self) {
        let base = self.url.clone();
        eventually(FORM_LIMIT, &format!("{base} is ready; its log:\n{}", self.log_tail()), || async {
            let answer = self.client.try_send("GET", "/readyz", &[], "").await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    /// Waits until the node answers at all.
    pub async fn answers(&self) {
        eventually(FORM_LIMIT, "the node answers", || async {
            self.client.try_send("GET", "/livez", &[], "").await.ok()
        })
        .await;
    }

    /// Whether the process was started and not ended by the test.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// The id of the process, which must run.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the node runs").id()
    }

    /// Ends the process at once, as a power loss of the process would (SIGKILL).
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Asks the process to stop (SIGTERM) and waits for its end. Returns whether it ended with success.
    pub fn stop(&mut self) -> bool {
        self.signal(Signal::TERM);
        self.child.take().unwrap().wait().unwrap().success()
    }

    /// Sends a signal, such as STOP and CONT.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the node runs");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Waits until the process ends by itself. Returns its exit code; -1 if a signal ended it.
    pub async fn ended(&mut self, limit: Duration) -> i32 {
        let began = Instant::now();
        let child = self.child.as_mut().expect("the node runs");
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                self.child = None;
                return status.code().unwrap_or(-1);
            }
            assert!(began.elapsed() < limit, "{} runs still after {limit:?}", self.url);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Where the node keeps its data.
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| self.dir.join("data"))
    }

    /// What the node has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log.txt")
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the end of the log of {}:\n{}", self.url, self.log_tail());
        }
        self.kill();
    }
}

/// Ports that are free now. They are taken together, so that no two are the same.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

/// The `brink` binary: `BRINK_BIN`, or the one beside the test's own build.
pub fn brink_bin() -> PathBuf {
    let path = std::env::var_os("BRINK_BIN").map_or_else(|| build_dir().join("brink"), PathBuf::from);
    assert!(path.exists(), "{} is missing; build it, or run `cargo xtask test`", path.display());
    path
}

/// The bytes of a compiled plugin.
pub fn plugin_wasm(package: &str) -> Vec<u8> {
    std::fs::read(plugin_file(package)).unwrap()
}

/// A compiled plugin: from `BRINK_PLUGINS_DIR`, or from this build's target directory.
pub fn plugin_file(package: &str) -> PathBuf {
    let dir = std::env::var_os("BRINK_PLUGINS_DIR")
        .map_or_else(|| build_dir().parent().unwrap().join("wasm32-wasip2").join("plugin"), PathBuf::from);
    let path = dir.join(format!("{}.wasm", package.replace('-', "_")));
    assert!(path.exists(), "{} is missing; build the plugins, or run `cargo xtask test`", path.display());
    path
}

/// The directory of this build's binaries: test executables are in its `deps`.
pub fn build_dir() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    executable.parent().and_then(Path::parent).unwrap().to_path_buf()
}
