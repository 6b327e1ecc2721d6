//! What a connection of the server does, so that one which does nothing ends.
//!
//! A connection counts what happens on it, without a clock. Its task looks every [`LOOK_INTERVAL`] at what has changed, so that
//! a limit is met up to two intervals late, and a request costs a few additions.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::limits::{HEAD_DEADLINE, IDLE_CONNECTION_MAX, UNTAKEN_ANSWER_MAX};

/// Interval at which a connection is looked at.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What has happened on a connection. Counters wrap around.
#[derive(Default)]
pub(super) struct Activity {
    reads: AtomicU32,
    writes: AtomicU32,
    /// Whether the last write waits for the client to take what was written before.
    is_blocked: AtomicBool,
    /// Requests whose head was read.
    begun: AtomicU32,
    /// Requests whose answer was handed over, or given up.
    ended: AtomicU32,
    /// `reads` when a request ended the last time. What is read later belongs to the head of the next one.
    reads_at_end: AtomicU32,
    /// An HTTP/2 connection is idle between its requests, whatever frames come.
    is_http2: AtomicBool,
}

/// A request in progress, until this is dropped.
pub(super) struct InProgress(Arc<Activity>);

impl Activity {
    pub(super) fn begin(self: &Arc<Self>, is_http2: bool) -> InProgress {
        self.begun.fetch_add(1, Relaxed);
        if is_http2 {
            self.is_http2.store(true, Relaxed);
        }
        InProgress(self.clone())
    }

    fn doing(&self) -> Doing {
        let (reads, begun) = (self.reads.load(Relaxed), self.begun.load(Relaxed));
        if self.is_blocked.load(Relaxed) {
            return Doing::Blocked { writes: self.writes.load(Relaxed) };
        }
        let is_between = begun == self.ended.load(Relaxed);
        let has_head = reads != self.reads_at_end.load(Relaxed) && !self.is_http2.load(Relaxed);
        match (is_between, has_head) {
            (false, _) => Doing::Serving,
            (true, true) => Doing::Head { begun },
            (true, false) => Doing::Idle { begun },
        }
    }
}

impl Drop for InProgress {
    fn drop(&mut self) {
        self.0.reads_at_end.store(self.0.reads.load(Relaxed), Relaxed);
        self.0.ended.fetch_add(1, Relaxed);
    }
}

/// What a connection does, with the count that tells whether it is still the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// A request is served. Its body, its handler and its answer have limits of their own.
    Serving,
    /// A part of a head has arrived.
    Head { begun: u32 },
    /// Nothing.
    Idle { begun: u32 },
    /// The client does not take what was written.
    Blocked { writes: u32 },
}

/// How a connection that does nothing ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// As if the client had not known that it could go on: no request is lost.
    Close,
    /// At once.
    Cut,
}

/// Looks at a connection, again and again.
pub(super) struct Watch {
    activity: Arc<Activity>,
    doing: Doing,
    since: Instant,
}

impl Watch {
    pub(super) fn new(activity: Arc<Activity>) -> Self {
        Self { activity, doing: Doing::Idle { begun: 0 }, since: Instant::now() }
    }

    /// Returns once the connection has done nothing for too long.
    pub(super) async fn verdict(&mut self) -> Verdict {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if let Some(verdict) = self.look(Instant::now()) {
                return verdict;
            }
        }
    }

    fn look(&mut self, now: Instant) -> Option<Verdict> {
        let doing = self.activity.doing();
        if doing != self.doing {
            (self.doing, self.since) = (doing, now);
        }
        let (limit, verdict) = match doing {
            Doing::Serving => return None,
            Doing::Head { .. } => (HEAD_DEADLINE, Verdict::Cut),
            Doing::Idle { .. } => (IDLE_CONNECTION_MAX, Verdict::Close),
            Doing::Blocked { .. } => (UNTAKEN_ANSWER_MAX, Verdict::Cut),
        };
        (now.saturating_duration_since(self.since) >= limit).then_some(verdict)
    }
}

/// A stream whose reads and writes are counted, with what is held until it is dropped.
pub(super) struct Watched<S, H> {
    stream: S,
    activity: Arc<Activity>,
    _held: H,
}

impl<S, H> Watched<S, H> {
    pub(super) fn new(stream: S, held: H) -> (Self, Arc<Activity>) {
        let activity = Arc::<Activity>::default();
        (Self { stream, activity: activity.clone(), _held: held }, activity)
    }

    fn wrote<T>(&self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.activity.is_blocked.store(written.is_pending(), Relaxed);
        if written.is_ready() {
            self.activity.writes.fetch_add(1, Relaxed);
        }
        written
    }
}

impl<S: AsyncRead + Unpin, H: Unpin> AsyncRead for Watched<S, H> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.activity.reads.fetch_add(1, Relaxed);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin, H: Unpin> AsyncWrite for Watched<S, H> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
