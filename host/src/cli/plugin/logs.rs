//! `brink plugin logs`: the log lines of plugins from all nodes of a cluster.

use std::pin::pin;
use std::time::Duration;

use futures::future::{ready, try_join_all};
use futures::{Stream, StreamExt, TryStreamExt};
use serde_json::Value;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::io::StreamReader;

use super::super::{Client, Common, Failure, Format, Request, io, query, root_cause};
use crate::text;

/// Longest line from a node, in bytes: a plugin's line with every byte escaped, and the other fields.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Pause before a node that cannot be reached is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

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

pub(super) async fn run(args: &Args) -> Result<(), Failure> {
    let client = Client::new(&args.common)?;
    let follows = args.follow.then(|| "true".to_owned());
    let parameters = [("hook", args.hook.clone()), ("plugin", args.plugin.clone()), ("follow", follows)];
    let path = format!("/registry/lines/?{}", query(&parameters));
    let nodes = client.members().await?;
    let print = |(node, mut line): (String, Value)| match args.common.output {
        Format::Json => {
            line["node"] = node.into();
            io::json(&line.to_string())
        }
        Format::Table => io::line(&describe(&node, &line)),
    };
    if args.follow {
        let followed = nodes.iter().map(|node| follow(&client, node, &path, &print));
        return try_join_all(followed).await.map(drop);
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
        let printed = async {
            let mut lines = pin!(lines(client, node, path).await?);
            while let Some(line) = lines.try_next().await? {
                // A new connection starts with the lines that the node has kept; these were printed before.
                if let Some(at_ms) = line["at_ms"].as_u64().filter(|at_ms| *at_ms >= newest_ms) {
                    newest_ms = at_ms;
                    print((node.to_owned(), line))?;
                }
            }
            Ok(())
        };
        let ended = match printed.await {
            Ok(()) => "the node has stopped".to_owned(),
            Err(failure @ (Failure::Refused(_) | Failure::Output(_))) => return Err(failure),
            Err(failure) => failure.to_string(),
        };
        // The lines of that millisecond were printed.
        newest_ms += 1;
        io::complain(&format!("no lines from {}: {ended}", text::safe(node)));
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Streams the lines of a node as they arrive.
async fn lines(client: &Client, node: &str, path: &str) -> Result<impl Stream<Item = Result<Value, Failure>>, Failure> {
    // The body may have no end.
    let body = client.begin(node, &Request::get(path), Duration::MAX).await?.bytes_stream();
    let body = StreamReader::new(body.map_err(std::io::Error::other));
    let lines = FramedRead::new(body, LinesCodec::new_with_max_length(LINE_BYTES_MAX));
    let url = node.to_owned();
    Ok(lines.try_filter(|line| ready(!line.is_empty())).map(move |line| {
        let value = match line {
            Ok(line) => serde_json::from_str(&line).map_err(|error| error.to_string()),
            Err(LinesCodecError::Io(error)) => Err(root_cause(&error)),
            Err(LinesCodecError::MaxLineLengthExceeded) => Err(format!("a line has more than {LINE_BYTES_MAX} bytes")),
        };
        value.map_err(|reason| Failure::BadAnswer { url: url.clone(), reason })
    }))
}

/// A line for people.
fn describe(node: &str, line: &Value) -> String {
    let [hook, plugin, level, message] = io::texts(line, ["hook", "plugin", "level", "message"]);
    let trace = line["trace_id"].as_str().map_or_else(String::new, |id| format!(" trace {}", text::safe(id)));
    let (at, digest) = (io::time(&line["at_ms"]), io::digest(line));
    let node = text::safe(node);
    format!("{at} {level:<5} {node} {hook}: {plugin}@{digest}{trace}: {message}")
}
