//! What clients asked, when, and what they were told: the histories that the invariants are checked against.
//!
//! Calls go to objects. An object is a few keys that belong together: batches write several of them, ranges read them
//! all. Objects are used for a while and then left for new ones, so that the history of each is short.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::Serialize;

/// The keys of an object.
pub const KEYS: usize = 4;

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Level {
    /// Linearizable or an error.
    Strong,
    /// Linearizable if that can be had promptly; the answer says whether it is.
    Prompt,
    /// What the node has.
    Local,
}

/// What a client demands of a key before its write is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Demand {
    /// The entry has this revision.
    Revision(u64),
    /// There is no entry.
    Absent,
}

/// One key of a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Which key of the object.
    pub key: usize,
    /// The new value, which no other write has; none: the key is deleted.
    pub value: Option<u64>,
    /// What must be true before.
    pub demand: Option<Demand>,
}

/// What a client asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Ask {
    /// One key.
    Get(usize, Level),
    /// All keys of the object at one moment.
    Range(Level),
    /// A `PUT` or a `DELETE`, or a batch if there are several items.
    Write {
        /// What is written; no key occurs twice.
        items: Vec<Item>,
        /// Whether the write has an `Idempotency-Key`, and is sent again while it is unknown what became of it.
        named: bool,
    },
}

/// An entry as an answer shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Seen {
    /// Its value.
    pub value: u64,
    /// How often the key was written since it came to be.
    pub version: u64,
    /// The revision of the write that set it.
    pub revision: u64,
}

/// What one item of a write did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Effect {
    /// The key has its new value, in this version.
    Put(u64),
    /// The key is gone, and whether it was there.
    Deleted(bool),
    /// Nobody saw what it did.
    Unseen,
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// What a read saw.
    Read {
        /// Each key that was asked for.
        entries: Vec<(usize, Option<Seen>)>,
        /// The store's revision, as the answer says; a range shows exactly this one, a single key this or a later one.
        revision: u64,
        /// Whether the answer says that it is linearizable.
        linearizable: bool,
    },
    /// The write is committed.
    Done {
        /// Its revision; an answer to a `DELETE` does not say it.
        revision: Option<u64>,
        /// What each item did.
        effects: Vec<Effect>,
    },
    /// The write was refused since a demand is not met: of which key, and the revision of its entry.
    Refused(usize, Option<u64>),
    /// The node, or the failure to reach it, says that the write has not happened and never will.
    NotWritten,
    /// The write may have happened, or may happen yet.
    Unknown,
    /// A read was not answered.
    Failed,
    /// An answer that no node may give.
    Wrong(String),
}

/// One call of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Call {
    /// Its number.
    pub id: u64,
    /// Who called; a client has one call under way at a time.
    pub client: u32,
    /// The node it was sent to, the first if there were several.
    pub node: usize,
    /// The life of that node's process; none if it ended or began meanwhile.
    pub life: Option<u64>,
    /// The object.
    pub object: u64,
    /// What was asked for.
    pub ask: Ask,
    /// When the call began, in nanoseconds since the history did.
    pub invoked: i64,
    /// When the client knew the outcome, or gave up.
    pub completed: i64,
    /// What came of it.
    pub outcome: Outcome,
}

impl Call {
    /// The items of a write; none of a read.
    pub fn items(&self) -> &[Item] {
        match &self.ask {
            Ask::Write { items, .. } => items,
            Ask::Get(..) | Ask::Range(_) => &[],
        }
    }

    /// What a read saw.
    pub fn entries(&self) -> &[(usize, Option<Seen>)] {
        match &self.outcome {
            Outcome::Read { entries, .. } => entries,
            _ => &[],
        }
    }

    /// The revision of a write that was acknowledged, if its answer says it.
    pub fn written_revision(&self) -> Option<u64> {
        match &self.outcome {
            Outcome::Done { revision, .. } => *revision,
            _ => None,
        }
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let (from, to) = (seconds(self.invoked), seconds(self.completed));
        format!(
            "[{from} – {to}] #{} client {} node {} object {}: {:?} → {:?}",
            self.id, self.client, self.node, self.object, self.ask, self.outcome
        )
    }
}

fn seconds(nanoseconds: i64) -> String {
    format!("{}.{:06}", nanoseconds / 1_000_000_000, nanoseconds % 1_000_000_000 / 1_000)
}

/// Calls as they are made.
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
    /// Nanoseconds since the history began.
    pub fn now(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_nanos()).unwrap()
    }

    /// A number for a call that nobody had.
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps a call that has ended.
    pub fn record(&self, call: Call) {
        self.calls.lock().unwrap().push(Arc::new(call));
    }

    /// All calls so far, in the order of their beginnings.
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

/// How many calls came to what.
pub fn tally(calls: &[Arc<Call>]) -> BTreeMap<&'static str, usize> {
    let mut tally = BTreeMap::new();
    for call in calls {
        let name = match (&call.outcome, &call.ask) {
            (Outcome::Read { linearizable: true, .. }, _) => "linearizable reads",
            (Outcome::Read { .. }, _) => "local reads",
            (Outcome::Failed, _) => "reads failed",
            (Outcome::Done { .. }, Ask::Write { named: true, .. }) => "named writes done",
            (Outcome::Done { .. }, _) => "writes done",
            (Outcome::Refused(..), _) => "writes refused by a condition",
            (Outcome::NotWritten, _) => "writes not written",
            (Outcome::Unknown, _) => "writes unknown",
            (Outcome::Wrong(_), _) => "wrong answers",
        };
        *tally.entry(name).or_insert(0) += 1;
    }
    tally
}
