//! A kept-alive connection to a node, with as little CPU per request as possible.
//!
//! It understands only the HTTP/1.1 that nodes answer with: one request in flight, and bodies with a length or in chunks.
//! Buffers are reused, and a request costs one write and one read.

use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::super::client::TIMEOUT;
use super::super::failure::{Failure, Refusal};
use super::super::request::Request;
use crate::net;

/// Headers an answer may have.
const HEADERS_MAX: usize = 64;

/// The longest answer, in bytes.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A connection that is made when it is first needed, and again after it broke.
pub(super) struct Connection {
    /// Host and port.
    authority: String,
    base_path: String,
    stream: Option<TcpStream>,
    output: Vec<u8>,
    input: Vec<u8>,
}

impl Connection {
    /// A connection to a node by its base URL.
    pub(super) fn new(base_url: &str) -> Self {
        let (authority, base_path) = net::authority_and_path(base_url);
        Self {
            authority: authority.to_owned(),
            base_path: base_path.to_owned(),
            stream: None,
            output: Vec::new(),
            input: Vec::new(),
        }
    }

    /// Sends a request and reads the whole answer, which must be one of success.
    pub(super) async fn send(&mut self, request: &Request) -> Result<(), Failure> {
        match tokio::time::timeout(TIMEOUT, self.exchange(request)).await {
            Ok(Ok(answer)) => {
                if answer.is_last {
                    self.stream = None;
                }
                if answer.status.is_success() {
                    return Ok(());
                }
                Err(Failure::Refused(Refusal::parse(answer.status, &answer.body)))
            }
            Ok(Err(reason)) => Err(self.broken(reason)),
            Err(_) => Err(self.broken("it did not answer in time".to_owned())),
        }
    }

    fn broken(&mut self, reason: String) -> Failure {
        self.stream = None;
        Failure::BadAnswer { url: self.authority.clone(), reason }
    }

    async fn exchange(&mut self, request: &Request) -> Result<Answer, String> {
        let say = |error: std::io::Error| error.to_string();
        self.output.clear();
        request.write_http1(&self.base_path, &self.authority, &mut self.output);
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = net::connect(&self.authority, None).await.map_err(say)?;
                self.stream.insert(stream)
            }
        };
        stream.write_all(&self.output).await.map_err(say)?;
        self.input.clear();
        loop {
            if stream.read_buf(&mut self.input).await.map_err(say)? == 0 {
                return Err("it closed the connection".to_owned());
            }
            if let Some(answer) = Answer::parse(&self.input)? {
                return Ok(answer);
            }
            if self.input.len() > ANSWER_BYTES_MAX {
                return Err(format!("its answer is longer than {ANSWER_BYTES_MAX} bytes"));
            }
        }
    }
}

/// A whole answer.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    /// What it says, unless it is a success: nobody reads that.
    body: Vec<u8>,
    /// The node closes the connection after it.
    is_last: bool,
}

impl Answer {
    /// The answer in these bytes; none if it is not whole yet.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, String> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut head = httparse::Response::new(&mut headers);
        let httparse::Status::Complete(head_bytes) = head.parse(bytes).map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let status = StatusCode::from_u16(head.code.unwrap_or(0)).map_err(|error| error.to_string())?;
        let (mut length, mut is_chunked, mut is_last) = (None, false, false);
        for header in head.headers.iter() {
            let value = std::str::from_utf8(header.value).unwrap_or_default();
            if header.name.eq_ignore_ascii_case("content-length") {
                length = Some(value.parse::<usize>().map_err(|error| error.to_string())?);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                is_chunked = value.eq_ignore_ascii_case("chunked");
            } else if header.name.eq_ignore_ascii_case("connection") {
                is_last = value.eq_ignore_ascii_case("close");
            }
        }
        let rest = bytes.get(head_bytes..).unwrap_or_default();
        let has_no_body = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let body = match length {
            _ if has_no_body => Vec::new(),
            None if is_chunked => match unchunked(rest)? {
                Some(body) => body,
                None => return Ok(None),
            },
            Some(length) => match rest.get(..length) {
                Some(_) if status.is_success() => Vec::new(),
                Some(body) => body.to_vec(),
                None => return Ok(None),
            },
            None => return Err("its answer does not tell its length".to_owned()),
        };
        Ok(Some(Self { status, body, is_last }))
    }
}

/// What a body in chunks says; none if it is not whole yet.
fn unchunked(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    loop {
        let size = httparse::parse_chunk_size(bytes).map_err(|_| "a chunk of its answer has no size".to_owned())?;
        let httparse::Status::Complete((head_bytes, size)) = size else { return Ok(None) };
        let size = usize::try_from(size).map_err(|error| error.to_string())?;
        let Some((chunk, rest)) = bytes.get(head_bytes..).and_then(|rest| rest.split_at_checked(size)) else {
            return Ok(None);
        };
        // No node sends trailers, so that an empty line follows each chunk, the last and empty one too.
        let Some(rest) = rest.split_at_checked(2).map(|(_, rest)| rest) else { return Ok(None) };
        if chunk.is_empty() {
            return Ok(Some(body));
        }
        body.extend_from_slice(chunk);
        bytes = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every beginning of an answer is not whole, and the whole is.
    fn whole(bytes: &[u8]) -> Answer {
        for end in 0..bytes.len() {
            let found = Answer::parse(&bytes[..end]).unwrap();
            assert!(found.is_none(), "{end} bytes of {}", String::from_utf8_lossy(bytes));
        }
        Answer::parse(bytes).unwrap().unwrap()
    }

    #[test]
    fn an_answer_is_whole_with_the_last_of_its_bytes() {
        let answer = whole(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnone");
        assert_eq!((answer.status.as_u16(), answer.body.as_slice(), answer.is_last), (404, &b"none"[..], false));
        let answer = whole(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
        assert_eq!((answer.status.as_u16(), answer.is_last), (204, true));
        let answer =
            whole(b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\nA\r\n, two, thr\r\n0\r\n\r\n");
        assert_eq!(answer.body, b"one, two, thr");
    }

    #[test]
    fn an_answer_without_a_length_is_refused() {
        assert!(Answer::parse(b"HTTP/1.1 200 OK\r\n\r\nx").unwrap_err().contains("length"));
        assert!(Answer::parse(b"nonsense\r\n\r\n").is_err());
    }
}
