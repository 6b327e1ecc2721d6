//! A connection of a protocol of lines and counted bytes, as Redis and NATS have.
//!
//! It reads into one buffer, from which a parser takes what it knows. There are no tasks: the client that sent a request reads
//! its answer.

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::call::{ANSWER_BYTES_MAX, Error};
use crate::net;

/// Room for each read.
const READ_BYTES: usize = 16 * 1024;

/// A TCP connection. `net`, which opens them, is the only room that names their type.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub(super) struct Wire {
    stream: Box<dyn Stream>,
    /// Bytes that were received and not yet parsed, up to [`ANSWER_BYTES_MAX`] and one read more.
    received: BytesMut,
}

impl Wire {
    pub(super) async fn open(url: &str) -> Result<Self, Error> {
        Ok(Self { stream: Box::new(net::connect(url, net::Vanished::Whenever).await?), received: BytesMut::new() })
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.stream.write_all(bytes).await?)
    }

    /// Receives until `parse` returns something. It takes what it used from the front of the bytes, and returns `None` if they
    /// are too few; it is called again with all of them then.
    pub(super) async fn receive<T>(
        &mut self,
        parse: impl Fn(&mut &[u8]) -> Result<Option<T>, Error>,
    ) -> Result<T, Error> {
        loop {
            let mut rest: &[u8] = &self.received;
            if let Some(found) = parse(&mut rest)? {
                let used = self.received.len() - rest.len();
                self.received.advance(used);
                return Ok(found);
            }
            if self.received.len() > ANSWER_BYTES_MAX {
                return Err(Error::TooLarge);
            }
            self.received.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.received).await? == 0 {
                return Err(Error::Closed);
            }
        }
    }
}

/// Takes a line, and returns it without its CRLF.
pub(super) fn take_line<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Error> {
    let Some(end) = memchr::memchr(b'\n', rest) else { return Ok(None) };
    let (line, after) = rest.split_at(end + 1);
    *rest = after;
    line.strip_suffix(b"\r\n").map(Some).ok_or(Error::Malformed)
}

/// Takes `count` bytes and the CRLF behind them, and returns the bytes.
pub(super) fn take_counted<'a>(rest: &mut &'a [u8], count: usize) -> Result<Option<&'a [u8]>, Error> {
    if count > ANSWER_BYTES_MAX {
        return Err(Error::TooLarge);
    }
    let Some((bytes, after)) = rest.split_at_checked(count + 2) else { return Ok(None) };
    *rest = after;
    bytes.strip_suffix(b"\r\n").map(Some).ok_or(Error::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_answer_may_come_in_parts_and_must_come_whole() {
        let (stream, mut node) = tokio::io::duplex(64);
        let mut wire = Wire { stream: Box::new(stream), received: BytesMut::new() };
        let number = |rest: &mut &[u8]| Ok(take_line(rest)?.map(<[u8]>::len));
        node.write_all(b"on").await.unwrap();
        let sent = async {
            tokio::task::yield_now().await;
            node.write_all(b"e\r\nthree\r\nrest").await.unwrap();
            drop(node);
        };
        let (length, ()) = tokio::join!(wire.receive(number), sent);
        assert_eq!((length.unwrap(), wire.receive(number).await.unwrap()), (3, 5));
        assert!(matches!(wire.receive(number).await, Err(Error::Closed)));
    }

    #[test]
    fn lines_and_counted_bytes_are_taken_once_they_are_whole() {
        let mut rest: &[u8] = b"one\r\n\r\ntwo\r\nth";
        assert_eq!(take_line(&mut rest).unwrap(), Some(&b"one"[..]));
        assert_eq!(take_counted(&mut rest, 5).unwrap(), Some(&b"\r\ntwo"[..]));
        let left = (take_line(&mut rest).unwrap(), take_counted(&mut rest, 1).unwrap(), rest);
        assert_eq!(left, (None, None, &b"th"[..]));
    }

    #[test]
    fn other_ends_and_a_large_count_are_errors() {
        assert!(matches!(take_line(&mut &b"one\ntwo\r\n"[..]), Err(Error::Malformed)));
        assert!(matches!(take_counted(&mut &b"three"[..], 1), Err(Error::Malformed)));
        assert!(matches!(take_counted(&mut &b""[..], ANSWER_BYTES_MAX + 1), Err(Error::TooLarge)));
    }
}
