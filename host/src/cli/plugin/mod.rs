//! `brink plugin`: plugins and the hooks that run them.

mod cases;
mod local;
mod project;
mod trial;
mod watch;

use std::path::PathBuf;

use reqwest::Method;
use serde_json::{Map, Value, json};

use super::Common;
use super::client::{Client, Failure, Request, name_path};
use super::kv::read_file;
use super::output::{self, Format};

/// Characters of a digest shown in a table.
const DIGEST_CHARS: usize = 12;

/// What can be done with plugins.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Begin a plugin: a project that builds, tests and deploys as it is
    New {
        /// The plugin's name
        name: String,
        /// The language it is written in
        #[arg(long)]
        lang: project::Language,
        /// The new folder; one of the plugin's name if absent
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Build the component of a project
    Build {
        /// The project's folder
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Run the cases of a project: writes, and what the plugin is to say to each
    Test(cases::Args),
    /// Ask a plugin about one write, without a node
    Run(trial::RunArgs),
    /// Measure what a write costs
    Bench(trial::BenchArgs),
    /// Say what a component is and can do
    Inspect(trial::InspectArgs),
    /// Upload a plugin, or a new version of it
    Deploy {
        /// The plugin's name
        name: String,
        /// The component: a .wasm file
        file: PathBuf,
        #[command(flatten)]
        common: Common,
    },
    Bind(BindArgs),
    /// Remove a hook
    Unbind {
        /// The hook's name
        hook: String,
        #[command(flatten)]
        common: Common,
    },
    /// Make a hook what it was before its last change, or when an earlier one had been made
    Rollback {
        /// The hook's name
        hook: String,
        /// The number of a change, as `brink plugin history` shows it
        #[arg(long, value_name = "NUMBER")]
        to: Option<u64>,
        #[command(flatten)]
        common: Common,
    },
    /// List what was changed, when and by whom, newest first
    History {
        #[command(flatten)]
        common: Common,
    },
    /// Show what plugins wrote, and how they failed, on every node
    Logs(watch::LogsArgs),
    /// Show what the calls of plugins came to, on every node since it started
    Stats {
        #[command(flatten)]
        common: Common,
    },
    /// List plugins and hooks, and whether every node has them in force
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Remove a plugin that no hook runs
    Remove {
        /// The plugin's name
        name: String,
        #[command(flatten)]
        common: Common,
    },
}

/// Set a hook: which plugin judges which writes
#[derive(Debug, clap::Args)]
pub(super) struct BindArgs {
    /// The hook's name
    hook: String,
    /// The plugin's name
    #[arg(long)]
    plugin: String,
    /// The plugin's version; the newest if absent
    #[arg(long)]
    digest: Option<String>,
    /// Keys that start with this; all if absent
    #[arg(long)]
    prefix: Option<String>,
    /// What is judged: put, delete, or both
    #[arg(long, value_name = "OPERATIONS", value_delimiter = ',')]
    operations: Option<Vec<String>>,
    /// Hooks run by ascending order
    #[arg(long, allow_negative_numbers = true)]
    order: Option<i32>,
    /// The plugin's configuration, as JSON or as @FILE
    #[arg(long, value_name = "JSON")]
    config: Option<String>,
    /// Whether the hook decides: enforce or monitor
    #[arg(long)]
    mode: Option<String>,
    /// What a failure of the plugin means for the write: reject or skip
    #[arg(long, value_name = "ACTION")]
    on_failure: Option<String>,
    /// How long a call may run, in milliseconds
    #[arg(long, value_name = "MS")]
    deadline_ms: Option<u64>,
    /// Memory of an instance, in bytes
    #[arg(long, value_name = "BYTES")]
    memory_bytes: Option<u64>,
    /// What a call may pass to the host, in bytes: 4 KiB to 16 MiB, 16 MiB if absent
    #[arg(long, value_name = "BYTES")]
    output_bytes: Option<u64>,
    #[command(flatten)]
    common: Common,
}

/// Runs a command.
pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::New { name, lang, dir } => project::create(&name, lang, dir),
        Command::Build { dir } => project::build(&dir),
        Command::Test(args) => tokio::task::block_in_place(|| cases::run(&args)),
        Command::Run(args) => tokio::task::block_in_place(|| trial::run(&args)),
        Command::Bench(args) => tokio::task::block_in_place(|| trial::bench(&args)),
        Command::Inspect(args) => tokio::task::block_in_place(|| trial::inspect(&args)),
        Command::Deploy { name, file, common } => {
            let request = Request::new(Method::PUT, name_path("plugins", &name));
            let request = request.body("application/wasm", read_file(&file)?);
            let say = |plugin: &Value| format!("plugin {name} deployed: {}", describe(plugin));
            send(&request, &common, say).await
        }
        Command::Bind(args) => {
            let request = Request::new(Method::PUT, name_path("hooks", &args.hook)).json(&binding(&args)?);
            let say = |hook: &Value| {
                let (plugin, prefix) = (output::text(&hook["plugin"]), output::text(&hook["prefix"]));
                format!("hook {} is in force: {plugin} judges keys that start with {prefix:?}", args.hook)
            };
            send(&request, &args.common, say).await
        }
        Command::Unbind { hook, common } => {
            let request = Request::new(Method::DELETE, name_path("hooks", &hook));
            send(&request, &common, |_| format!("hook {hook} removed")).await
        }
        Command::Remove { name, common } => {
            let request = Request::new(Method::DELETE, name_path("plugins", &name));
            send(&request, &common, |_| format!("plugin {name} removed")).await
        }
        Command::Rollback { hook, to, common } => {
            let path = format!("{}rollback/", name_path("hooks", &hook));
            let request = Request::new(Method::POST, path).json(&json!({ "to": to }));
            send(&request, &common, |binding| match binding.is_null() {
                true => format!("hook {hook} removed"),
                false => format!(
                    "hook {hook} is in force as it was: {} {}",
                    output::text(&binding["plugin"]),
                    digest(binding)
                ),
            })
            .await
        }
        Command::History { common } => history(&common).await,
        Command::Logs(args) => watch::logs(&args).await,
        Command::Stats { common } => watch::stats(&common).await,
        Command::List { common } => list(&common).await,
    }
}

