//! HTTP to nodes on this machine: connections that send one request after the other, and single questions.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::Value;

/// Maximum time for an answer on a connection; long enough for a node under callgrind, and for a compiler at idle priority.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1_200);

/// Maximum time for the answer to a question.
pub(crate) const QUESTION_DEADLINE: Duration = Duration::from_secs(2);

/// Maximum bytes of an answer.
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A connection to a node of brink.
pub(crate) struct Client(BufReader<TcpStream>);

impl Client {
    pub(crate) fn connect(port: u16) -> std::io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(ANSWER_DEADLINE))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Whether the node takes part in its cluster.
    pub(crate) fn is_ready(&mut self) -> bool {
        self.begin("GET", "/readyz", "").is_ok() && self.finish().is_ok()
    }

    /// Sends a request with a JSON body.
    pub(crate) fn begin(&mut self, method: &str, path: &str, body: &str) -> anyhow::Result<()> {
        self.begin_bytes(method, path, "application/json", body.as_bytes())
    }

    /// Sends a request.
    fn begin_bytes(&mut self, method: &str, path: &str, content_type: &str, body: &[u8]) -> anyhow::Result<()> {
        let (begin, length) = (format!("{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n"), body.len());
        let mut request =
            format!("{begin}content-type: {content_type}\r\ncontent-length: {length}\r\n\r\n").into_bytes();
        request.extend_from_slice(body);
        Ok(self.0.get_mut().write_all(&request)?)
    }

    /// Puts something at a path, which must be a success.
    pub(crate) fn put(&mut self, path: &str, content_type: &str, body: &[u8]) -> anyhow::Result<()> {
        self.begin_bytes("PUT", path, content_type, body)?;
        self.finish().with_context(|| path.to_owned())
    }

    /// Reads the answer, which must be a success with a `content-length`.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        let mut status = String::new();
        self.0.read_line(&mut status)?;
        ensure!(!status.is_empty(), "the node closed the connection");
        let (mut line, mut length) = (String::new(), 0);
        while self.0.read_line(&mut line)? > 2 {
            if let Some(found) = line.strip_prefix("content-length: ") {
                length = found.trim().parse()?;
            }
            line.clear();
        }
        ensure!(length <= ANSWER_BYTES_MAX, "an answer of {length} bytes");
        let mut body = Vec::new();
        self.0.by_ref().take(length).read_to_end(&mut body)?;
        ensure!(status.starts_with("HTTP/1.1 2"), "{status}{}", String::from_utf8_lossy(&body));
        Ok(())
    }
}

/// Sends an HTTP request to a node and returns the answer if it is JSON.
pub(crate) fn ask(port: u16, method: &str, path: &str, body: &str) -> Option<Value> {
    // HTTP/1.0 has no chunks and no persistent connections: the answer ends with the connection.
    let head = format!("{method} {path} HTTP/1.0\r\nhost: 127.0.0.1\r\ncontent-length: {}\r\n\r\n", body.len());
    let answer = ask_text(port, &format!("{head}{body}"))?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// Sends a text to a node and returns everything that it sends until it closes the connection.
pub(crate) fn ask_text(port: u16, text: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(QUESTION_DEADLINE)).ok()?;
    stream.write_all(text.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).ok()?;
    Some(answer)
}
