//! Redis, in version 2 of its protocol: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.
//!
//! A write is a `SET`. If replicas must have it, a `WAIT` is sent with it, whose answer tells how many do:
//! <https://redis.io/docs/latest/commands/wait/>. A replica counts when it has received the write, even if it has not synced it.

use super::call::{Call, Error};
use super::wire::{Wire, take_counted, take_line};

/// The time that `WAIT` gives the replicas, in milliseconds.
const WAIT_MS: &str = "1000";

/// A connection to a node.
pub(super) struct Connection(Wire);

impl Connection {
    pub(super) async fn open(url: &str) -> Result<Self, Error> {
        Wire::open(url).await.map(Self)
    }

    pub(super) async fn exchange(&mut self, call: &Call<'_>) -> Result<(), Error> {
        self.0.send(&request(call)).await?;
        match call {
            Call::Read { .. } => check_read(self.0.receive(parse).await?),
            Call::Write { replicas, .. } => {
                check_write(self.0.receive(parse).await?)?;
                match replicas {
                    Some(wanted) => check_wait(self.0.receive(parse).await?, *wanted),
                    None => Ok(()),
                }
            }
        }
    }
}

/// A reply to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reply {
    Status,
    Error(Vec<u8>),
    Integer(i64),
    Bulk,
    Nil,
}

/// The commands of a call, which are sent at once.
fn request(call: &Call<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    match call {
        Call::Read { key, .. } => command(&mut bytes, &["GET", key]),
        Call::Write { key, value, replicas } => {
            command(&mut bytes, &["SET", key, value]);
            if let Some(replicas) = replicas {
                command(&mut bytes, &["WAIT", &replicas.to_string(), WAIT_MS]);
            }
        }
    }
    bytes
}

/// Adds a command: an array of strings.
fn command(bytes: &mut Vec<u8>, words: &[&str]) {
    bytes.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
}

/// Takes a reply. Arrays are malformed: no command of a load is answered by one.
fn parse(rest: &mut &[u8]) -> Result<Option<Reply>, Error> {
    let Some(line) = take_line(rest)? else { return Ok(None) };
    let (kind, text) = line.split_first().ok_or(Error::Malformed)?;
    let number = || str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok()).ok_or(Error::Malformed);
    Ok(Some(match kind {
        b'+' => Reply::Status,
        b'-' => Reply::Error(text.to_vec()),
        b':' => Reply::Integer(number()?),
        b'$' => match number()? {
            -1 => Reply::Nil,
            count => {
                let count = usize::try_from(count).map_err(|_| Error::Malformed)?;
                if take_counted(rest, count)?.is_none() {
                    return Ok(None);
                }
                Reply::Bulk
            }
        },
        _ => return Err(Error::Malformed),
    }))
}

fn check_read(reply: Reply) -> Result<(), Error> {
    match reply {
        Reply::Bulk => Ok(()),
        Reply::Nil => Err(Error::NotFound),
        other => Err(unexpected(other)),
    }
}

fn check_write(reply: Reply) -> Result<(), Error> {
    if reply == Reply::Status { Ok(()) } else { Err(unexpected(reply)) }
}

fn check_wait(reply: Reply, wanted: u32) -> Result<(), Error> {
    match reply {
        Reply::Integer(replicas) if replicas >= i64::from(wanted) => Ok(()),
        Reply::Integer(_) => Err(Error::NotReplicated),
        other => Err(unexpected(other)),
    }
}

fn unexpected(reply: Reply) -> Error {
    match reply {
        Reply::Error(message) => Error::refused(&message),
        _ => Error::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The replies in some bytes, which they must fill.
    fn replies(mut bytes: &[u8]) -> Vec<Reply> {
        let mut replies = Vec::new();
        while !bytes.is_empty() {
            replies.push(parse(&mut bytes).unwrap().unwrap());
        }
        replies
    }

    #[test]
    fn a_replicated_write_is_a_set_and_a_wait() {
        let set = b"*3\r\n$3\r\nSET\r\n$3\r\na/1\r\n$2\r\nxy\r\n";
        assert_eq!(request(&Call::Write { key: "a/1", value: "xy", replicas: None }), set);
        let wait = b"*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$4\r\n1000\r\n";
        assert_eq!(request(&Call::Write { key: "a/1", value: "xy", replicas: Some(1) }), [&set[..], wait].concat());
        assert_eq!(request(&Call::Read { key: "é", consistency: None }), "*2\r\n$3\r\nGET\r\n$2\r\né\r\n".as_bytes());
    }

    #[test]
    fn replies_are_parsed_once_they_are_whole() {
        let bytes = b"+OK\r\n-ERR no\r\n:12\r\n$5\r\na\r\nbc\r\n$0\r\n\r\n$-1\r\n";
        let error = Reply::Error(b"ERR no".to_vec());
        assert_eq!(replies(bytes), [Reply::Status, error, Reply::Integer(12), Reply::Bulk, Reply::Bulk, Reply::Nil]);
        for part in [&b""[..], b"+O", b"$5\r\na\r\nbc\r", b"$5\r\n"] {
            assert_eq!(parse(&mut &*part).unwrap(), None, "{part:?}");
        }
        for wrong in [&b"*0\r\n"[..], b"\r\n", b":x\r\n", b"$-2\r\n", b"$1\r\nabc", b"+OK\n"] {
            assert!(matches!(parse(&mut &*wrong), Err(Error::Malformed)), "{wrong:?}");
        }
    }

    #[test]
    fn errors_missing_keys_and_too_few_replicas_are_no_success() {
        let error = || Reply::Error(b"READONLY it is a replica".to_vec());
        for result in [check_write(error()), check_wait(error(), 1), check_read(error())] {
            assert_eq!(result.unwrap_err().to_string(), "READONLY it is a replica");
        }
        assert!(matches!(check_read(Reply::Nil), Err(Error::NotFound)));
        assert!(matches!(check_wait(Reply::Integer(1), 2), Err(Error::NotReplicated)));
        assert!(matches!(check_write(Reply::Nil), Err(Error::Malformed)));
        check_write(Reply::Status).unwrap();
        check_wait(Reply::Integer(2), 1).unwrap();
        check_read(Reply::Bulk).unwrap();
    }
}
