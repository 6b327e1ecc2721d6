//! Recorded calls of clients: requests, times and outcomes. The invariants are checked against this history.
//!
//! Each call addresses one object. An object is a small set of keys: batches write several of them, ranges read all of
//! them. Objects are replaced by new ones after some time, so that the history of each object stays short.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::Serialize;

/// Number of keys of an object.
pub const KEYS: usize = 4;

/// The consistency that a read asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Consistency {
    /// Linearizable, or an error.
    Strong,
    /// Linearizable if that is possible promptly, else local; the answer says which.
    Prompt,
    /// The state of the node.
    Local,
}

/// A precondition of a write on one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Precondition {
    /// The entry has this revision.
    Revision(u64),
    /// There is no entry.
    Absent,
}

/// One key of a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// The key's position in the object.
    pub key: usize,
    /// The new value, unique among all writes; `None` deletes the key.
    pub value: Option<u64>,
    /// The precondition.
    pub precondition: Option<Precondition>,
}

/// The request of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Request {
    /// Reads one key.
    Get(usize, Consistency),
    /// Reads all keys of the object at one revision.
    Range(Consistency),
    /// A `PUT` or a `DELETE`, or a batch if there are several items.
    Write {
        /// The items, each with another key.
        items: Vec<Item>,
        /// Whether the write has an `Idempotency-Key`, and is repeated while its outcome is unknown.
        idempotent: bool,
    },
}

/// An entry in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Seen {
    /// The value.
    pub value: u64,
    /// Number of writes since the key was created.
    pub version: u64,
    /// The revision of the last write.
    pub revision: u64,
}

/// The effect of one item of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Effect {
    /// The key has the new value, with this version.
    Put(u64),
    /// The key is deleted; whether it existed.
    Deleted(bool),
    /// Not known.
    Unseen,
}

/// The outcome of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// The result of a read.
    Read {
        /// Each requested key with its entry.
        entries: Vec<(usize, Option<Seen>)>,
        /// The store's revision in the answer. A range shows this revision; a single key shows this one or a later one.
        revision: u64,
        /// Whether the answer says that the read is linearizable.
        linearizable: bool,
    },
    /// The write is committed.
    Done {
        /// Its revision. The answer to a `DELETE` has none.
        revision: Option<u64>,
        /// The effect of each item.
        effects: Vec<Effect>,
    },
    /// The write was refused, because the precondition on a key failed. The key, and the revision of its entry.
    PreconditionFailed(usize, Option<u64>),
    /// The write was not applied and never will be.
    NotWritten,
    /// The write may have been applied, or may still be.
    Unknown,
    /// A read without an answer.
    Failed,
    /// An answer that the API does not allow.
    Invalid(String),
}

/// One call of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Call {
    /// Its number.
    pub id: u64,
    /// The client. A client has one call in flight.
    pub client: u32,
    /// The node; the first one if the call went to several.
    pub node: usize,
    /// The incarnation of the node's process; `None` if the process started or ended during the call.
    pub incarnation: Option<u64>,
    /// The object.
    pub object: u64,
    /// The request.
    pub request: Request,
    /// Start of the call, in nanoseconds since the start of the history.
    pub invoked: i64,
    /// Time at which the client knew the outcome or gave up.
    pub completed: i64,
    /// The outcome.
    pub outcome: Outcome,
}

impl Call {
    /// The items of a write; empty for a read.
    pub fn items(&self) -> &[Item] {
        match &self.request {
            Request::Write { items, .. } => items,
            Request::Get(..) | Request::Range(_) => &[],
        }
    }

    /// The entries in the answer to a read; empty for a write.
    pub fn entries(&self) -> &[(usize, Option<Seen>)] {
        match &self.outcome {
            Outcome::Read { entries, .. } => entries,
            _ => &[],
        }
    }

    /// The revision of an acknowledged write, if its answer has one.
    pub fn written_revision(&self) -> Option<u64> {
        match &self.outcome {
            Outcome::Done { revision, .. } => *revision,
            _ => None,
        }
    }

    /// The call as one readable line.
    pub fn describe(&self) -> String {
        let (from, to) = (seconds(self.invoked), seconds(self.completed));
        format!(
            "[{from} – {to}] #{} client {} node {} object {}: {:?} → {:?}",
            self.id, self.client, self.node, self.object, self.request, self.outcome
        )
    }
}

fn seconds(nanoseconds: i64) -> String {
    format!("{}.{:06}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000 / 1_000)
}

/// The calls recorded so far.
#[derive(Debug)]
pub struct History {
    began: Instant,
    next_id: AtomicU64,
    calls: Mutex<Vec<Arc<Call>>>,
}

impl Default for History {
    fn default() -> Self {
        Self { began: Instant::now(), next_id: AtomicU64::new(0), calls: Mutex::default() }
    }
}

impl History {
    /// Nanoseconds since the start of the history.
    pub fn now(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_nanos()).unwrap()
    }

    /// A new number for a call.
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Records a completed call.
    pub fn record(&self, call: Call) {
        self.calls.lock().unwrap().push(Arc::new(call));
    }

    /// All calls so far, ordered by their start.
    pub fn calls(&self) -> Vec<Arc<Call>> {
        let mut calls = self.calls.lock().unwrap().clone();
        calls.sort_by_key(|call| call.invoked);
        calls
    }
}

/// Writes calls to a file, one line of JSON each.
pub fn save(calls: &[Arc<Call>], path: &Path) {
    let mut file = BufWriter::new(File::create(path).unwrap());
    for call in calls {
        writeln!(file, "{}", serde_json::to_string(&**call).unwrap()).unwrap();
    }
    file.flush().unwrap();
}

/// Number of calls by outcome.
pub fn tally(calls: &[Arc<Call>]) -> BTreeMap<&'static str, usize> {
    let mut tally = BTreeMap::new();
    for call in calls {
        let name = match (&call.outcome, &call.request) {
            (Outcome::Read { linearizable: true, .. }, _) => "linearizable reads",
            (Outcome::Read { .. }, _) => "local reads",
            (Outcome::Failed, _) => "failed reads",
            (Outcome::Done { .. }, Request::Write { idempotent: true, .. }) => "idempotent writes done",
            (Outcome::Done { .. }, _) => "writes done",
            (Outcome::PreconditionFailed(..), _) => "failed preconditions",
            (Outcome::NotWritten, _) => "writes not written",
            (Outcome::Unknown, _) => "writes unknown",
            (Outcome::Invalid(_), _) => "invalid answers",
        };
        *tally.entry(name).or_insert(0) += 1;
    }
    tally
}
