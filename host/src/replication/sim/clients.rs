//! The clients of a simulation: each performs one operation after another, on random nodes.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::history::{History, PluginRead, RegistryChange, Request, Response, Scanned, Seen, Unique};
use super::node::{Node, WALL_START_MS};
use crate::replication::Handle;
use crate::storage::{
    Action, AskedBy, Data, Effect, Entry, Fact, Fingerprint, GuardedWrite, HOOKS_PREFIX, Idempotency, Operation,
    Outcome, Page, Precondition, RangeDigest, RangeQuery, Space, Value,
};

pub(super) const CLIENTS: u32 = 5;

/// The keys that clients read and write.
pub(super) const KEYS: [&str; 4] = ["a", "b", "c", "d"];

/// Maximum number of entries in a range that a plugin reads.
const RANGE_LIMIT: u32 = 100;

/// One value in so many is large, and has so many bytes.
const LARGE_EVERY: usize = 8;
const LARGE_BYTES: usize = 4_000;

/// The hook that clients set and remove, and where the registry keeps its history and the pieces of plugins.
const HOOK: &str = "judge";
const HISTORY_PREFIX: &str = "history/";
const PIECES_PREFIX: &str = "components/";

/// Maximum number of entries in a range that the registry reads.
const REGISTRY_LIMIT: u32 = 1_000;

/// The key that each deletion writes as well.
const MARK: &str = "deleted";

/// The deadline of an operation on its node.
pub(super) const DEADLINE: Duration = Duration::from_millis(1_000);

/// Time for which a client waits for an answer; a paused node does not keep deadlines.
const PATIENCE_MS: u64 = 1_300;

/// Longest pause of a client between two operations, in milliseconds.
const THINK_MS_MAX: u64 = 90;

/// Maximum number of attempts at a named write.
const TRIES_MAX: u32 = 5;

/// The answers of nodes since the world last collected them.
pub(super) type Inbox = Arc<Mutex<Vec<(Unique, Response)>>>;

pub(super) struct Client {
    number: u32,
    /// The operation it waits for, and when it began.
    waiting: Option<(Unique, u64)>,
    next_ms: u64,
    /// A named write that may have happened, the id of its first attempt, and the number of attempts.
    in_doubt: Option<(Request, Unique, u32)>,
    named: u32,
    /// The revision it last saw of each key.
    seen: [Option<u64>; KEYS.len()],
}

impl Client {
    pub(super) fn new(number: u32) -> Self {
        Self { number, waiting: None, next_ms: 0, in_doubt: None, named: 0, seen: [None; KEYS.len()] }
    }

    pub(super) fn is_ready(&self, now_ms: u64) -> bool {
        self.waiting.is_none() && now_ms >= self.next_ms
    }

    /// The operation that the client gives up now, if any.
    pub(super) fn gives_up(&self, now_ms: u64) -> Option<Unique> {
        self.waiting.filter(|(_, since_ms)| now_ms >= since_ms + PATIENCE_MS).map(|(id, _)| id)
    }

    pub(super) fn waits_for(&self) -> Option<Unique> {
        self.waiting.map(|(id, _)| id)
    }

    pub(super) fn act(
        &mut self,
        rng: &mut fastrand::Rng,
        history: &mut History,
        node: &Node,
        inbox: &Inbox,
        now_ms: u64,
    ) {
        // Every attempt at a named write writes the same value.
        let (request, first, tries) = match self.in_doubt.take() {
            Some((request, first, tries)) => (request, Some(first), tries + 1),
            None => (self.choose(rng), None, 1),
        };
        let id = history.call(self.number, node, request.clone(), now_ms);
        if matches!(&request, Request::Put { name: Some(_), .. }) {
            self.in_doubt = Some((request.clone(), first.unwrap_or(id), tries));
        }
        self.waiting = Some((id, now_ms));
        begin(node, inbox, request, (id, first.unwrap_or(id)), now_ms, DEADLINE);
    }

    pub(super) fn take(&mut self, rng: &mut fastrand::Rng, request: &Request, response: &Response, now_ms: u64) {
        self.waiting = None;
        self.next_ms = now_ms + rng.u64(0..=THINK_MS_MAX);
        match response {
            Response::Committed(_) => self.in_doubt = None,
            Response::Read(seen) => {
                if let Request::StrongRead { key } | Request::LocalRead { key } = request
                    && let Some(slot) = KEYS.iter().position(|known| known == key)
                {
                    self.seen[slot] = seen.map(|(revision, _)| revision);
                }
            }
            Response::Scanned(_) | Response::Refused(_) | Response::Lost => {}
        }
        if self.in_doubt.as_ref().is_some_and(|(_, _, tries)| *tries >= TRIES_MAX) {
            self.in_doubt = None;
        }
    }

