//! `cargo xtask dev`: three nodes on this machine, with example hooks.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::build;

/// Number of nodes.
const NODES: u16 = 3;

/// Maximum time for the nodes to find each other.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// Time between two checks of the nodes.
const POLL: Duration = Duration::from_millis(200);

/// The plugins of the example hooks.
const EXAMPLES: [&str; 2] = ["normalize", "json-schema"];

/// The options of `dev`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Port of the first node; the others take the next two
    #[arg(long, default_value_t = 8001)]
    port: u16,
}

/// Builds and starts the cluster, waits for Ctrl-C, and stops it.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    build::node_and_plugins(&EXAMPLES)?;
    let (interrupted, interruption) = mpsc::channel();
    ctrlc::set_handler(move || {
        // Fails if the cluster is being stopped already.
        let _ = interrupted.send(());
    })?;
    let mut cluster = Cluster::start(options.port)?;
    cluster.wait_ready(&interruption)?;
    cluster.deploy_examples()?;
    cluster.greet();
    loop {
        if interruption.recv_timeout(POLL).is_ok() {
            eprintln!("\nstopping");
            return cluster.stop();
        }
        cluster.check()?;
    }
}

/// Three running nodes. Dropping it ends them.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
    dir: PathBuf,
}

struct Node {
    url: String,
    log: PathBuf,
    process: Child,
}

impl Cluster {
    /// Starts the nodes with empty data directories.
    pub(crate) fn start(port: u16) -> anyhow::Result<Self> {
        let dir = build::target_dir()?.join("dev");
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("{} cannot be removed", dir.display()))?;
        }
        let ports: Vec<u16> = (0..NODES).map(|node| port.saturating_add(node)).collect();
        let mut cluster = Self { nodes: Vec::new(), dir };
        for (number, port) in (1..).zip(&ports) {
            let others: Vec<_> =
                ports.iter().filter(|other| *other != port).map(|port| json!({"url": url(*port)})).collect();
            let node = start_node(&cluster.dir.join(format!("node{number}")), *port, &json!(others).to_string())?;
            cluster.nodes.push(node);
        }
        Ok(cluster)
    }

    fn wait_ready(&mut self, interruption: &mpsc::Receiver<()>) -> anyhow::Result<()> {
        let began = Instant::now();
        while !self.nodes.iter().all(|node| is_ready(&node.url)) {
            self.check()?;
            if interruption.recv_timeout(POLL).is_ok() {
                bail!("interrupted");
            }
            if began.elapsed() > READY_DEADLINE {
                bail!("the nodes did not find each other; their logs are in {}", self.dir.display());
            }
        }
        Ok(())
    }

    /// Waits until the nodes accept writes, then deploys the example hooks.
    pub(crate) fn prepare(&mut self) -> anyhow::Result<()> {
        let (_sender, never) = mpsc::channel();
        self.wait_ready(&never)?;
        self.deploy_examples()
    }

    /// Deploys the example hooks on `users/`: one normalizes names and mails, one checks a schema.
    fn deploy_examples(&self) -> anyhow::Result<()> {
        let url = self.first_url()?;
        eprintln!("--- deploying the example hooks");
        for plugin in EXAMPLES {
            let file = build::plugin_file(plugin)?;
            brink(url, &["plugin", "deploy", plugin, &file.to_string_lossy()])?;
        }
        let normal = json!({"trim": ["/name", "/mail"], "lowercase": ["/mail"], "drop": ["/password"]}).to_string();
        let bind = |hook, plugin, config: &str| {
            brink(url, &["plugin", "bind", hook, "--plugin", plugin, "--prefix", "users/", "--config", config])
        };
        bind("users-normal", "normalize", &normal)?;
        let schema = json!({"schema": {
            "type": "object",
            "required": ["name", "mail"],
            "properties": {"name": {"type": "string", "minLength": 1}, "mail": {"type": "string", "pattern": "^[^@ ]+@[^@ ]+$"}},
        }});
        bind("users-schema", "json-schema", &schema.to_string())
    }

    /// Prints the addresses of the nodes and commands to try.
    fn greet(&self) {
        let urls: Vec<&str> = self.nodes.iter().map(|node| node.url.as_str()).collect();
        let (first, last) = (urls.first().unwrap_or(&""), urls.last().unwrap_or(&""));
        println!("\nThree nodes are running:\n");
        for node in &self.nodes {
            println!("  {}    log: {}", node.url, node.log.display());
        }
        println!("\nTwo hooks judge keys under users/. This write is normalized and accepted:\n");
        println!("  curl -X PUT {first}/kv/users/ann/ -H 'content-type: application/json' \\");
        println!(
            "       -d '{{\"value\": {{\"name\": \" Ann \", \"mail\": \"Ann@Example.org\", \"password\": \"x\"}}}}'"
        );
        println!("\nRead it from another node:\n\n  curl {last}/kv/users/ann/");
        println!("\nThis write is refused, with a pointer to the wrong field:\n");
        println!("  curl -X PUT {first}/kv/users/bob/ -H 'content-type: application/json' \\");
        println!("       -d '{{\"value\": {{\"name\": \"Bob\", \"mail\": \"nowhere\"}}}}'");
        println!("\nThe next run deletes the data in {}. Ctrl-C stops the nodes.", self.dir.display());
    }

    /// Fails if a node has ended.
    fn check(&mut self) -> anyhow::Result<()> {
        for node in &mut self.nodes {
            if let Some(status) = node.process.try_wait()? {
                let log = std::fs::read_to_string(&node.log).unwrap_or_default();
                let last = log.lines().last().unwrap_or("its log is empty");
                bail!("the node {} has ended ({status}): {last}", node.url);
            }
        }
        Ok(())
    }

    /// Stops the nodes cleanly.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        for node in &self.nodes {
            kill_process(Pid::from_child(&node.process), Signal::TERM)?;
        }
        for node in &mut self.nodes {
            let status = node.process.wait()?;
            if !status.success() {
                bail!("the node {} did not stop cleanly: {status}; its log: {}", node.url, node.log.display());
            }
        }
        self.nodes.clear();
        Ok(())
    }

    fn first_url(&self) -> anyhow::Result<&str> {
        Ok(&self.nodes.first().context("no node is running")?.url)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // Fails only if the node has ended already.
            let _ = node.process.kill();
            let _ = node.process.wait();
        }
    }
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}/kv-store/v1")
}

