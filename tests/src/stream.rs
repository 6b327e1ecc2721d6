//! A client of `POST /kv/stream/`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// Time for the next line of an answer.
const LIMIT: Duration = Duration::from_secs(20);

/// A stream that is open. It sends and receives at its own pace, which most HTTP clients do not.
pub struct Stream {
    /// The connection.
    pub tcp: BufReader<TcpStream>,
    /// What is left of the chunk that is being read.
    rest: Vec<u8>,
}

impl Stream {
    /// Opens a stream to the node at a port.
    pub fn open(port: u16) -> Self {
        let mut tcp = TcpStream::connect(("127.0.0.1", port)).unwrap();
        tcp.set_read_timeout(Some(LIMIT)).unwrap();
        tcp.write_all(
            b"POST /kv-store/v1/kv/stream/ HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n\
              transfer-encoding: chunked\r\n\r\n",
        )
        .unwrap();
        let mut tcp = BufReader::new(tcp);
        let head: Vec<String> = (&mut tcp).lines().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
        assert!(
            head[0].contains(" 200 ")
                && head.iter().any(|line| line.eq_ignore_ascii_case("content-type: application/x-ndjson")),
            "{head:?}"
        );
        Self { tcp, rest: Vec::new() }
    }

    /// Sends a part of the lines.
    pub fn send(&mut self, text: &str) {
        let chunk = format!("{:x}\r\n{text}\r\n", text.len());
        self.tcp.get_mut().write_all(chunk.as_bytes()).unwrap();
    }

    /// Ends the lines.
    pub fn end(&mut self) {
        self.tcp.get_mut().write_all(b"0\r\n\r\n").unwrap();
    }

    /// The next line of the answer; none at its end.
    pub fn line(&mut self) -> Option<Value> {
        while !self.rest.contains(&b'\n') {
            let mut size = String::new();
            self.tcp.read_line(&mut size).unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            self.tcp.read_exact(&mut chunk).unwrap();
            if size == 0 {
                return None;
            }
            self.rest.extend_from_slice(&chunk[..size]);
        }
        let end = self.rest.iter().position(|byte| *byte == b'\n').unwrap();
        let line = self.rest.drain(..=end).collect::<Vec<_>>();
        Some(serde_json::from_slice(&line).unwrap())
    }
}
