//! Clusters of real `brink serve` processes on loopback, each with its own data directory.

use std::ffi::OsString;
use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::artifacts::brink_bin;
use crate::client::Client;
use crate::fault_fs::FaultFs;
use crate::ports::free_ports;
use crate::wait::eventually;

/// Time for a cluster to form. Generous, because other tests may keep the machine busy.
const FORM_LIMIT: Duration = Duration::from_secs(60);

/// Time for a node to cut its log. A leader keeps it for ten seconds for a node that is down.
const CUT_LIMIT: Duration = Duration::from_secs(90);

/// Options of a cluster's nodes.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Additional arguments of `brink serve`.
    pub args: Vec<String>,
    /// Additional environment variables.
    pub env: Vec<(String, String)>,
}

/// Where a node runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// The address it listens on.
    pub address: SocketAddr,
    /// A command, with its arguments, that runs the node's command. It must replace itself by the node's process.
    pub wrapper: Vec<String>,
}

/// A cluster of nodes. Dropping it kills their processes.
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

    /// Starts a cluster with options and waits until every node knows its leader.
    pub async fn start_with(size: usize, options: Options) -> Self {
        let mut cluster = Self::prepare(size, options);
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.ready().await;
        cluster
    }

    /// Prepares a cluster on loopback without starting its nodes.
    pub fn prepare(size: usize, options: Options) -> Self {
        let places = free_ports(size)
            .into_iter()
            .map(|port| Place { address: SocketAddr::from(([127, 0, 0, 1], port)), wrapper: Vec::new() });
        Self::prepare_at(places.collect(), options)
    }

    /// Prepares a cluster with a node at each place, without starting its nodes.
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
                    binary: brink_bin(),
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

    /// Waits until every running node is healthy: it knows its leader, and has just heard of all members.
    pub async fn healthy(&self) {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            eventually(FORM_LIMIT, &format!("{} is healthy", node.url), || async {
                let health = node.client.try_send("GET", "/health/", &[], "").await.ok()?.json;
                (health["status"] == "healthy").then_some(())
            })
            .await;
        }
    }

    /// Writes through the first node until every running node keeps fewer than `entries_max` log entries. Logs are cut after later
    /// writes, and not while nodes are busy.
    pub async fn until_logs_are_cut(&self, entries_max: usize) {
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            eventually(CUT_LIMIT, "the log is cut", || async {
                self.client(0).write("more", &serde_json::json!(1)).await.expect_written();
                let metrics = String::from_utf8(node.client.get("/metrics").await.body).unwrap();
                let gauge = metrics.lines().find(|line| line.starts_with("brink_log_entries{"))?;
                let entries: usize = gauge.rsplit_once(' ')?.1.parse().ok()?;
                (entries < entries_max).then_some(())
            })
            .await;
        }
    }

    /// A client of one node.
    pub fn client(&self, index: usize) -> &Client {
        &self.nodes[index].client
    }

    /// The URL and the id of each member, as a node sees them.
    pub async fn member_ids(&self, node: usize) -> Vec<(String, String)> {
        let members = self.client(node).get("/cluster/members/").await.expect(200).json;
        let members = members["members"].as_array().cloned().unwrap_or_default();
        members.iter().map(|member| (member["url"].to_string(), member["id"].to_string())).collect()
    }

    /// The index of the leader. Waits until all running nodes name the same one.
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

    /// Kills every process at the same moment (SIGKILL).
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
    /// Its directory: the log file, and the data unless they are on a disk of their own.
    pub dir: PathBuf,
    data_dir: Option<PathBuf>,
    advertise_url: Option<String>,
    replica_nodes: Option<String>,
    options: Options,
    binary: PathBuf,
    child: Option<Child>,
}

