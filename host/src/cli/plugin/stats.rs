//! `brink plugin stats`: counts and latencies of plugin calls from all nodes of a cluster.

use reqwest::Method;
use serde_json::Value;

use super::super::client::{Client, Common};
use super::super::failure::Failure;
use super::super::output::{self, Format};
use super::super::request::Request;

/// Runs the command. Nodes that cannot be reached are left out, with a message.
pub(super) async fn run(common: &Common) -> Result<(), Failure> {
    let client = Client::new(common)?;
    let mut table = Vec::new();
    for node in client.members().await? {
        let stats = match client.send_to(&node, &Request::new(Method::GET, "/registry/stats/")).await {
            Ok(answer) => answer.json()?,
            Err(failure @ Failure::Unreachable { .. }) => {
                eprintln!("brink: {failure}");
                continue;
            }
            Err(failure) => return Err(failure),
        };
        match common.output {
            Format::Json => output::line(&stats.to_string())?,
            Format::Table => table.extend(rows(&node, &stats)),
        }
    }
    let titles = ["NODE", "HOOK", "PLUGIN", "CALLS", "P50 µs", "P99 µs", "MAX µs", "MEMORY", "STARTS", "RESULTS"];
    match common.output {
        Format::Json => Ok(()),
        Format::Table => output::table(&titles, &table),
    }
}

/// The table rows of one node: one for each hook and plugin.
fn rows(node: &str, stats: &Value) -> Vec<Vec<String>> {
    let row = |calls: &Value| {
        let mut hooks = stats["hooks"].as_array().into_iter().flatten();
        let start = match hooks.find(|hook| hook["hook"] == calls["hook"]).map(|hook| &hook["starts_configured"]) {
            Some(Value::Bool(true)) => "configured",
            Some(_) => "to be configured",
            None => "removed",
        };
        let results = calls["results"].as_object().into_iter().flatten();
        let results: Vec<String> = results.map(|(result, count)| format!("{result} {count}")).collect();
        let fields = ["hook", "plugin", "calls", "p50_us", "p99_us", "max_us", "memory_bytes"];
        let fields = fields.map(|field| output::text(&calls[field]));
        std::iter::once(node.to_owned()).chain(fields).chain([start.to_owned(), results.join(", ")]).collect()
    };
    stats["calls"].as_array().into_iter().flatten().map(row).collect()
}
