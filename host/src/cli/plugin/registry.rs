//! The commands of `brink plugin` that change and list the plugins and hooks of a cluster.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::{Client, Common, Failure, Format, Method, Request, io, name_path};
use crate::limits::{BIND_DEADLINE, COMPILE_DEADLINE, STORE_UPLOAD_DEADLINE};

/// Time for a change for which nodes compile: one compiles, the change is stored, and the others compile.
const TIMEOUT: Duration = COMPILE_DEADLINE.saturating_add(BIND_DEADLINE).saturating_add(STORE_UPLOAD_DEADLINE);

/// Bind a plugin to keys: create or replace a hook
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct BindArgs {
    /// The hook's name
    hook: String,
    /// The plugin's name
    #[arg(long)]
    plugin: String,
    /// The digest of the plugin's version; the newest version if absent
    #[arg(long)]
    digest: Option<String>,
    /// Prefix of the keys that are judged; all keys if absent
    #[arg(long)]
    prefix: Option<String>,
    /// Operations that are judged: put, delete, or both
    #[arg(long, value_name = "OPERATIONS", value_delimiter = ',')]
    operations: Option<Vec<String>>,
    /// Hooks run in ascending order
    #[arg(long, allow_negative_numbers = true)]
    order: Option<i32>,
    /// The plugin's configuration, as JSON or as @FILE
    #[arg(long, value_name = "JSON")]
    config: Option<String>,
    /// enforce, or monitor: count and log verdicts without acting on them
    #[arg(long)]
    mode: Option<String>,
    /// Fate of the write if the plugin fails: reject or skip
    #[arg(long, value_name = "ACTION")]
    on_failure: Option<String>,
    /// Maximum time of a call, in milliseconds
    #[arg(long, value_name = "MS")]
    deadline_ms: Option<u64>,
    /// Maximum memory of an instance, in bytes
    #[arg(long, value_name = "BYTES")]
    memory_bytes: Option<u64>,
    /// Maximum bytes that a call passes to the host: 4 KiB to 16 MiB, 16 MiB if absent
    #[arg(long, value_name = "BYTES")]
    output_bytes: Option<u64>,
    #[command(flatten)]
    common: Common,
}

pub(super) async fn deploy(name: &str, file: &Path, common: &Common) -> Result<(), Failure> {
    let request = Request::new(Method::PUT, name_path("plugins", name));
    let request = request.body("application/wasm", io::read_file(file)?).wait(TIMEOUT);
    let sentence = |plugin: &Value| {
        let (roles, digest) = (io::words(&plugin["roles"]), io::digest(plugin));
        format!("plugin {name} deployed: {roles}, {} bytes, digest {digest}", io::text(&plugin["size_bytes"]))
    };
    send(&request, common, sentence).await
}

pub(super) async fn bind(args: &BindArgs) -> Result<(), Failure> {
    let request = Request::new(Method::PUT, name_path("hooks", &args.hook)).json(&binding(args)?).wait(TIMEOUT);
    let sentence = |hook: &Value| {
        let (plugin, prefix) = (io::text(&hook["plugin"]), hook["prefix"].as_str().unwrap_or_default());
        format!("hook {} is in force: {plugin} judges keys that start with {prefix:?}", args.hook)
    };
    send(&request, &args.common, sentence).await
}

/// Removes a `hook` or a `plugin`.
pub(super) async fn remove(kind: &str, name: &str, common: &Common) -> Result<(), Failure> {
    let request = Request::new(Method::DELETE, name_path(&format!("{kind}s"), name));
    send(&request, common, |_| format!("{kind} {name} removed")).await
}

pub(super) async fn rollback(hook: &str, to: Option<u64>, common: &Common) -> Result<(), Failure> {
    let path = format!("{}rollback/", name_path("hooks", hook));
    let request = Request::new(Method::POST, path).json(&json!({ "to": to })).wait(TIMEOUT);
    let sentence = |binding: &Value| match binding.is_null() {
        true => format!("hook {hook} removed"),
        false => format!("hook {hook} is in force as it was: {} {}", io::text(&binding["plugin"]), io::digest(binding)),
    };
    send(&request, common, sentence).await
}