    fn choose(&mut self, rng: &mut fastrand::Rng) -> Request {
        let slot = rng.usize(0..KEYS.len());
        let key = KEYS[slot].to_owned();
        let put = |keys, expected, name| Request::Put { keys, expected, name };
        match rng.u32(0..100) {
            0..18 => put(vec![key], None, None),
            18..32 => put(vec![key], Some(self.seen[slot]), None),
            32..38 => {
                let other = KEYS[(slot + 1 + rng.usize(0..KEYS.len() - 1)) % KEYS.len()];
                put(vec![key, other.to_owned()], None, None)
            }
            38..47 => {
                self.named += 1;
                let name = format!("{}-{}", self.number, self.named);
                // One key that no other write touches, and one that others write as well.
                put(vec![key, once(&name)], None, Some(name))
            }
            47..52 => Request::Delete { key },
            52..60 => {
                let other = KEYS[rng.usize(0..KEYS.len())];
                let reads = [PluginRead::Entry(other), PluginRead::Existence(other), PluginRead::Range];
                Request::Judged { key, read: reads[rng.usize(0..reads.len())] }
            }
            60..64 => {
                let changes = [RegistryChange::StorePiece, RegistryChange::SetHook, RegistryChange::RemoveHook];
                Request::Registry(changes[rng.usize(0..changes.len())])
            }
            64..88 => Request::StrongRead { key },
            88..93 => Request::Scan { strong: rng.bool() },
            _ => Request::LocalRead { key },
        }
    }
}

/// The key that only the write with this name writes.
pub(super) fn once(name: &str) -> String {
    format!("once/{name}")
}

/// Begins an operation on a node; its answer goes to the inbox. `ids` are the operation's id and its unique value.
pub(super) fn begin(
    node: &Node,
    inbox: &Inbox,
    request: Request,
    ids: (Unique, Unique),
    now_ms: u64,
    patience: Duration,
) {
    let (data, inbox) = (node.data().clone(), inbox.clone());
    node.spawn(async move |handle| {
        let deadline = Instant::now() + patience;
        let response = perform(&handle, &data, &request, ids.1, (now_ms, deadline)).await;
        inbox.lock().push((ids.0, response));
    });
}

async fn perform(
    handle: &Handle,
    data: &Data,
    request: &Request,
    value: Unique,
    (now_ms, deadline): (u64, Instant),
) -> Response {
    match request {
        Request::StrongRead { key } => match handle.read_barrier(deadline).await {
            // As the API reads: from the entry cache, else from the state.
            Ok(()) => Response::Read(
                data.cached(key).or_else(|| data.get_and_keep(key).unwrap()).and_then(|entry| seen(&entry)),
            ),
            Err(error) => Response::Refused(error),
        },
        Request::LocalRead { key } => Response::Read(data.get(Space::Kv, key).unwrap().and_then(|entry| seen(&entry))),
        Request::Scan { strong: true } => match handle.read_barrier(deadline).await {
            Ok(()) => Response::Scanned(scanned(data)),
            Err(error) => Response::Refused(error),
        },
        Request::Scan { strong: false } => Response::Scanned(scanned(data)),
        Request::Put { .. } | Request::Delete { .. } | Request::Judged { .. } | Request::Registry(_) => {
            let proposed = handle.propose(&guarded(data, request, value, now_ms), None, deadline).await;
            proposed.map_or_else(Response::Refused, Response::Committed)
        }
    }
}

fn seen(entry: &Entry) -> Seen {
    Some((entry.meta.revision, unique(&entry.value)?))
}

/// The keys of clients in a node's own state.
fn clients_keys(data: &Data) -> Page {
    let [first, .., last] = KEYS.map(str::to_owned);
    data.scan(&RangeQuery { start: Some(first), end: Some(last), ..RangeQuery::default() }).unwrap()
}

fn scanned(data: &Data) -> Scanned {
    let page = clients_keys(data);
    let entries = page.entries.iter().filter_map(|entry| {
        let (revision, value) = seen(entry)?;
        Some((entry.key.clone(), revision, value))
    });
    Scanned { revision: page.revision, entries: entries.collect() }
}

/// What a plugin read in a node's own state, as a precondition.
fn fact(data: &Data, read: PluginRead) -> Fact {
    let revision = |key: &str| data.get(Space::Kv, key).unwrap().map(|entry| entry.meta.revision);
    match read {
        PluginRead::Existence(key) if revision(key).is_some() => Fact::Exists { key: key.to_owned() },
        PluginRead::Entry(key) | PluginRead::Existence(key) => {
            Fact::Revision { key: key.to_owned(), revision: revision(key) }
        }
        PluginRead::Range => {
            let page = clients_keys(data);
            let entries = page.entries.iter().map(|entry| (entry.key.as_str(), entry.meta.revision));
            let (start, end) = (KEYS[0].to_owned(), KEYS[KEYS.len() - 1].to_owned());
            Fact::Range { start, end, limit: RANGE_LIMIT, digest: RangeDigest::of(entries) }
        }
    }
}

