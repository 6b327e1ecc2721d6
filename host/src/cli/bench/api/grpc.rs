//! The key-value service of etcd, by gRPC over HTTP/2: <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>.
//!
//! hyper speaks HTTP/2. A call is a request with one message, a prefix of five bytes and a protobuf
//! (<https://protobuf.dev/programming-guides/encoding/>), and is done once the trailers of its answer say so. The messages are
//! those of <https://github.com/etcd-io/etcd/blob/main/api/etcdserverpb/rpc.proto>, with the two fields that a load sets.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper::http::uri::Scheme;
use hyper::{HeaderMap, Request, Uri, header};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::super::super::kv::Consistency;
use super::call::{ANSWER_BYTES_MAX, Call, Error};
use crate::net;

/// The first field of `PutRequest` and `RangeRequest`.
const KEY: u8 = 1;

/// A field of `PutRequest`.
const VALUE: u8 = 2;

/// A field of `RangeRequest`: whether the node may answer from its own state.
const SERIALIZABLE: u8 = 7;

/// A field of `RangeResponse`: the entries.
const ENTRIES: u8 = 2;

/// The kinds of protobuf fields.
const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const COUNTED: u8 = 2;
const FIXED_32: u8 = 5;

/// Bits of a field's tag that are its kind; its number is above them.
const KIND_BITS: u8 = 3;

/// Bits of a number in each byte of a varint.
const VARINT_BITS: u32 = 7;

/// Maximum bytes of a varint.
const VARINT_BYTES_MAX: usize = 10;

/// A connection to a node. hyper runs it in a task, which ends when the sender is dropped.
pub(super) struct Connection {
    put: Uri,
    range: Uri,
    sender: SendRequest<Full<Bytes>>,
}

impl Connection {
    pub(super) async fn open(url: &str) -> Result<Self, Error> {
        let (authority, _) = net::authority_and_path(url);
        let method = |name| {
            let path = format!("/etcdserverpb.KV/{name}");
            Uri::builder().scheme(Scheme::HTTP).authority(authority).path_and_query(path).build()
        };
        let stream = net::connect(url, net::Vanished::Whenever).await?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        // An error of the connection fails its request as well.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { put: method("Put")?, range: method("Range")?, sender })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    pub(super) async fn exchange(&mut self, call: &Call<'_>) -> Result<(), Error> {
        let uri = if matches!(call, Call::Write { .. }) { &self.put } else { &self.range };
        let request = Request::post(uri.clone())
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(Full::new(request(call).into()))?;
        self.sender.ready().await?;
        let (head, mut body) = self.sender.send_request(request).await?.into_parts();
        if !head.status.is_success() {
            return Err(Error::Refused(head.status.to_string()));
        }
        // An answer without a message has the trailers' fields in its head.
        let (mut trailers, mut answer) = (head.headers, Vec::new());
        while let Some(frame) = body.frame().await {
            match frame?.into_data() {
                Ok(data) if answer.len() + data.len() > ANSWER_BYTES_MAX => return Err(Error::TooLarge),
                Ok(data) => answer.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
            }
        }
        check(call, &trailers, &answer)
    }
}

/// The message of a call, with its prefix: not compressed, and its length.
fn request(call: &Call<'_>) -> Vec<u8> {
    let mut message = Vec::new();
    match call {
        Call::Write { key, value, .. } => {
            add_bytes(&mut message, KEY, key.as_bytes());
            add_bytes(&mut message, VALUE, value.as_bytes());
        }
        Call::Read { key, consistency } => {
            add_bytes(&mut message, KEY, key.as_bytes());
            if matches!(consistency, Some(Consistency::Local)) {
                message.extend([SERIALIZABLE << KIND_BITS | VARINT, 1]);
            }
        }
    }
    // A value has 4 MiB at most.
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0], &length.to_be_bytes()[..], &message].concat()
}

