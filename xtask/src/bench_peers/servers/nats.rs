//! NATS with JetStream: its arguments, the bucket, and the leader of its stream.
//!
//! JetStream acknowledges a write once a majority of the replicas has it, without a sync of each: it syncs every two minutes.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::ports::Ports;
use crate::http::{QUESTION_DEADLINE, ask};
use crate::node::same;

/// The stream of the bucket that the loader uses, and the subjects of its keys.
const STREAM: (&str, &str) = ("KV_bench", "$KV.bench.>");

pub(super) fn arguments(command: &mut Command, nodes: &[Ports], number: usize, ports: Ports, dir: &Path) {
    command.args(["--addr", "127.0.0.1", "--port", &ports.client.to_string()]);
    command.args(["--http_port", &ports.monitor.to_string(), "--server_name", &name(number)]);
    command.arg("--jetstream").arg("--store_dir").arg(dir.join("data"));
    if nodes.len() > 1 {
        let url = |ports: &Ports| format!("nats://127.0.0.1:{}", ports.peer);
        let routes: Vec<String> = nodes.iter().map(url).collect();
        command.args(["--cluster_name", "bench", "--cluster", &url(&ports), "--routes", &routes.join(",")]);
    }
}

fn name(number: usize) -> String {
    format!("node{number}")
}

/// Asks a node for the bucket. That fails until the nodes have a leader, and changes nothing if there is a bucket.
pub(super) fn request_bucket(nodes: &[Ports]) -> Option<()> {
    let (stream, subjects) = STREAM;
    let bucket = json!({
        "name": stream, "subjects": [subjects], "retention": "limits", "max_msgs_per_subject": 1, "storage": "file",
        "discard": "new", "num_replicas": nodes.len(), "allow_rollup_hdrs": true, "deny_delete": true, "allow_direct": true,
    });
    let bucket = bucket.to_string();
    let publish = format!("PUB $JS.API.STREAM.CREATE.{stream} _INBOX.bench {}\r\n{bucket}\r\n", bucket.len());
    let mut connection = TcpStream::connect(("127.0.0.1", nodes.first()?.client)).ok()?;
    connection.set_read_timeout(Some(QUESTION_DEADLINE)).ok()?;
    connection.write_all(format!("CONNECT {{\"verbose\":false}}\r\n{publish}PING\r\n").as_bytes()).ok()?;
    // The pong says that the node has the request. Whether there is a bucket is seen from the leader.
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(b"PONG\r\n") {
        let count = connection.read(&mut part).ok().filter(|count| *count > 0)?;
        answer.extend_from_slice(part.get(..count)?);
    }
    Some(())
}

/// The number of the leader of the bucket's stream, if all nodes agree on it.
pub(super) fn leader(nodes: &[Ports]) -> Option<usize> {
    let view = |ports: &Ports| {
        let view = ask(ports.monitor, "GET", "/jsz?accounts=true&streams=true", "")?;
        let stream = view.pointer("/account_details/0/stream_detail/0/cluster/leader").and_then(Value::as_str);
        stream.map(str::to_owned)
    };
    let leader = same(nodes.iter().map(view))?;
    (0..nodes.len()).find(|number| name(*number) == leader)
}
