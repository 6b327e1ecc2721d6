//! Writers, each with one write at a time, counted by the second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::Instant;

use anyhow::Context;
use serde_json::json;

use crate::http::Client;
use crate::node::BASE_PATH;

/// Seconds that are counted.
const SECONDS_MAX: usize = 3_600;

/// Number of keys of each writer.
const KEYS: usize = 300;

/// The writers of one kind.
#[derive(Clone, Copy)]
pub(super) enum Half {
    Unjudged,
    Judged,
}

impl Half {
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Unjudged => "plain/",
            Self::Judged => "judged/",
        }
    }

    /// The part of their rate that they must keep in each second.
    pub(super) fn goal(self) -> f64 {
        match self {
            Self::Unjudged => 0.9,
            Self::Judged => 0.8,
        }
    }
}

/// A running load.
pub(super) struct Load {
    began: Instant,
    counts: Arc<Counts>,
    writers: Vec<JoinHandle<()>>,
}

/// What the writers have counted.
#[derive(Default)]
pub(super) struct Counts {
    /// Writes of each half in each second.
    by_half: [Vec<AtomicU64>; 2],
    failures: AtomicU64,
    is_over: AtomicBool,
}

impl Load {
    /// Starts the writers; they are spread over the nodes.
    pub(super) fn start(ports: &[u16], writers: usize) -> anyhow::Result<Self> {
        let zeros = || (0..SECONDS_MAX).map(|_| AtomicU64::new(0)).collect();
        let counts =
            Counts { by_half: [zeros(), zeros()], failures: AtomicU64::new(0), is_over: AtomicBool::new(false) };
        let (counts, began) = (Arc::new(counts), Instant::now());
        let mut handles = Vec::new();
        for writer in 0..writers {
            let port = ports.get(writer / 2 % ports.len()).context("no node runs")?;
            let connection = Client::connect(*port)?;
            let half = if writer % 2 == 0 { Half::Unjudged } else { Half::Judged };
            let counts = Arc::clone(&counts);
            handles.push(spawn(move || write(connection, half, writer, began, &counts)));
        }
        Ok(Self { began, counts, writers: handles })
    }

    /// Stops the writers, and returns what they have counted.
    pub(super) fn stop(self) -> Counts {
        self.counts.is_over.store(true, Ordering::Relaxed);
        for writer in self.writers {
            // One that panicked has said why.
            let _ = writer.join();
        }
        Arc::into_inner(self.counts).unwrap_or_default()
    }

    /// The number of the current second.
    pub(super) fn second(&self) -> usize {
        self.began.elapsed().as_secs() as usize
    }
}

impl Counts {
    /// The writes of a half in each second.
    pub(super) fn rates(&self, half: Half) -> Vec<u64> {
        let counts = self.by_half.get(half as usize).map_or(&[][..], Vec::as_slice);
        counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

fn write(mut connection: Client, half: Half, writer: usize, began: Instant, counts: &Counts) {
    // 256 bytes.
    let value = json!({"value": {"name": "n".repeat(245)}}).to_string();
    for number in (0..KEYS).cycle() {
        if counts.is_over.load(Ordering::Relaxed) {
            return;
        }
        let path = format!("{BASE_PATH}/kv/{}{writer}/{number}/", half.prefix());
        let written = connection.put(&path, "application/json", value.as_bytes());
        let second = began.elapsed().as_secs() as usize;
        match (written, counts.by_half.get(half as usize).and_then(|counts| counts.get(second))) {
            (Ok(()), Some(count)) => drop(count.fetch_add(1, Ordering::Relaxed)),
            (Ok(()), None) => return,
            (Err(error), _) => {
                if counts.failures.fetch_add(1, Ordering::Relaxed) == 0 {
                    eprintln!("a write failed: {error:#}");
                }
            }
        }
    }
}