fn start_node(dir: &Path, port: u16, replica_nodes: &str) -> anyhow::Result<Node> {
    std::fs::create_dir_all(dir)?;
    let log = dir.join("log.txt");
    let out = File::create(&log)?;
    let mut command = Command::new(build::brink_bin()?);
    command.arg("serve").args(["--listen", &format!("127.0.0.1:{port}"), "--advertise-url", &url(port)]);
    command.arg("--data-dir").arg(dir.join("data")).args(["--log-format", "text"]);
    command.env("REPLICA_NODES", replica_nodes);
    // A process group of its own: Ctrl-C reaches only this program, which then stops the nodes cleanly.
    command.process_group(0).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let process = command.spawn().context("the node cannot be started")?;
    Ok(Node { url: url(port), log, process })
}

fn is_ready(url: &str) -> bool {
    let status = brink_output(url, &["cluster", "status", "-o", "json"]);
    let health = status.ok().and_then(|output| serde_json::from_slice::<serde_json::Value>(&output.stdout).ok());
    health.is_some_and(|health| health.pointer("/cluster/healthy_nodes") == Some(&json!(NODES)))
}

fn brink(url: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = brink_output(url, args)?;
    if !output.status.success() {
        bail!("brink {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    eprint!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}

fn brink_output(url: &str, args: &[&str]) -> anyhow::Result<Output> {
    Ok(Command::new(build::brink_bin()?).args(args).args(["--url", url]).stdin(Stdio::null()).output()?)
}
