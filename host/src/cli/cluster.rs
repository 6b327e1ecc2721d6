//! `brink cluster`: the state of the cluster.

use reqwest::Method;
use serde_json::Value;

use super::Common;
use super::client::{Client, Failure, Request};
use super::output::{self, Format};

/// What can be asked about the cluster.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Show the nodes, the leader, and whether there is a quorum
    Status {
        #[command(flatten)]
        common: Common,
    },
}

/// Runs a command.
pub(super) async fn run(command: Command) -> Result<(), Failure> {
    let Command::Status { common } = command;
    let answer = Client::new(&common)?.send(&Request::new(Method::GET, "/health/")).await?;
    let health = answer.json()?;
    match common.output {
        Format::Json => output::line(&health.to_string()),
        Format::Table => print(&answer.url, &health),
    }
}

fn print(url: &str, health: &Value) -> Result<(), Failure> {
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
    let own = vec![url.to_owned(), "yes".to_owned(), mark(leader == url), "-".to_owned(), "-".to_owned()];
    let others = cluster["nodes"].as_array().into_iter().flatten().map(|node| {
        let healthy = if node["healthy"] == true { "yes" } else { "no" };
        let fields = [output::text(&node["lag_entries"]), output::text(&node["rtt_ms"])];
        [output::text(&node["url"]), healthy.to_owned(), mark(node["url"] == *leader)]
            .into_iter()
            .chain(fields)
            .collect()
    });
    let rows: Vec<Vec<String>> = std::iter::once(own).chain(others).collect();
    output::table(&["NODE", "HEALTHY", "LEADER", "LAG", "RTT MS"], &rows)
}

fn mark(is_leader: bool) -> String {
    if is_leader { "leader" } else { "" }.to_owned()
}
