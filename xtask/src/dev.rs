//! `cargo xtask dev`: three nodes on this machine, with example hooks.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::build;
use crate::interrupt::Interrupt;
use crate::node::{self, Settings};

/// Number of nodes.
const NODES: u16 = 3;

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
    let interrupt = Interrupt::catch()?;
    let mut cluster = Cluster::start(options.port)?;
    cluster.prepare(&interrupt)?;
    cluster.greet();
    while !interrupt.is_set() {
        cluster.nodes.check()?;
        std::thread::sleep(POLL);
    }
    eprintln!("\nstopping");
    cluster.stop()
}

/// The running nodes. Dropping it ends them.
pub(crate) struct Cluster {
    nodes: node::Cluster,
    dir: PathBuf,
}

impl Cluster {
    /// Starts the nodes with empty data directories.
    pub(crate) fn start(port: u16) -> anyhow::Result<Self> {
        let dir = build::target_dir()?.join("dev");
        let ports = (0..NODES).map(|node| port.saturating_add(node)).collect();
        let nodes = node::Cluster::start(&build::brink_bin()?, ports, &dir, Settings::Users)?;
        Ok(Self { nodes, dir })
    }

    /// Waits until the nodes have found each other, then deploys the example hooks.
    pub(crate) fn prepare(&mut self, interrupt: &Interrupt) -> anyhow::Result<()> {
        self.nodes.wait_ready(interrupt)?;
        self.deploy_examples()
    }

    /// Stops the nodes cleanly.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        self.nodes.stop()
    }

    /// Deploys the example hooks on `users/`: one normalizes names and mails, one checks a schema.
    fn deploy_examples(&self) -> anyhow::Result<()> {
        let brink = |args: &[&str]| -> anyhow::Result<()> {
            eprint!("{}", self.nodes.brink(args)?);
            Ok(())
        };
        eprintln!("--- deploying the example hooks");
        for plugin in EXAMPLES {
            let file = build::plugin_file(plugin)?;
            brink(&["plugin", "deploy", plugin, &file.to_string_lossy()])?;
        }
        let normal = json!({"trim": ["/name", "/mail"], "lowercase": ["/mail"], "drop": ["/password"]}).to_string();
        let bind = |hook, plugin, config: &str| {
            brink(&["plugin", "bind", hook, "--plugin", plugin, "--prefix", "users/", "--config", config])
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
        let urls = self.nodes.urls();
        let (first, last) = (urls.first().map_or("", String::as_str), urls.last().map_or("", String::as_str));
        println!("\nThree nodes are running:\n");
        for (url, (_, process)) in urls.iter().zip(self.nodes.nodes()) {
            println!("  {url}    log: {}", process.log().display());
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
}