fn add_bytes(message: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    message.push(field << KIND_BITS | COUNTED);
    add_varint(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

fn add_varint(message: &mut Vec<u8>, mut number: u64) {
    while number >= 1 << VARINT_BITS {
        message.push(number as u8 | 1 << VARINT_BITS);
        number >>= VARINT_BITS;
    }
    message.push(number as u8);
}

fn check(call: &Call<'_>, trailers: &HeaderMap, answer: &[u8]) -> Result<(), Error> {
    let field = |name| trailers.get(name).map(header::HeaderValue::as_bytes);
    match field("grpc-status") {
        Some(b"0") => {}
        Some(status) => {
            let message = [b"gRPC status ", status, b": ", field("grpc-message").unwrap_or_default()].concat();
            return Err(Error::refused(&message));
        }
        None => return Err(Error::Malformed),
    }
    let Some((&[0, a, b, c, d], message)) = answer.split_first_chunk() else { return Err(Error::Malformed) };
    if u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return Err(Error::Malformed);
    }
    match call {
        Call::Write { .. } => Ok(()),
        Call::Read { .. } if has_field(message, ENTRIES)? => Ok(()),
        Call::Read { .. } => Err(Error::NotFound),
    }
}

/// Whether a message has a field.
fn has_field(mut message: &[u8], field: u8) -> Result<bool, Error> {
    while !message.is_empty() {
        let tag = take_varint(&mut message)?;
        if tag >> KIND_BITS == u64::from(field) {
            return Ok(true);
        }
        let bytes = match (tag & ((1 << KIND_BITS) - 1)) as u8 {
            VARINT => take_varint(&mut message).map(|_| 0)?,
            FIXED_64 => 8,
            FIXED_32 => 4,
            COUNTED => take_varint(&mut message)?,
            _ => return Err(Error::Malformed),
        };
        let bytes = usize::try_from(bytes).map_err(|_| Error::Malformed)?;
        message = message.get(bytes..).ok_or(Error::Malformed)?;
    }
    Ok(false)
}

fn take_varint(message: &mut &[u8]) -> Result<u64, Error> {
    let mut number = 0;
    for shift in (0..).step_by(VARINT_BITS as usize).take(VARINT_BYTES_MAX) {
        let (&byte, rest) = message.split_first().ok_or(Error::Malformed)?;
        *message = rest;
        number |= u64::from(byte & ((1 << VARINT_BITS) - 1)) << shift;
        if byte < 1 << VARINT_BITS {
            return Ok(number);
        }
    }
    Err(Error::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Call<'_> = Call::Write { key: "a/1", value: "xy", replicas: None };
    const READ: Call<'_> = Call::Read { key: "a/1", consistency: None };

    fn trailers(status: &'static str, message: &'static str) -> HeaderMap {
        let fields = [("grpc-status", status), ("grpc-message", message)];
        fields.into_iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn messages_have_the_fields_that_etcd_expects() {
        assert_eq!(request(&WRITE), b"\0\0\0\0\x09\x0a\x03a/1\x12\x02xy");
        assert_eq!(request(&READ), b"\0\0\0\0\x05\x0a\x03a/1");
        let local = Call::Read { key: "a/1", consistency: Some(Consistency::Local) };
        assert_eq!(request(&local), b"\0\0\0\0\x07\x0a\x03a/1\x38\x01");
        let value = "x".repeat(300);
        let long = request(&Call::Write { key: "a", value: &value, replicas: None });
        assert!(long.starts_with(b"\0\0\0\x01\x32\x0a\x01a\x12\xac\x02xxx"), "{long:?}");
    }

    #[test]
    fn a_write_succeeds_with_status_0_and_a_message() {
        check(&WRITE, &trailers("0", ""), b"\0\0\0\0\x02\x0a\0").unwrap();
        assert!(matches!(check(&WRITE, &trailers("0", ""), b"\0\0\0\0\x03\x0a\0"), Err(Error::Malformed)));
        assert!(matches!(check(&WRITE, &trailers("0", ""), b""), Err(Error::Malformed)));
        assert!(matches!(check(&WRITE, &HeaderMap::new(), b"\0\0\0\0\0"), Err(Error::Malformed)));
        let refused = check(&WRITE, &trailers("14", "no leader"), b"").unwrap_err();
        assert_eq!(refused.to_string(), "gRPC status 14: no leader");
    }

    #[test]
    fn a_read_succeeds_if_there_is_an_entry() {
        let header = b"\x0a\x05\x08\xac\x02\x10";
        let answer = |fields: &[u8]| [b"\0\0\0\0", &[fields.len() as u8][..], fields].concat();
        let found = answer(&[&header[..], b"\x01\x12\x02xy\x20\x01"].concat());
        check(&READ, &trailers("0", ""), &found).unwrap();
        let absent = answer(&[&header[..], b"\x01\x20\0"].concat());
        assert!(matches!(check(&READ, &trailers("0", ""), &absent), Err(Error::NotFound)));
        for wrong in [&b"\x0a\x09x"[..], b"\x0b", b"\x0a", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
            assert!(matches!(check(&READ, &trailers("0", ""), &answer(wrong)), Err(Error::Malformed)), "{wrong:?}");
        }
    }
}
