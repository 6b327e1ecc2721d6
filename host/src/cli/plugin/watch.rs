//! `brink plugin logs` and `stats`: what plugins do on the nodes of a cluster, put together.

use std::time::{Duration, UNIX_EPOCH};

use futures::{StreamExt, TryStreamExt, stream};
use reqwest::Method;
use serde_json::Value;

use super::super::Common;
use super::super::client::{Client, Failure, Request};
use super::super::output::{self, Format};

/// Longest line that a node sends, in bytes: a plugin's line with every byte escaped, and what stands beside it.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// How long it takes until a node that could not be reached, or was lost, is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Which lines.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct LogsArgs {
    /// Go on with what is written from now on
    #[arg(short, long)]
    follow: bool,
    /// Lines of this hook only
    #[arg(long)]
    hook: Option<String>,
    /// Lines of this plugin only
    #[arg(long)]
    plugin: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Prints what plugins wrote, on every node of the cluster.
pub(super) async fn logs(args: &LogsArgs) -> Result<(), Failure> {
    let client = Client::new(&args.common)?;
    let mut query = form_urlencoded::Serializer::new(String::new());
    let wanted = [("hook", &args.hook), ("plugin", &args.plugin)];
    for (name, value) in wanted.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
        query.append_pair(name, value);
    }
    if args.follow {
        query.append_pair("follow", "true");
    }
    let path = format!("/registry/lines/?{}", query.finish());
    let nodes = nodes(&client).await?;
    let print = |(node, line): (String, Value)| match args.common.output {
        Format::Json => {
            let mut line = line;
            line["node"] = node.into();
            output::line(&line.to_string())
        }
        Format::Table => output::line(&describe(&node, &line)),
    };
    if args.follow {
        let followed = nodes.iter().map(|node| follow(&client, node, &path, &print));
        return futures::future::try_join_all(followed).await.map(drop);
    }
    let mut all = Vec::new();
    for node in &nodes {
        let lines: Vec<Value> = lines(&client, node, &path).await?.try_collect().await?;
        all.extend(lines.into_iter().map(|line| (node.clone(), line)));
    }
    all.sort_by_key(|(_, line)| line["at_ms"].as_u64());
    all.into_iter().try_for_each(print)
}

/// The URLs of all members; they are asked one by one, since each knows only its own.
async fn nodes(client: &Client) -> Result<Vec<String>, Failure> {
    let answer = client.send(&Request::new(Method::GET, "/cluster/members/")).await?;
    let members = answer.json()?;
    let urls = members["members"].as_array().into_iter().flatten();
    let urls: Vec<String> = urls.filter_map(|member| member["url"].as_str().map(str::to_owned)).collect();
    Ok(if urls.is_empty() { vec![answer.url] } else { urls })
}

/// Prints the lines of a node until the command is ended. A node that is lost is waited for.
async fn follow(
    client: &Client,
    node: &str,
    path: &str,
    print: &impl Fn((String, Value)) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut newest_ms = 0;
    loop {
        let ended = match lines(client, node, path).await {
            Ok(lines) => {
                let mut lines = std::pin::pin!(lines);
                loop {
                    match lines.try_next().await {
                        // After a break the node tells again what it has kept.
                        Ok(Some(line)) if line["at_ms"].as_u64() < Some(newest_ms) => {}
                        Ok(Some(line)) => {
                            newest_ms = line["at_ms"].as_u64().unwrap_or(newest_ms);
                            print((node.to_owned(), line))?;
                        }
                        Ok(None) => break "it has stopped".to_owned(),
                        Err(failure) => break failure.to_string(),
                    }
                }
            }
            Err(failure @ Failure::Refused(_)) => return Err(failure),
            Err(failure) => failure.to_string(),
        };
        newest_ms += 1;
        eprintln!("brink: the lines of {node} are missing: {ended}");
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// The lines that a node sends, as they come.
async fn lines(
    client: &Client,
    node: &str,
    path: &str,
) -> Result<impl futures::Stream<Item = Result<Value, Failure>>, Failure> {
    let body = client.open(node, path).await?;
    let node = node.to_owned();
    let pieces = body.map(Some).chain(stream::iter([None]));
    let mut text = Vec::new();
    let lines = pieces.map(move |piece| {
        let strange = |reason: String| Failure::Strange { url: node.clone(), reason };
        match piece {
            Some(piece) => text.extend_from_slice(&piece?),
            None => text.push(b'\n'),
        }
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if text.len() - whole > LINE_BYTES_MAX {
            return Err(strange(format!("a line has more than {LINE_BYTES_MAX} bytes")));
        }
        let rest = text.split_off(whole);
        let whole = std::mem::replace(&mut text, rest);
        let lines = whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines: Result<Vec<Value>, _> = lines.map(serde_json::from_slice).collect();
        lines.map_err(|error| strange(error.to_string()))
    });
    Ok(lines.map_ok(|lines| stream::iter(lines.into_iter().map(Ok))).try_flatten())
}

fn describe(node: &str, line: &Value) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(line["at_ms"].as_u64().unwrap_or(0));
    let [hook, plugin, level, message] = ["hook", "plugin", "level", "message"].map(|field| output::text(&line[field]));
    let trace = line["trace_id"].as_str().map_or_else(String::new, |id| format!(" trace {id}"));
    let (at, digest) = (humantime::format_rfc3339_millis(at), super::digest(line));
    format!("{at} {level:<5} {node} {hook}: {plugin}@{digest}{trace}: {message}")
}

/// Prints what the calls of plugins came to, on every node of the cluster.
pub(super) async fn stats(common: &Common) -> Result<(), Failure> {
    let client = Client::new(common)?;
    let mut rows = Vec::new();
    for node in nodes(&client).await? {
        let stats = match client.send_to(&node, &Request::new(Method::GET, "/registry/stats/")).await {
            Ok(answer) => answer.json()?,
            Err(failure @ Failure::Unreachable { .. }) => {
                eprintln!("brink: {failure}");
                continue;
            }
            Err(failure) => return Err(failure),
        };
        if common.output == Format::Json {
            output::line(&stats.to_string())?;
            continue;
        }
        let hooks = stats["hooks"].as_array();
        rows.extend(stats["calls"].as_array().into_iter().flatten().map(|calls| {
            let start = hooks.into_iter().flatten().find(|hook| hook["hook"] == calls["hook"]);
            let start = match start.map(|start| &start["starts_configured"]) {
                Some(Value::Bool(true)) => "configured",
                Some(_) => "to be configured",
                None => "removed",
            };
            let results = calls["results"].as_object().into_iter().flatten();
            let results: Vec<String> = results.map(|(word, count)| format!("{word} {count}")).collect();
            let numbers =
                ["calls", "p50_us", "p99_us", "max_us", "memory_bytes"].map(|field| output::text(&calls[field]));
            let [hook, plugin] = ["hook", "plugin"].map(|field| output::text(&calls[field]));
            [node.clone(), hook, plugin]
                .into_iter()
                .chain(numbers)
                .chain([start.to_owned(), results.join(", ")])
                .collect()
        }));
    }
    if common.output == Format::Json {
        return Ok(());
    }
    let titles = ["NODE", "HOOK", "PLUGIN", "CALLS", "P50 µs", "P99 µs", "MAX µs", "MEMORY", "STARTS", "RESULTS"];
    output::table(&titles, &rows)
}
