//! A node's ports, and questions to it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Maximum time for a node to answer.
pub(super) const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Maximum bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 1024 * 1024;

/// The ports of a node, all of 127.0.0.1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) client: u16,
    /// For other nodes, if a server has a port of its own for them.
    pub(super) peer: u16,
    /// For questions about the node, likewise.
    pub(super) monitor: u16,
}

/// Ports for some nodes that are free now. All are bound at once, so that they differ.
pub(super) fn free_ports(nodes: usize) -> anyhow::Result<Vec<Ports>> {
    let bind = || TcpListener::bind("127.0.0.1:0");
    let bound = (0..nodes).map(|_| Ok([bind()?, bind()?, bind()?])).collect::<std::io::Result<Vec<_>>>()?;
    let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
    let ports = bound
        .iter()
        .map(|[client, peer, monitor]| Ok(Ports { client: port(client)?, peer: port(peer)?, monitor: port(monitor)? }));
    ports.collect()
}

/// Sends an HTTP request to a node and returns the answer if it is JSON.
pub(super) fn ask(port: u16, method: &str, path: &str, body: &str) -> Option<Value> {
    // HTTP/1.0 has no chunks and no persistent connections: the answer ends with the connection.
    let head = format!("{method} {path} HTTP/1.0\r\nhost: 127.0.0.1\r\ncontent-length: {}\r\n\r\n", body.len());
    let answer = ask_text(port, &format!("{head}{body}"))?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// Sends a text to a node and returns everything that it sends until it closes the connection.
pub(super) fn ask_text(port: u16, text: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(ANSWER_DEADLINE)).ok()?;
    stream.write_all(text.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The view of all nodes, if all have the same.
pub(super) fn same<T: PartialEq>(mut views: impl Iterator<Item = Option<T>>) -> Option<T> {
    let first = views.next()??;
    views.all(|view| view.as_ref() == Some(&first)).then_some(first)
}
