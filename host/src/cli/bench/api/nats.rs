//! A key-value bucket of NATS JetStream, by the protocol of NATS clients:
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol>.
//!
//! A request is a message to a subject, with the client's inbox as the place for the answer. A bucket is a stream of messages
//! whose subjects are the keys (<https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-8.md>):
//!
//! - A write is a message of the stream. JetStream acknowledges it once a majority of the stream's replicas has it.
//! - A local read is a direct get, which any replica answers, first of all that of the node itself
//!   (<https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-31.md>).
//! - Any other read is a get from the stream's leader, which does not ask the others whether it still leads.

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::super::super::kv::Consistency;
use super::call::{Call, Error};
use super::wire::{Wire, take_counted, take_line};

/// The stream of the bucket. It must exist.
const STREAM: &str = "KV_bench";

/// The subjects of the bucket's keys.
const SUBJECT: &str = "$KV.bench";

/// The first line of the headers of an answer. A status follows it if there is no message.
const HEADERS: &[u8] = b"NATS/1.0";

/// A connection to a node, with a subscription to its inbox.
pub(super) struct Connection {
    wire: Wire,
    inbox: String,
}

impl Connection {
    pub(super) async fn open(url: &str) -> Result<Self, Error> {
        let mut connection =
            Self { wire: Wire::open(url).await?, inbox: format!("_INBOX.{:032x}", fastrand::u128(..)) };
        let options = r#"{"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"name":"brink bench"}"#;
        let greeting = format!("CONNECT {options}\r\nSUB {} 1\r\nPING\r\n", connection.inbox);
        connection.wire.send(greeting.as_bytes()).await?;
        // The node answers what precedes the ping only if it refuses it.
        while connection.receive().await? != Message::Pong {}
        Ok(connection)
    }

    pub(super) async fn exchange(&mut self, call: &Call<'_>) -> Result<(), Error> {
        self.wire.send(request(&self.inbox, call).as_bytes()).await?;
        loop {
            if let Message::Answer { headers, body } = self.receive().await? {
                return check(call, &headers, &body);
            }
        }
    }

    /// Receives a message of the node, and answers it if it is a ping.
    async fn receive(&mut self) -> Result<Message, Error> {
        let message = self.wire.receive(parse).await?;
        match &message {
            Message::Ping => self.wire.send(b"PONG\r\n").await?,
            Message::Error(text) => return Err(Error::refused(text)),
            Message::Pong | Message::Notice | Message::Answer { .. } => {}
        }
        Ok(message)
    }
}

/// What a node sends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Message {
    Ping,
    Pong,
    /// The node's view of itself, when a client connects and whenever that changes.
    Notice,
    /// The node gives up the connection.
    Error(Vec<u8>),
    /// A message to the inbox.
    Answer {
        headers: Vec<u8>,
        body: Vec<u8>,
    },
}

/// The message of a call. A key has no characters with a meaning in subjects or JSON; the options are checked for that.
fn request(inbox: &str, call: &Call<'_>) -> String {
    let (subject, body) = match call {
        Call::Write { key, value, .. } => (format!("{SUBJECT}.{key}"), (*value).to_owned()),
        Call::Read { key, consistency: Some(Consistency::Local) } => {
            (format!("$JS.API.DIRECT.GET.{STREAM}.{SUBJECT}.{key}"), String::new())
        }
        Call::Read { key, .. } => {
            (format!("$JS.API.STREAM.MSG.GET.{STREAM}"), format!("{{\"last_by_subj\":\"{SUBJECT}.{key}\"}}"))
        }
    };
    format!("PUB {subject} {inbox} {}\r\n{body}\r\n", body.len())
}

/// Takes a message of the node.
fn parse(rest: &mut &[u8]) -> Result<Option<Message>, Error> {
    let Some(line) = take_line(rest)? else { return Ok(None) };
    let line = str::from_utf8(line).map_err(|_| Error::Malformed)?;
    let mut words = line.split_ascii_whitespace();
    let operation = words.next().unwrap_or_default();
    // The subject, the subscription and the place for an answer precede the numbers of bytes.
    let mut last_number = || words.next_back().and_then(|word| word.parse::<usize>().ok()).ok_or(Error::Malformed);
    let (headers_bytes, all_bytes) = match operation {
        "MSG" => (0, last_number()?),
        "HMSG" => {
            let all_bytes = last_number()?;
            (last_number()?, all_bytes)
        }
        "PING" => return Ok(Some(Message::Ping)),
        "PONG" => return Ok(Some(Message::Pong)),
        "INFO" => return Ok(Some(Message::Notice)),
        "-ERR" => return Ok(Some(Message::Error(line.as_bytes().to_vec()))),
        _ => return Err(Error::Malformed),
    };
    let Some(bytes) = take_counted(rest, all_bytes)? else { return Ok(None) };
    let (headers, body) = bytes.split_at_checked(headers_bytes).ok_or(Error::Malformed)?;
    Ok(Some(Message::Answer { headers: headers.to_vec(), body: body.to_vec() }))
}