impl Node {
    /// Starts the node's process.
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// Starts the node's process with additional arguments.
    pub fn start_with(&mut self, args: &[&str]) {
        assert!(self.child.is_none(), "the node is already running");
        std::fs::create_dir_all(&self.dir).unwrap();
        let log = File::options().create(true).append(true).open(self.log_file()).unwrap();
        let words = self.place.wrapper.iter().map(OsString::from).chain([self.binary.clone().into_os_string()]);
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
            // The secret that nodes on loopback addresses share is not that of the user who runs the tests.
            .env("XDG_STATE_HOME", state_home())
            .envs(self.options.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if !self.place.address.ip().is_loopback() {
            let secret = state_home().join("cluster.secret");
            std::fs::create_dir_all(state_home()).unwrap();
            std::fs::write(&secret, "the-secret-of-nodes-that-tests-run").unwrap();
            command.args(["--anonymous", "admin,plain", "--cluster-secret-file"]).arg(secret);
        }
        if let Some(nodes) = &self.replica_nodes {
            command.env("REPLICA_NODES", nodes);
        }
        self.child = Some(command.spawn().unwrap());
    }

    /// Sets the other nodes that the node knows from its next start on (`REPLICA_NODES`).
    pub fn knows(&mut self, others: &[String]) {
        let list: Vec<_> = others.iter().map(|url| serde_json::json!({ "url": url })).collect();
        self.replica_nodes = if list.is_empty() { None } else { Some(serde_json::json!(list).to_string()) };
    }

    /// Sets the URL that the node advertises from its next start on.
    pub fn advertise(&mut self, url: &str) {
        self.advertise_url = Some(url.to_owned());
    }

    /// Starts the node by another command, as [`Place::wrapper`] says, from its next start on.
    pub fn wrap(&mut self, wrapper: Vec<String>) {
        self.place.wrapper = wrapper;
    }

    /// Sets the binary that the node runs from its next start on.
    pub fn run_binary(&mut self, binary: PathBuf) {
        self.binary = binary;
    }

    /// Moves the node to another port, from its next start on; clients use its new URL at once.
    pub fn move_to(&mut self, port: u16) {
        self.place.address.set_port(port);
        self.port = port;
        self.url = format!("http://{}/kv-store/v1", self.place.address);
        self.client = Client::new(&self.url);
    }

    /// Puts the node's data on a disk, from its next start on.
    pub fn keep_data_on(&mut self, disk: &FaultFs) {
        self.data_dir = Some(disk.path().join("data"));
    }

    /// Waits until the node knows its leader. If that fails, the end of its log is printed when the node is dropped.
    pub async fn ready(&self) {
        eventually(FORM_LIMIT, &format!("{} is ready", self.url), || async {
            let answer = self.client.try_send("GET", "/readyz", &[], "").await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    /// Waits until the node has started, and answers requests.
    pub async fn answers(&self) {
        eventually(FORM_LIMIT, "the node answers", || async {
            let health = self.client.try_send("GET", "/health/", &[], "").await.ok()?.json;
            (health["status"] != "starting").then_some(())
        })
        .await;
    }

    /// Waits until the node listens. It may refuse most requests yet.
    pub async fn lives(&self) {
        eventually(FORM_LIMIT, "the node lives", || async {
            self.client.try_send("GET", "/livez", &[], "").await.ok()
        })
        .await;
    }

    /// Whether the test has started the process and not ended it.
    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    /// The process id. Panics if the node is not running.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the node is running").id()
    }

    /// Kills the process (SIGKILL). Does nothing if the node is not running.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Asks the process to stop (SIGTERM) and waits for its end. Returns whether its exit code was 0.
    pub fn stop(&mut self) -> bool {
        self.signal(Signal::TERM);
        self.child.take().unwrap().wait().unwrap().success()
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("the node is running");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Waits until the process ends by itself. Returns its exit code, or -1 if a signal ended it.
    pub async fn ended(&mut self, limit: Duration) -> i32 {
        let began = Instant::now();
        let child = self.child.as_mut().expect("the node is running");
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                self.child = None;
                return status.code().unwrap_or(-1);
            }
            assert!(began.elapsed() < limit, "{} is still running after {limit:?}", self.url);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The node's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| self.dir.join("data"))
    }

    /// The log of the node, from its first start on.
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

/// The directory in which nodes keep what they share as processes of one user.
fn state_home() -> PathBuf {
    std::env::temp_dir().join(format!("brink-tests-{}", rustix::process::geteuid().as_raw()))
}
