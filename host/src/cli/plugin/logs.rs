//! `brink plugin logs`: the log lines of plugins from all nodes of a cluster.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::super::client::{Client, Common};
use super::super::failure::Failure;
use super::super::output::{self, Format};
use super::super::request::query;

/// Longest line from a node, in bytes: a plugin's line with every byte escaped, and the other fields.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Pause before a node that cannot be reached is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// The arguments.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Keep printing new lines
    #[arg(short, long)]
    follow: bool,
    /// Only lines of this hook
    #[arg(long)]
    hook: Option<String>,
    /// Only lines of this plugin
    #[arg(long)]
    plugin: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// Runs the command.
pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    let client = Client::new(&args.common)?;
    let follow_parameter = args.follow.then(|| "true".to_owned());
    let parameters = [("hook", args.hook.clone()), ("plugin", args.plugin.clone()), ("follow", follow_parameter)];
    let path = format!("/registry/lines/?{}", query(&parameters));
    let nodes = client.members().await?;
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

/// Prints the lines of a node until the command ends. While the node cannot be reached, it is tried again.
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
                        // A new connection starts with the lines that the node has kept; these were printed before.
                        Ok(Some(line)) if line["at_ms"].as_u64() < Some(newest_ms) => {}
                        Ok(Some(line)) => {
                            newest_ms = line["at_ms"].as_u64().unwrap_or(newest_ms);
                            print((node.to_owned(), line))?;
                        }
                        Ok(None) => break "the node has stopped".to_owned(),
                        Err(failure) => break failure.to_string(),
                    }
                }
            }
            Err(failure @ Failure::Refused(_)) => return Err(failure),
            Err(failure) => failure.to_string(),
        };
        // The lines of that millisecond were printed.
        newest_ms += 1;
        eprintln!("brink: no lines from {node}: {ended}");
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Streams the lines of a node as they arrive.
async fn lines(
    client: &Client,
    node: &str,
    path: &str,
) -> Result<impl futures::Stream<Item = Result<Value, Failure>>, Failure> {
    let body = client.stream(node, path).await?;
    let node = node.to_owned();
    // The end of the body ends its last line.
    let chunks = body.chain(stream::iter([Ok(Bytes::from_static(b"\n"))]));
    let mut buffer = Vec::new();
    let lines = chunks.map(move |chunk| {
        let bad_answer = |reason: String| Failure::BadAnswer { url: node.clone(), reason };
        buffer.extend_from_slice(&chunk?);
        let end = buffer.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        if buffer.len() - end > LINE_BYTES_MAX {
            return Err(bad_answer(format!("a line has more than {LINE_BYTES_MAX} bytes")));
        }
        let incomplete = buffer.split_off(end);
        let complete = std::mem::replace(&mut buffer, incomplete);
        let lines = complete.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines: Result<Vec<Value>, _> = lines.map(serde_json::from_slice).collect();
        lines.map_err(|error| bad_answer(error.to_string()))
    });
    Ok(lines.map_ok(|lines| stream::iter(lines.into_iter().map(Ok))).try_flatten())
}

/// A line for people.
fn describe(node: &str, line: &Value) -> String {
    let [hook, plugin, level, message] = ["hook", "plugin", "level", "message"].map(|field| output::text(&line[field]));
    let trace = line["trace_id"].as_str().map_or_else(String::new, |id| format!(" trace {id}"));
    let (at, digest) = (output::time(&line["at_ms"]), output::digest(line));
    format!("{at} {level:<5} {node} {hook}: {plugin}@{digest}{trace}: {message}")
}