/// Sends a request and prints the answer, for people in a sentence.
async fn send(request: &Request, common: &Common, say: impl Fn(&Value) -> String) -> Result<(), Failure> {
    let answer = Client::new(common)?.send(request).await?;
    let body = if answer.body.is_empty() { Value::Null } else { answer.json()? };
    match common.output {
        Format::Json if body.is_null() => Ok(()),
        Format::Json => output::line(&body.to_string()),
        Format::Table => output::line(&say(&body)),
    }
}

/// The body of a hook: what was said, and nothing else, so that the node's defaults hold.
fn binding(args: &BindArgs) -> Result<Value, Failure> {
    let mut body = Map::new();
    let fields = [
        ("plugin", Some(json!(args.plugin))),
        ("digest", args.digest.as_ref().map(|digest| json!(digest))),
        ("prefix", args.prefix.as_ref().map(|prefix| json!(prefix))),
        ("operations", args.operations.as_ref().map(|operations| json!(operations))),
        ("order", args.order.map(|order| json!(order))),
        ("config", args.config.as_deref().map(config).transpose()?),
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

fn config(given: &str) -> Result<Value, Failure> {
    let text = match given.strip_prefix('@') {
        Some(file) => read_file(file.as_ref())?,
        None => given.as_bytes().to_vec(),
    };
    serde_json::from_slice(&text).map_err(|error| {
        Failure::Usage(format!("--config: {given}: it must be JSON, or @ and a file of JSON ({error})"))
    })
}

async fn list(common: &Common) -> Result<(), Failure> {
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
            words(&plugin["roles"]),
            output::text(&plugin["size_bytes"]),
            output::text(&plugin["memory_bytes"]),
            output::text(&plugin["start_us"]),
            digest(plugin),
        ]
    });
    output::table(&["PLUGIN", "ROLES", "BYTES", "MEMORY", "START µs", "DIGEST"], &plugin_rows)?;
    output::line("")?;
    let hook_rows = rows(&hooks["hooks"], &|hook| {
        let fields = ["name", "plugin", "prefix", "mode", "order"].map(|field| output::text(&hook[field]));
        fields.into_iter().chain([words(&hook["operations"]), digest(hook)]).collect()
    });
    output::table(&["HOOK", "PLUGIN", "PREFIX", "MODE", "ORDER", "OPERATIONS", "DIGEST"], &hook_rows)?;
    output::line("")?;
    let node_rows = rows(&hooks["nodes"], &|node| {
        let is_ready = if node["ready"] == true { "yes" } else { "not yet" };
        vec![output::text(&node["url"]), is_ready.to_owned()]
    });
    output::table(&["NODE", "IN FORCE"], &node_rows)
}

async fn history(common: &Common) -> Result<(), Failure> {
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
            let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(change["at_ms"].as_u64().unwrap_or(0));
            let at = humantime::format_rfc3339_millis(at).to_string();
            let (number, by) = (output::text(&change["number"]), output::text(&change["by"]));
            vec![number, at, by, what, hook, output::text(&binding["plugin"]), digest(binding)]
        })
        .collect();
    output::table(&["CHANGE", "WHEN", "WHO", "WHAT", "HOOK", "PLUGIN", "DIGEST"], &rows)
}

fn describe(plugin: &Value) -> String {
    format!("{}, {} bytes, digest {}", words(&plugin["roles"]), output::text(&plugin["size_bytes"]), digest(plugin))
}

fn words(list: &Value) -> String {
    let words: Vec<String> = list.as_array().into_iter().flatten().map(output::text).collect();
    words.join("+")
}

fn digest(of: &Value) -> String {
    output::text(&of["digest"]).chars().take(DIGEST_CHARS).collect()
}
