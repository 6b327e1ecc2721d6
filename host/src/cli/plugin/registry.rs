//! The commands of `brink plugin` that change and list the plugins and hooks of a cluster.

use std::path::Path;

use reqwest::Method;
use serde_json::{Map, Value, json};

use super::super::client::{Client, Common};
use super::super::failure::Failure;
use super::super::input::{self, read_file};
use super::super::output::{self, Format};
use super::super::request::{Request, name_path};

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

/// `brink plugin deploy`.
pub(super) async fn deploy(name: &str, file: &Path, common: &Common) -> Result<(), Failure> {
    let request = Request::new(Method::PUT, name_path("plugins", name));
    let request = request.body("application/wasm", read_file(file)?);
    let sentence = |plugin: &Value| {
        let (roles, size, digest) =
            (output::words(&plugin["roles"]), output::text(&plugin["size_bytes"]), output::digest(plugin));
        format!("plugin {name} deployed: {roles}, {size} bytes, digest {digest}")
    };
    send(&request, common, sentence).await
}

/// `brink plugin bind`.
pub(super) async fn bind(args: &BindArgs) -> Result<(), Failure> {
    let request = Request::new(Method::PUT, name_path("hooks", &args.hook)).json(&binding(args)?);
    let sentence = |hook: &Value| {
        let (plugin, prefix) = (output::text(&hook["plugin"]), output::text(&hook["prefix"]));
        format!("hook {} is in force: {plugin} judges keys that start with {prefix:?}", args.hook)
    };
    send(&request, &args.common, sentence).await
}

/// `brink plugin unbind` and `remove`: removes a `hook` or a `plugin`.
pub(super) async fn remove(kind: &str, name: &str, common: &Common) -> Result<(), Failure> {
    let request = Request::new(Method::DELETE, name_path(&format!("{kind}s"), name));
    send(&request, common, |_| format!("{kind} {name} removed")).await
}

/// `brink plugin rollback`.
pub(super) async fn rollback(hook: &str, to: Option<u64>, common: &Common) -> Result<(), Failure> {
    let path = format!("{}rollback/", name_path("hooks", hook));
    let request = Request::new(Method::POST, path).json(&json!({ "to": to }));
    let sentence = |binding: &Value| match binding.is_null() {
        true => format!("hook {hook} removed"),
        false => {
            let (plugin, digest) = (output::text(&binding["plugin"]), output::digest(binding));
            format!("hook {hook} is in force as it was: {plugin} {digest}")
        }
    };
    send(&request, common, sentence).await
}

/// `brink plugin list`.
pub(super) async fn list(common: &Common) -> Result<(), Failure> {
    let client = Client::new(common)?;
    let plugins = client.send(&Request::new(Method::GET, "/plugins/")).await?.json()?;
    let hooks = client.send(&Request::new(Method::GET, "/hooks/")).await?.json()?;
    if common.output == Format::Json {
        return output::line(
            &json!({"plugins": plugins["plugins"], "hooks": hooks["hooks"], "nodes": hooks["nodes"]}).to_string(),
        );
    }
    let rows = |list: &Value, row: &dyn Fn(&Value) -> Vec<String>| -> Vec<Vec<String>> {
        list.as_array().into_iter().flatten().map(row).collect()
    };
    let plugin_rows = rows(&plugins["plugins"], &|plugin| {
        vec![
            output::text(&plugin["name"]),
            output::words(&plugin["roles"]),
            output::text(&plugin["size_bytes"]),
            output::text(&plugin["memory_bytes"]),
            output::text(&plugin["start_us"]),
            output::digest(plugin),
        ]
    });
    output::table(&["PLUGIN", "ROLES", "BYTES", "MEMORY", "START µs", "DIGEST"], &plugin_rows)?;
    output::line("")?;
    let hook_rows = rows(&hooks["hooks"], &|hook| {
        let fields = ["name", "plugin", "prefix", "mode", "order"].map(|field| output::text(&hook[field]));
        fields.into_iter().chain([output::words(&hook["operations"]), output::digest(hook)]).collect()
    });
    output::table(&["HOOK", "PLUGIN", "PREFIX", "MODE", "ORDER", "OPERATIONS", "DIGEST"], &hook_rows)?;
    output::line("")?;
    let node_rows = rows(&hooks["nodes"], &|node| {
        let in_force = if node["ready"] == true { "yes" } else { "not yet" };
        vec![output::text(&node["url"]), in_force.to_owned()]
    });
    output::table(&["NODE", "IN FORCE"], &node_rows)
}

/// `brink plugin history`.
pub(super) async fn history(common: &Common) -> Result<(), Failure> {
    let answer = Client::new(common)?.send(&Request::new(Method::GET, "/registry/history/")).await?.json()?;
    let changes = answer["changes"].as_array().into_iter().flatten();
    if common.output == Format::Json {
        return changes.map(Value::to_string).try_for_each(|change| output::line(&change));
    }
    let rows: Vec<Vec<String>> = changes
        .map(|change| {
            let what = match (change["action"].as_str(), change["rolled_back_to"].as_u64()) {
                (_, Some(to)) => format!("rolled-back to {to}"),
                (action, None) => action.unwrap_or_default().to_owned(),
            };
            let hook = output::text(&change["hook"]);
            let binding = if change["binding"].is_null() { change } else { &change["binding"] };
            let at = output::time(&change["at_ms"]);
            let (number, by) = (output::text(&change["number"]), output::text(&change["by"]));
            vec![number, at, by, what, hook, output::text(&binding["plugin"]), output::digest(binding)]
        })
        .collect();
    output::table(&["CHANGE", "WHEN", "WHO", "WHAT", "HOOK", "PLUGIN", "DIGEST"], &rows)
}

/// The body of the request. It has only fields that were given, so that the node's defaults apply to the others.
fn binding(args: &BindArgs) -> Result<Value, Failure> {
    let mut body = Map::new();
    let fields = [
        ("plugin", Some(json!(args.plugin))),
        ("digest", args.digest.as_ref().map(|digest| json!(digest))),
        ("prefix", args.prefix.as_ref().map(|prefix| json!(prefix))),
        ("operations", args.operations.as_ref().map(|operations| json!(operations))),
        ("order", args.order.map(|order| json!(order))),
        ("config", args.config.as_deref().map(input::config).transpose()?),
        ("mode", args.mode.as_ref().map(|mode| json!(mode))),
        ("on_failure", args.on_failure.as_ref().map(|action| json!(action))),
        ("deadline_ms", args.deadline_ms.map(|ms| json!(ms))),
        ("memory_bytes", args.memory_bytes.map(|bytes| json!(bytes))),
        ("output_bytes", args.output_bytes.map(|bytes| json!(bytes))),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            body.insert(name.to_owned(), value);
        }
    }
    Ok(Value::Object(body))
}

/// Sends a request and prints the answer: its JSON, or a sentence made of it.
async fn send(request: &Request, common: &Common, sentence: impl Fn(&Value) -> String) -> Result<(), Failure> {
    let answer = Client::new(common)?.send(request).await?;
    let body = if answer.body.is_empty() { Value::Null } else { answer.json()? };
    match common.output {
        Format::Json if body.is_null() => Ok(()),
        Format::Json => output::line(&body.to_string()),
        Format::Table => output::line(&sentence(&body)),
    }
}
