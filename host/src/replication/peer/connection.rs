//! The calling end of a kept connection between nodes.
//!
//! # Problem
//!
//! A write costs several calls between nodes. An HTTP request for each would cost more than its content, and Raft's
//! appends must arrive in order, so each request would wait for the answer to the one before.
//!
//! # Approach
//!
//! A connection begins as an HTTP request to be upgraded (RFC 9110, section 7.8), on the same listener as everything else, once
//! both nodes have [proved themselves](super::credential). It then carries [frames](super::frames) both ways. A call is a frame
//! with a number; its answer has the same number and is sent when it is ready. Calls arrive in the order in which they were made.
//! A node keeps two connections per peer, one for Raft's own calls and one for the others, so that neither delays the other.
//!
//! # Guarantees
//!
//! A call is sent at most once. A call that fails with [`Failure::NotSent`] or [`Failure::Starting`] has not left this node;
//! after [`Failure::NoAnswer`] the peer may have acted on it.
//!
//! # Failure model
//!
//! When a connection breaks, every call that waits for an answer fails, and the next call connects again. The kernel
//! notices a peer that has vanished ([`UNACKNOWLEDGED_MAX`]); the caller notices a peer that is silent for too long, and
//! [resets](PeerConnection::reset) the connection.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode, header};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, oneshot};

use super::credential::Credentials;
use super::dial::{NOT_ACCEPTED, dial, empty, headers_of};
use super::frames::{self, Frames};
use super::protocol::{
    Call, CallError, Envelope, Failure, PROTOCOL, REFUSAL_HEADER, VERSION, VERSION_HEADER, common_version,
};
use crate::net::Vanished;

/// Calls waiting to be sent on a connection; over it a call fails at once.
const QUEUED_CALLS_MAX: usize = 1_024;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// Maximum time for the peer's kernel to acknowledge what was sent, before the connection counts as broken.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(2);

/// Bytes gathered for one write to the network; a larger frame is written whole.
const WRITE_BYTES: usize = 64 * 1024;

/// Number of pending calls above which abandoned ones are dropped.
const PENDING_SWEEP: usize = 256;

struct Queued {
    call: Call,
    envelope: Envelope,
    body: Bytes,
    reply: Reply,
}

type Reply = oneshot::Sender<Result<Bytes, CallError>>;

/// The calling end of a connection to a peer. Cheap to clone; the connection closes with the last clone.
#[derive(Clone)]
pub(crate) struct PeerConnection {
    url: Arc<str>,
    queue: mpsc::Sender<Queued>,
    resets: Arc<Notify>,
}

impl PeerConnection {
    /// A connection to the node at a base URL. It connects on the first call.
    pub(crate) fn to(url: &str, credentials: Credentials) -> Self {
        let (queue, calls) = mpsc::channel(QUEUED_CALLS_MAX);
        let connection = Self { url: url.into(), queue, resets: Arc::new(Notify::new()) };
        tokio::spawn(keep_connected(connection.url.clone(), credentials, calls, connection.resets.clone()));
        connection
    }

    /// Makes a call. It is queued when this returns; the future waits for its answer.
    pub(crate) fn call(
        &self,
        call: Call,
        envelope: Envelope,
        body: Bytes,
    ) -> impl Future<Output = Result<Bytes, CallError>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let queued = self.queue.try_send(Queued { call, envelope, body, reply });
        let url = self.url.clone();
        async move {
            if queued.is_err() {
                return Err(CallError::new(Failure::NotSent, &*url, "too many calls wait for this node"));
            }
            answer.await.unwrap_or_else(|_| Err(CallError::new(Failure::NoAnswer, &*url, "the node stops")))
        }
    }

    /// Closes the connection. The next call connects again.
    pub(crate) fn reset(&self) {
        self.resets.notify_waiters();
    }
}

/// Connects whenever there is a call to send, until the last handle is dropped.
async fn keep_connected(
    url: Arc<str>,
    credentials: Credentials,
    mut calls: mpsc::Receiver<Queued>,
    resets: Arc<Notify>,
) {
    while let Some(first) = calls.recv().await {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect(&credentials, &url)).await;
        let (io, secret) =
            match connected.unwrap_or_else(|_| Err(not_sent(&url, io::Error::from(io::ErrorKind::TimedOut)))) {
                Ok(connected) => connected,
                Err(error) => {
                    refuse_all(first, &mut calls, &error);
                    continue;
                }
            };
        let pending = Mutex::new(Pending::default());
        let broken = tokio::select! {
            broken = carry(&url, io, first, &mut calls, &pending) => broken,
            () = resets.notified() => Err(io::ErrorKind::TimedOut.into()),
            () = credentials.withdrawn(secret) => Err(io::Error::other("the secret by which it proved itself is gone")),
        };
        let reason = broken.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
        for reply in pending.lock().replies.drain().map(|(_, reply)| reply) {
            // Sending fails if the caller has stopped waiting.
            let _ = reply.send(Err(CallError::new(Failure::NoAnswer, &*url, &reason)));
        }
    }
}