pub(super) async fn list(common: &Common) -> Result<(), Failure> {
    let client = Client::new(common)?;
    let plugins = client.send(&Request::get("/plugins/")).await?.json()?;
    let hooks = client.send(&Request::get("/hooks/")).await?.json()?;
    if common.output == Format::Json {
        let all = json!({"plugins": plugins["plugins"], "hooks": hooks["hooks"], "nodes": hooks["nodes"]});
        return io::json(&all.to_string());
    }
    let rows = io::items(&plugins["plugins"]).map(|plugin| {
        let [name, size, memory, start] = io::texts(plugin, ["name", "size_bytes", "memory_bytes", "start_us"]);
        [name, io::words(&plugin["roles"]), size, memory, start, io::digest(plugin)]
    });
    io::table(["PLUGIN", "ROLES", "BYTES", "MEMORY", "START µs", "DIGEST"], rows)?;
    io::line("")?;
    let rows = io::items(&hooks["hooks"]).map(|hook| {
        let [name, plugin, prefix, mode, order] = io::texts(hook, ["name", "plugin", "prefix", "mode", "order"]);
        [name, plugin, prefix, mode, order, io::words(&hook["operations"]), io::digest(hook)]
    });
    io::table(["HOOK", "PLUGIN", "PREFIX", "MODE", "ORDER", "OPERATIONS", "DIGEST"], rows)?;
    io::line("")?;
    let rows = io::items(&hooks["nodes"]).map(|node| {
        let in_force = if node["ready"] == true { "yes" } else { "not yet" };
        [io::text(&node["url"]), in_force.to_owned()]
    });
    io::table(["NODE", "IN FORCE"], rows)
}

pub(super) async fn history(common: &Common) -> Result<(), Failure> {
    let answer = Client::new(common)?.send(&Request::get("/registry/history/")).await?.json()?;
    let mut changes = io::items(&answer["changes"]);
    if common.output == Format::Json {
        return changes.try_for_each(|change| io::json(&change.to_string()));
    }
    let rows = changes.map(|change| {
        let what = match (change["action"].as_str(), change["rolled_back_to"].as_u64()) {
            (_, Some(to)) => format!("rolled-back to {to}"),
            (action, None) => action.unwrap_or_default().to_owned(),
        };
        let binding = if change["binding"].is_null() { change } else { &change["binding"] };
        let [number, by, hook] = io::texts(change, ["number", "by", "hook"]);
        let (at, plugin) = (io::time(&change["at_ms"]), io::text(&binding["plugin"]));
        [number, at, by, what, hook, plugin, io::digest(binding)]
    });
    io::table(["CHANGE", "WHEN", "WHO", "WHAT", "HOOK", "PLUGIN", "DIGEST"], rows)
}

/// Shows the figures of every node. Nodes that cannot be reached are left out, with a message.
pub(super) async fn stats(common: &Common) -> Result<(), Failure> {
    let client = Client::new(common)?;
    let mut rows = Vec::new();
    for node in client.members().await? {
        let stats = match client.send_to(&node, &Request::get("/registry/stats/")).await {
            Ok(answer) => answer.json()?,
            Err(failure @ Failure::Unreachable { .. }) => {
                io::complain(&failure);
                continue;
            }
            Err(failure) => return Err(failure),
        };
        match common.output {
            Format::Json => io::json(&stats.to_string())?,
            Format::Table => rows.extend(io::items(&stats["calls"]).map(|calls| stats_row(&node, &stats, calls))),
        }
    }
    let titles = ["NODE", "HOOK", "PLUGIN", "CALLS", "P50 µs", "P99 µs", "MAX µs", "MEMORY", "STARTS", "RESULTS"];
    if common.output == Format::Json { Ok(()) } else { io::table(titles, rows) }
}

fn stats_row(node: &str, stats: &Value, calls: &Value) -> [String; 10] {
    let hook = io::items(&stats["hooks"]).find(|hook| hook["hook"] == calls["hook"]);
    let start = match hook.map(|hook| &hook["starts_configured"]) {
        Some(Value::Bool(true)) => "configured",
        Some(_) => "to be configured",
        None => "removed",
    };
    let results = calls["results"].as_object().into_iter().flatten();
    let results: Vec<String> = results.map(|(result, count)| format!("{result} {count}")).collect();
    let fields = ["hook", "plugin", "calls", "p50_us", "p99_us", "max_us", "memory_bytes"];
    let [hook, plugin, count, p50, p99, max, memory] = io::texts(calls, fields);
    [node.to_owned(), hook, plugin, count, p50, p99, max, memory, start.to_owned(), results.join(", ")]
}

/// The body of the request. It has only fields that were given, so that the node's defaults apply to the others.
fn binding(args: &BindArgs) -> Result<Value, Failure> {
    let mut body = json!({
        "plugin": args.plugin, "digest": args.digest, "prefix": args.prefix, "operations": args.operations,
        "order": args.order, "config": args.config.as_deref().map(io::config).transpose()?, "mode": args.mode,
        "on_failure": args.on_failure, "deadline_ms": args.deadline_ms, "memory_bytes": args.memory_bytes,
        "output_bytes": args.output_bytes,
    });
    if let Some(fields) = body.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    Ok(body)
}

/// Sends a request and prints the answer: its JSON, or a sentence made of it.
async fn send(request: &Request, common: &Common, sentence: impl Fn(&Value) -> String) -> Result<(), Failure> {
    let answer = Client::new(common)?.send(request).await?;
    let body = if answer.body.is_empty() { Value::Null } else { answer.json()? };
    match common.output {
        Format::Json if body.is_null() => Ok(()),
        Format::Json => io::json(&body.to_string()),
        Format::Table => io::line(&sentence(&body)),
    }
}
