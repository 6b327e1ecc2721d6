//! What the clients of a simulation did and saw.

use crate::replication::{Error, WriteOutcome};
use crate::storage::Outcome;

/// A value that one write alone writes.
pub(super) type Unique = u64;

/// A key as it was read or written: the revision of its entry and its unique value; none if it had no entry.
pub(super) type Seen = Option<(u64, Unique)>;

/// What a client asked for.
#[derive(Debug, Clone)]
pub(super) enum Request {
    /// Sets keys to the operation's unique value, all or none.
    Put {
        keys: Vec<String>,
        /// The revision that the first key must have for that.
        expected: Option<Option<u64>>,
        /// The name that the client gave the write.
        name: Option<String>,
    },
    /// Removes a key.
    Delete { key: String },
    /// Reads a key so that the result is linearizable.
    StrongRead { key: String },
    /// Reads what the node has.
    LocalRead { key: String },
}

/// What came of it, as far as the client knows.
#[derive(Debug, Clone)]
pub(super) enum Response {
    /// The write was committed, with this outcome.
    Committed(Outcome),
    /// The read saw this.
    Read(Seen),
    /// The write or read was refused.
    Refused(Error),
    /// The node died, or the client lost patience.
    Lost,
}

/// One operation of one client.
#[derive(Debug, Clone)]
pub(super) struct Operation {
    /// Also the unique value, if it writes.
    pub(super) id: Unique,
    pub(super) client: u32,
    /// The node that it was sent to.
    pub(super) node: usize,
    pub(super) request: Request,
    /// Where in the order of all calls and returns it was called and returned.
    pub(super) called: i64,
    pub(super) returned: Option<i64>,
    /// The world's clock at these moments.
    pub(super) called_ms: u64,
    pub(super) response: Option<Response>,
}

impl Operation {
    /// Whether the operation writes something.
    pub(super) fn is_write(&self) -> bool {
        matches!(self.request, Request::Put { .. } | Request::Delete { .. })
    }

    /// The first outcome of the write, if its client knows it; the first one of its name, if it has one.
    pub(super) fn outcome(&self) -> Option<&Outcome> {
        match &self.response {
            Some(Response::Committed(Outcome::Repeated { first, .. })) => Some(first),
            Some(Response::Committed(outcome)) => Some(outcome),
            _ => None,
        }
    }

    /// Whether the client was told that the write has not happened and never will.
    pub(super) fn is_denied(&self) -> bool {
        match &self.response {
            Some(Response::Refused(error)) => error.outcome() == WriteOutcome::NotWritten,
            _ => false,
        }
    }

    /// The name of the write.
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
    /// Notes a call; returns the operation's id.
    pub(super) fn call(&mut self, client: u32, node: usize, request: Request, now_ms: u64) -> Unique {
        self.moments += 1;
        let id = self.operations.len() as u64;
        let operation = Operation {
            id,
            client,
            node,
            request,
            called: self.moments,
            returned: None,
            called_ms: now_ms,
            response: None,
        };
        self.operations.push(operation);
        id
    }

    /// The unique value that a write writes: its id, or if its name was sent before, the id of the first sending.
    pub(super) fn value_of(&self, operation: &Operation) -> Unique {
        let Some(name) = operation.name() else { return operation.id };
        self.operations.iter().find(|other| other.name() == Some(name)).map_or(operation.id, |first| first.id)
    }

    /// Notes what an operation came to; nothing, if its client had given it up.
    pub(super) fn give_back(&mut self, id: Unique, response: Response) -> bool {
        self.moments += 1;
        let moments = self.moments;
        let Some(operation) = usize::try_from(id).ok().and_then(|id| self.operations.get_mut(id)) else { return false };
        if operation.response.is_some() {
            return false;
        }
        if !matches!(response, Response::Lost) {
            operation.returned = Some(moments);
        }
        operation.response = Some(response);
        true
    }
}