/// Members of JetStream's answers to a write and to a get from the leader.
#[derive(Deserialize)]
struct Answer {
    error: Option<Description>,
    /// The place of a write in the stream.
    seq: Option<u64>,
    /// The entry that was read.
    message: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Description {
    #[serde(default)]
    description: String,
}

fn check(call: &Call<'_>, headers: &[u8], body: &[u8]) -> Result<(), Error> {
    let first = headers.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let status = first.strip_prefix(HEADERS).unwrap_or_default().trim_ascii();
    if status.starts_with(b"404") {
        return Err(Error::NotFound);
    }
    if !status.is_empty() {
        // 503 says that nobody listens to the subject, as when there is no bucket or no leader.
        return Err(Error::refused(first));
    }
    if matches!(call, Call::Read { consistency: Some(Consistency::Local), .. }) {
        // A direct get answers with the value itself. Its headers tell it from an error.
        return if headers.is_empty() { Err(Error::Malformed) } else { Ok(()) };
    }
    let answer: Answer = serde_json::from_slice(body).map_err(|_| Error::Malformed)?;
    let is_done = match call {
        Call::Write { .. } => answer.seq.is_some(),
        Call::Read { .. } => answer.message.is_some(),
    };
    match answer.error {
        Some(error) => Err(Error::refused(error.description.as_bytes())),
        None if is_done => Ok(()),
        None => Err(Error::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Call<'_> = Call::Write { key: "bench/1", value: "abc", replicas: None };
    const LOCAL: Call<'_> = Call::Read { key: "bench/1", consistency: Some(Consistency::Local) };
    const STRONG: Call<'_> = Call::Read { key: "bench/1", consistency: Some(Consistency::Strong) };

    /// The result of a call that is answered by some bytes.
    fn answered(call: &Call<'_>, mut bytes: &[u8]) -> Result<(), Error> {
        let Some(Message::Answer { headers, body }) = parse(&mut bytes)? else { panic!("no answer") };
        check(call, &headers, &body)
    }

    #[test]
    fn a_request_is_a_message_with_the_inbox_for_its_answer() {
        assert_eq!(request("_INBOX.x", &WRITE), "PUB $KV.bench.bench/1 _INBOX.x 3\r\nabc\r\n");
        let direct = "PUB $JS.API.DIRECT.GET.KV_bench.$KV.bench.bench/1 _INBOX.x 0\r\n\r\n";
        assert_eq!(request("_INBOX.x", &LOCAL), direct);
        let get = "PUB $JS.API.STREAM.MSG.GET.KV_bench _INBOX.x 36\r\n{\"last_by_subj\":\"$KV.bench.bench/1\"}\r\n";
        assert_eq!(request("_INBOX.x", &STRONG), get);
    }

    #[test]
    fn messages_are_parsed_once_they_are_whole() {
        let mut rest: &[u8] = b"INFO {\"a\": 1} \r\nPING\r\nPONG\r\n-ERR 'no'\r\nMSG _INBOX.x 1  3\r\nabc\r\n";
        let found: Vec<_> = std::iter::from_fn(|| parse(&mut rest).unwrap()).collect();
        let (error, answer) =
            (Message::Error(b"-ERR 'no'".to_vec()), Message::Answer { headers: Vec::new(), body: b"abc".to_vec() });
        assert_eq!(found, [Message::Notice, Message::Ping, Message::Pong, error, answer]);
        for part in [&b""[..], b"PIN", b"MSG _INBOX.x 1 3\r\nabc", b"HMSG _INBOX.x 1 12 15\r\nNATS/1.0\r\n"] {
            assert_eq!(parse(&mut &*part).unwrap(), None, "{part:?}");
        }
        for wrong in
            [&b"HELLO\r\n"[..], b"MSG _INBOX.x 1 x\r\n", b"HMSG _INBOX.x 1 4 3\r\nabc\r\n", b"MSG a 1 1\r\nabc"]
        {
            assert!(matches!(parse(&mut &*wrong), Err(Error::Malformed)), "{wrong:?}");
        }
    }

    #[test]
    fn success_is_an_acknowledgement_or_an_entry() {
        answered(&WRITE, b"MSG _INBOX.x 1  31\r\n{\"stream\":\"KV_bench\", \"seq\":17}\r\n").unwrap();
        answered(&STRONG, b"MSG _INBOX.x 1 24\r\n{\"message\":{\"seq\":17}}  \r\n").unwrap();
        answered(&LOCAL, b"HMSG _INBOX.x 1  33 36\r\nNATS/1.0\r\nNats-Sequence: 17  \r\n\r\nabc\r\n").unwrap();
    }

    #[test]
    fn errors_and_statuses_are_no_success() {
        let no_responders = b"HMSG _INBOX.x 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n";
        for call in [WRITE, LOCAL, STRONG] {
            assert_eq!(answered(&call, no_responders).unwrap_err().to_string(), "NATS/1.0 503");
        }
        let error = b"MSG _INBOX.x 1 52\r\n{\"error\":{\"code\":503,\"description\":\"no space left\"}}\r\n";
        for call in [WRITE, STRONG] {
            assert_eq!(answered(&call, error).unwrap_err().to_string(), "no space left");
        }
        let absent = b"HMSG _INBOX.x 1  34 34\r\nNATS/1.0 404 Message Not Found\r\n\r\n\r\n";
        assert!(matches!(answered(&LOCAL, absent), Err(Error::NotFound)));
        for call in [WRITE, LOCAL, STRONG] {
            assert!(matches!(answered(&call, b"MSG _INBOX.x 1 2\r\n{}\r\n"), Err(Error::Malformed)));
        }
    }
}
