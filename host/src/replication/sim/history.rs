//! The history of a simulation: the operations of its clients and their results.

use super::node::Node;
use crate::replication::{Error, WriteOutcome};
use crate::storage::Outcome;

/// A value that only one write writes.
pub(super) type Unique = usize;

/// The state of a key: the revision of its entry and its unique value; none without an entry.
pub(super) type Seen = Option<(u64, Unique)>;

#[derive(Debug, Clone)]
pub(super) enum Request {
    /// Sets keys to the operation's unique value, all or none.
    Put {
        keys: Vec<String>,
        /// The revision that the first key must have.
        expected: Option<Option<u64>>,
        name: Option<String>,
    },
    Delete {
        key: String,
    },
    /// Sets a key as hooks would: under the hook epoch of the node, if what a plugin read there still holds.
    Judged {
        key: String,
        read: PluginRead,
    },
    /// Changes the registry. If that changes the hooks, later writes that were judged before fail.
    Registry(RegistryChange),
    StrongRead {
        key: String,
    },
    /// Reads a key from the node's own state.
    LocalRead {
        key: String,
    },
    /// Reads all keys of clients at one moment, strongly or from the node's own state.
    Scan {
        strong: bool,
    },
}

/// A write of the registry.
#[derive(Debug, Clone, Copy)]
pub(super) enum RegistryChange {
    /// Stores a piece of a plugin. The hooks stay as they are.
    StorePiece,
    /// These two go with a record in the history, if hooks and history are as the node of the write knows them.
    SetHook,
    RemoveHook,
}

/// What a plugin read to judge a write.
#[derive(Debug, Clone, Copy)]
pub(super) enum PluginRead {
    Entry(&'static str),
    Existence(&'static str),
    Range,
}

/// The store's revision at one moment, and the keys of clients with their states.
#[derive(Debug, Clone)]
pub(super) struct Scanned {
    pub(super) revision: u64,
    pub(super) entries: Vec<(String, u64, Unique)>,
}

/// The result, as far as the client knows.
#[derive(Debug, Clone)]
pub(super) enum Response {
    Committed(Outcome),
    Read(Seen),
    Scanned(Scanned),
    Refused(Error),
    /// The node died, or the client stopped waiting.
    Lost,
}

#[derive(Debug, Clone)]
pub(super) struct Operation {
    /// Also the unique value, if it writes.
    pub(super) id: Unique,
    pub(super) client: u32,
    pub(super) node: usize,
    /// The number of the node's start.
    pub(super) start: u64,
    pub(super) request: Request,
    /// The positions of its call and return in the order of all calls and returns.
    pub(super) called: i64,
    pub(super) returned: Option<i64>,
    /// The world's time at the call.
    pub(super) called_ms: u64,
    pub(super) response: Option<Response>,
}

impl Operation {
    pub(super) fn is_write(&self) -> bool {
        match self.request {
            Request::Put { .. } | Request::Delete { .. } | Request::Judged { .. } | Request::Registry(_) => true,
            Request::StrongRead { .. } | Request::LocalRead { .. } | Request::Scan { .. } => false,
        }
    }

    /// The outcome of the write, if its client knows it; for a named write, of the first attempt that was applied.
    pub(super) fn outcome(&self) -> Option<&Outcome> {
        match &self.response {
            Some(Response::Committed(Outcome::Repeated { first, .. })) => Some(first),
            Some(Response::Committed(outcome)) => Some(outcome),
            _ => None,
        }
    }

    /// Whether the client was told that the write did not happen and never will.
    pub(super) fn is_denied(&self) -> bool {
        match &self.response {
            Some(Response::Refused(error)) => error.outcome() == WriteOutcome::NotWritten,
            _ => false,
        }
    }

    pub(super) fn name(&self) -> Option<&str> {
        match &self.request {
            Request::Put { name, .. } => name.as_deref(),
            _ => None,
        }
    }
}

/// All operations, in the order in which they were called.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) operations: Vec<Operation>,
    moments: i64,
}

impl History {
    /// Records a call; returns the operation's id.
    pub(super) fn call(&mut self, client: u32, node: &Node, request: Request, now_ms: u64) -> Unique {
        self.moments += 1;
        let id = self.operations.len();
        self.operations.push(Operation {
            id,
            client,
            node: node.number,
            start: node.starts,
            request,
            called: self.moments,
            returned: None,
            called_ms: now_ms,
            response: None,
        });
        id
    }

    /// The unique value of a write: its id, or the id of the first attempt for a named write.
    pub(super) fn value_of(&self, operation: &Operation) -> Unique {
        let Some(name) = operation.name() else { return operation.id };
        self.operations.iter().find(|other| other.name() == Some(name)).map_or(operation.id, |first| first.id)
    }

    /// Records the result of an operation; false if its client had given it up.
    pub(super) fn give_back(&mut self, id: Unique, response: Response) -> bool {
        self.moments += 1;
        let operation = &mut self.operations[id];
        if operation.response.is_some() {
            return false;
        }
        if !matches!(response, Response::Lost) {
            operation.returned = Some(self.moments);
        }
        operation.response = Some(response);
        true
    }
}