fn refuse_all(first: Queued, calls: &mut mpsc::Receiver<Queued>, error: &CallError) {
    let mut next = Some(first);
    while let Some(queued) = next {
        let _ = queued.reply.send(Err(error.clone()));
        next = calls.try_recv().ok();
    }
}

fn not_sent(url: &str, reason: impl ToString) -> CallError {
    CallError::new(Failure::NotSent, url, reason)
}

type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// Connects. Returns the id of the secret by which the node has proved itself, too.
async fn connect(credentials: &Credentials, url: &str) -> Result<(Upgraded, Option<[u8; 4]>), CallError> {
    let headers = [
        (header::CONNECTION.as_str(), "upgrade".to_owned()),
        (header::UPGRADE.as_str(), PROTOCOL.to_owned()),
        (VERSION_HEADER, VERSION.to_string()),
    ];
    let headers = headers_of(headers).map_err(|error| not_sent(url, error))?;
    let dialed = dial(credentials, url, Vanished::Unacknowledged(UNACKNOWLEDGED_MAX)).await?;
    let secret = dialed.secret();
    let response = dialed.send(Method::POST, "/peer/line", headers, empty()).await;
    let response = response.map_err(|error| not_sent(url, error))?;
    match response.status() {
        StatusCode::SWITCHING_PROTOCOLS => {}
        StatusCode::SERVICE_UNAVAILABLE if response.headers().contains_key(REFUSAL_HEADER) => {
            return Err(CallError::new(Failure::Starting, url, "it has no state to take part with yet"));
        }
        StatusCode::UNAUTHORIZED => return Err(not_sent(url, NOT_ACCEPTED)),
        _ => return Err(not_sent(url, format!("it does not speak {PROTOCOL}"))),
    }
    let spoken = response.headers().get(VERSION_HEADER).map(|version| version.to_str().unwrap_or_default());
    if spoken.is_some_and(|spoken| {
        common_version(Some(spoken)).map(|version| version.to_string()).as_deref() != Some(spoken)
    }) {
        return Err(not_sent(url, format!("it speaks a version of {PROTOCOL} that this node does not know")));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|error| not_sent(url, error))?;
    Ok((TokioIo::new(upgraded), secret))
}

/// The calls that wait for their answers, by number.
#[derive(Default)]
struct Pending {
    replies: HashMap<u32, Reply>,
    last: u32,
}

impl Pending {
    fn add(&mut self, reply: Reply) -> u32 {
        if self.replies.len() >= PENDING_SWEEP {
            self.replies.retain(|_, reply| !reply.is_closed());
        }
        self.last = self.last.wrapping_add(1);
        self.replies.insert(self.last, reply);
        self.last
    }
}

/// Sends calls and delivers answers until the connection breaks or the last handle is dropped.
async fn carry(
    url: &str,
    io: impl AsyncRead + AsyncWrite,
    first: Queued,
    calls: &mut mpsc::Receiver<Queued>,
    pending: &Mutex<Pending>,
) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(io);
    let send = async {
        let mut out = BytesMut::new();
        let mut next = Some(first);
        while let Some(queued) = next {
            put_call(&mut out, queued, pending);
            while out.len() < WRITE_BYTES
                && let Ok(queued) = calls.try_recv()
            {
                put_call(&mut out, queued, pending);
            }
            writer.write_all_buf(&mut out).await?;
            next = calls.recv().await;
        }
        Ok(())
    };
    let receive = async {
        let mut frames = Frames::of(reader);
        while let Some(frame) = frames.next().await? {
            let (number, answer) = frames::parse_answer(frame, url)?;
            if let Some(reply) = pending.lock().replies.remove(&number) {
                let _ = reply.send(answer);
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    };
    tokio::select! {
        sent = send => sent,
        received = receive => received,
    }
}

fn put_call(out: &mut BytesMut, queued: Queued, pending: &Mutex<Pending>) {
    let Queued { call, envelope, body, reply } = queued;
    if reply.is_closed() {
        return;
    }
    let number = pending.lock().add(reply);
    frames::put_call(out, number, call, envelope, &body);
}
