//! The network of a simulation: delays, losses, duplicates, reordering, and links cut in one direction or both.
//!
//! Nodes put their calls into an outbox; the world takes them out, decides the fate of each by its seed, and delivers them
//! when they are due. As on a real network, a caller whose call or answer is lost waits for its timeout; if the peer dies,
//! the caller learns it at once or not at all; if the peer does not run, the connection is refused.
//!
//! A call may be delivered twice (a proxy on the way repeats it), except for `Propose`: the contract of [`Transport`]
//! forbids that, since a write without a name must not be applied twice. A call may arrive long after its sender gave up.

use std::sync::{Arc, OnceLock};
use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::replication::peer::protocol::{
    ANYONE, Answer, Call, CallError, Envelope, Failure, Fetched, SnapshotBody, Transport, VANISHED_AFTER,
};
use crate::replication::types::ClusterId;

pub(super) type Reply = oneshot::Sender<Result<Bytes, CallError>>;

#[derive(Clone)]
pub(super) enum Body {
    Whole(Bytes),
    /// The frames of a stream; it breaks after them, if it is not whole.
    Frames {
        frames: Vec<Bytes>,
        is_whole: bool,
    },
}

pub(super) struct Outgoing {
    pub(super) from: usize,
    pub(super) url: String,
    pub(super) envelope: Envelope,
    pub(super) call: Call,
    pub(super) body: Body,
    pub(super) reply: Reply,
}

/// The calls and answers of nodes since the world last collected them.
#[derive(Default)]
pub(super) struct Outbox {
    pub(super) calls: Vec<Outgoing>,
    /// The results of calls, by the number that the world gave each.
    pub(super) served: Vec<(u64, Result<Bytes, CallError>)>,
}

pub(super) struct SimTransport {
    pub(super) from: usize,
    pub(super) outbox: Arc<Mutex<Outbox>>,
    pub(super) cluster: OnceLock<ClusterId>,
}

impl SimTransport {
    async fn send(&self, url: String, to: u64, call: Call, body: Body, timeout: Duration) -> Result<Bytes, CallError> {
        let (reply, answer) = oneshot::channel();
        let envelope = Envelope { to, cluster: self.cluster.get().copied() };
        self.outbox.lock().calls.push(Outgoing { from: self.from, url: url.clone(), envelope, call, body, reply });
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(CallError::new(Failure::NoAnswer, url, "the connection broke")),
            Err(_) => Err(CallError::new(Failure::NoAnswer, url, "the call timed out")),
        }
    }
}

impl Transport for SimTransport {
    fn set_cluster(&self, cluster: ClusterId) {
        // Setting fails if it is set: a node never changes its cluster.
        let _ = self.cluster.set(cluster);
    }

    fn call(&self, to: u64, url: &str, call: Call, body: Bytes, timeout: Duration) -> Answer<'_> {
        Box::pin(self.send(url.to_owned(), to, call, Body::Whole(body), timeout))
    }

    fn send_snapshot(&self, to: u64, url: &str, body: SnapshotBody) -> Answer<'_> {
        let url = url.to_owned();
        Box::pin(async move {
            let sent: Vec<_> = body.collect().await;
            let is_whole = sent.iter().all(Result::is_ok);
            let frames = sent.into_iter().map_while(Result::ok).collect();
            self.send(url, to, Call::Snapshot, Body::Frames { frames, is_whole }, VANISHED_AFTER).await
        })
    }

    /// The snapshot arrives whole or not at all.
    fn fetch_snapshot(&self, url: &str, index_min: u64) -> Fetched<'_> {
        let (url, index_min) = (url.to_owned(), Bytes::copy_from_slice(&index_min.to_be_bytes()));
        Box::pin(async move {
            let whole = self.send(url, ANYONE, Call::FetchSnapshot, Body::Whole(index_min), VANISHED_AFTER).await?;
            Ok(futures::stream::iter([Ok(whole)]).boxed())
        })
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Weather {
    /// Least and greatest delay of a message.
    pub(super) delay_ms: (u64, u64),
    /// Messages of a thousand that take much longer.
    pub(super) straggle_permille: u64,
    /// Messages of a thousand that are lost.
    pub(super) loss_permille: u64,
    /// Calls of a thousand that are delivered twice.
    pub(super) repeat_permille: u64,
}

impl Weather {
    pub(super) const FAST: Self = Self { delay_ms: (1, 1), ..Self::CALM };
    pub(super) const CALM: Self = Self { delay_ms: (1, 2), straggle_permille: 0, loss_permille: 0, repeat_permille: 0 };
    pub(super) const UNEVEN: Self =
        Self { delay_ms: (1, 15), straggle_permille: 20, loss_permille: 5, repeat_permille: 50 };
    pub(super) const ROUGH: Self =
        Self { delay_ms: (1, 60), straggle_permille: 60, loss_permille: 60, repeat_permille: 100 };

    /// Greatest delay of a message that takes much longer.
    const STRAGGLER_MS_MAX: u64 = 1_500;

    pub(super) fn delay(&self, rng: &mut fastrand::Rng) -> u64 {
        if rng.u64(0..1_000) < self.straggle_permille {
            return rng.u64(self.delay_ms.1..=Self::STRAGGLER_MS_MAX);
        }
        rng.u64(self.delay_ms.0..=self.delay_ms.1)
    }

    pub(super) fn loses(&self, rng: &mut fastrand::Rng) -> bool {
        rng.u64(0..1_000) < self.loss_permille
    }

    pub(super) fn repeats(&self, call: Call, rng: &mut fastrand::Rng) -> bool {
        !matches!(call, Call::Propose | Call::Snapshot) && rng.u64(0..1_000) < self.repeat_permille
    }
}

/// The cut links, each in one direction.
#[derive(Debug, Default)]
pub(super) struct Cuts {
    links: BTreeSet<(usize, usize)>,
}

impl Cuts {
    pub(super) fn cut(&mut self, from: usize, to: usize) {
        self.links.insert((from, to));
    }

    /// Cuts a link in both directions.
    pub(super) fn cut_both(&mut self, one: usize, other: usize) {
        self.cut(one, other);
        self.cut(other, one);
    }

    pub(super) fn heal(&mut self) {
        self.links.clear();
    }

    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.links.contains(&(from, to))
    }
}
