//! `brink cluster`: the state and the members of the cluster.

use reqwest::Method;
use serde_json::{Value, json};

use super::client::{Client, Common, base_url};
use super::failure::Failure;
use super::output::{self, Format};
use super::request::{Request, name_path};

/// The commands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show the nodes, the leader, and whether there is a quorum
    Status {
        #[command(flatten)]
        common: Common,
    },
    /// List the members with their ids and roles
    Members {
        #[command(flatten)]
        common: Common,
    },
    /// Add a node, or change a member's role
    ///
    /// A new node must run with an empty data directory, and with a node of this cluster in REPLICA_NODES.
    Add {
        /// The node's base URL, such as http://node4:8000/kv-store/v1
        #[arg(value_name = "NODE")]
        node: String,
        /// Add it as a learner: a read replica, which does not count for the quorum
        #[arg(long)]
        learner: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Remove a node, running or not
    Remove {
        /// The node's base URL
        #[arg(value_name = "NODE")]
        node: String,
        #[command(flatten)]
        common: Common,
    },
    /// Make a voter the leader
    Transfer {
        /// The node's base URL
        #[arg(value_name = "NODE")]
        node: String,
        #[command(flatten)]
        common: Common,
    },
}

/// Runs a command.
pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Status { common } => status(&common).await,
        Command::Members { common } => {
            let answer = Client::new(&common)?.send(&Request::new(Method::GET, "/cluster/members/")).await?;
            print_members(common.output, &answer.json()?)
        }
        Command::Add { node, learner, common } => {
            let role = if learner { "learner" } else { "voter" };
            let member = json!({ "url": base_url("NODE", &node)?, "role": role });
            let request = Request::new(Method::POST, "/cluster/members/").json(&member);
            print_members(common.output, &Client::new(&common)?.send(&request).await?.json()?)
        }
        Command::Remove { node, common } => {
            let url = base_url("NODE", &node)?;
            let request = Request::new(Method::DELETE, name_path("cluster/members", &url));
            Client::new(&common)?.send(&request).await?;
            output::line(&format!("{url} is removed"))
        }
        Command::Transfer { node, common } => {
            let url = base_url("NODE", &node)?;
            let request = Request::new(Method::PUT, "/cluster/leader/").json(&json!({ "url": url }));
            Client::new(&common)?.send(&request).await?;
            output::line(&format!("{url} leads"))
        }
    }
}

async fn status(common: &Common) -> Result<(), Failure> {
    let answer = Client::new(common)?.send(&Request::new(Method::GET, "/health/")).await?;
    let health = answer.json()?;
    match common.output {
        Format::Json => output::line(&health.to_string()),
        Format::Table => print_health(&answer.url, &health),
    }
}

fn print_members(format: Format, answer: &Value) -> Result<(), Failure> {
    if format == Format::Json {
        return output::line(&answer.to_string());
    }
    let row = |member: &Value| -> Vec<String> {
        let healthy = healthy_cell(member);
        let texts = [&member["url"], &member["id"], &member["role"]].map(output::text);
        let rest = [healthy, leader_cell(member["leader"] == true), output::text(&member["lag_entries"])];
        texts.into_iter().chain(rest).collect()
    };
    let rows: Vec<_> = answer["members"].as_array().into_iter().flatten().map(row).collect();
    output::table(&["NODE", "ID", "ROLE", "HEALTHY", "LEADER", "LAG"], &rows)
}

fn print_health(url: &str, health: &Value) -> Result<(), Failure> {
    let cluster = &health["cluster"];
    output::line(&format!(
        "{}: {} of {} nodes healthy, {} needed for writes, seen from {url}",
        output::text(&health["status"]),
        cluster["healthy_nodes"],
        cluster["total_nodes"],
        cluster["required_for_quorum"],
    ))?;
    output::line("")?;
    let leader = &cluster["leader"];
    let own = vec![url.to_owned(), "yes".to_owned(), leader_cell(leader == url), "-".to_owned(), "-".to_owned()];
    let others = cluster["nodes"].as_array().into_iter().flatten().map(|node| {
        let healthy = healthy_cell(node);
        let fields = [output::text(&node["lag_entries"]), output::text(&node["rtt_ms"])];
        [output::text(&node["url"]), healthy, leader_cell(node["url"] == *leader)].into_iter().chain(fields).collect()
    });
    let rows: Vec<Vec<String>> = std::iter::once(own).chain(others).collect();
    output::table(&["NODE", "HEALTHY", "LEADER", "LAG", "RTT MS"], &rows)
}

fn healthy_cell(node: &Value) -> String {
    if node["healthy"] == true { "yes" } else { "no" }.to_owned()
}

fn leader_cell(is_leader: bool) -> String {
    if is_leader { "leader" } else { "" }.to_owned()
}