/// The unique value in a stored value.
pub(super) fn unique(value: &Value) -> Option<Unique> {
    std::str::from_utf8(&value.bytes).ok()?.trim_end().parse().ok()
}

/// The value of a write. Some are so large that the store keeps them apart from their entries.
fn value_of(unique: Unique) -> Value {
    let width = if unique.is_multiple_of(LARGE_EVERY) { LARGE_BYTES } else { 0 };
    Value::json(format!("{unique:<width$}"))
}

/// The operations of a change of the registry, and what must still hold.
fn registry_write(data: &Data, change: RegistryChange, value: Unique) -> (Vec<Operation>, Vec<Precondition>) {
    let operation = |key, action| Operation { space: Space::System, key, action };
    let put = |key| operation(key, Action::Put(value_of(value)));
    let unchanged = |prefix: &str| {
        let query = RangeQuery { space: Space::System, prefix: Some(prefix.to_owned()), ..RangeQuery::default() };
        let page = data.scan(&query).unwrap();
        let seen = page.entries.iter().map(|entry| (entry.key.as_str(), entry.meta.revision));
        let (start, end, digest) = (prefix.to_owned(), format!("{prefix}{}", char::MAX), RangeDigest::of(seen));
        let fact = Fact::Range { start, end, limit: REGISTRY_LIMIT, digest };
        Precondition { asked_by: AskedBy::Client, space: Space::System, fact }
    };
    let hook = format!("{HOOKS_PREFIX}{HOOK}");
    let changed = match change {
        RegistryChange::StorePiece => return (vec![put(format!("{PIECES_PREFIX}{HOOK}/{}", value % 2))], Vec::new()),
        RegistryChange::SetHook => put(hook),
        RegistryChange::RemoveHook => operation(hook, Action::Delete),
    };
    let record = operation(format!("{HISTORY_PREFIX}{}", value % 4), Action::Put(Value::json(value.to_string())));
    (vec![changed, record], [HOOKS_PREFIX, HISTORY_PREFIX].map(unchanged).into())
}

fn guarded(data: &Data, request: &Request, value: Unique, now_ms: u64) -> GuardedWrite {
    // By the clock of the nodes: a leader that stamps rounds goes on from here.
    let proposed_at_ms = WALL_START_MS + now_ms;
    if let Request::Registry(change) = request {
        let (operations, preconditions) = registry_write(data, *change, value);
        return GuardedWrite { operations, preconditions, proposed_at_ms, ..GuardedWrite::default() };
    }
    let operation = |key: &str, action| Operation { space: Space::Kv, key: key.to_owned(), action };
    let put = |key: &String| operation(key, Action::Put(value_of(value)));
    let (operations, expected, name) = match request {
        Request::Put { keys, expected, name } => (keys.iter().map(put).collect(), *expected, name.clone()),
        // The mark identifies the deletion in the log.
        Request::Delete { key } => {
            let mark = operation(MARK, Action::Put(Value::json(value.to_string())));
            (vec![operation(key, Action::Delete), mark], None, None)
        }
        Request::Judged { key, .. } => (vec![put(key)], None, None),
        Request::Registry(_) | Request::StrongRead { .. } | Request::LocalRead { .. } | Request::Scan { .. } => {
            (Vec::new(), None, None)
        }
    };
    let key = operations.first().map(|operation: &Operation| operation.key.clone()).unwrap_or_default();
    let precondition = |revision| Precondition {
        asked_by: AskedBy::Client,
        space: Space::Kv,
        fact: Fact::Revision { key: key.clone(), revision },
    };
    let mut preconditions: Vec<_> = expected.into_iter().map(precondition).collect();
    let mut hook_epoch = None;
    if let Request::Judged { read, .. } = request {
        hook_epoch = Some(data.hook_epoch());
        preconditions.push(Precondition { asked_by: AskedBy::Plugin, space: Space::Kv, fact: fact(data, *read) });
    }
    let idempotency = name.map(|key| {
        let fingerprint = Fingerprint::of(&operations, &preconditions).unwrap();
        Idempotency { key, fingerprint, rewritten: false }
    });
    GuardedWrite { operations, preconditions, hook_epoch, proposed_at_ms, idempotency, ..GuardedWrite::default() }
}

/// The revision that a write gave the store; none if it changed nothing.
pub(super) fn applied_revision(outcome: &Outcome) -> Option<u64> {
    match outcome {
        Outcome::Applied { revision, effects } => {
            let changed = effects.iter().any(|effect| !matches!(effect, Effect::Deleted { existed: false }));
            changed.then_some(*revision)
        }
        _ => None,
    }
}
