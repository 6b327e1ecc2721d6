//! The hooks in force: an immutable set per epoch, and the current one.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use super::error::Error;
use super::hook::Hook;
use crate::storage::command::Operation;

/// The hooks in force at one epoch, in the order in which they run.
#[derive(Debug, Default)]
pub struct Set {
    epoch: u64,
    hooks: Vec<Hook>,
}

impl Set {
    /// The hooks of an epoch.
    pub fn new(epoch: u64, mut hooks: Vec<Hook>) -> Self {
        hooks.sort_by(|a, b| (a.binding().order, a.name()).cmp(&(b.binding().order, b.name())));
        Self { epoch, hooks }
    }

    /// The store's revision at which the hooks last changed.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The hooks, in the order in which they run.
    pub fn hooks(&self) -> &[Hook] {
        &self.hooks
    }

    /// Whether any hook matches any of the operations.
    pub fn matches(&self, operations: &[Operation]) -> bool {
        self.hooks.iter().any(|hook| operations.iter().any(|operation| hook.binding().matches(operation)))
    }
}

/// The set in force on a node; at first without hooks, at epoch 0. Cheap to clone; all clones see the same.
#[derive(Debug, Clone, Default)]
pub struct Active(Arc<watch::Sender<Arc<Set>>>);

impl Active {
    /// The set in force.
    pub fn current(&self) -> Arc<Set> {
        Arc::clone(&self.0.borrow())
    }

    /// Signals when another set is in force.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Set>> {
        self.0.subscribe()
    }

    /// Puts a set in force, unless one of a later epoch already is. Judgements under way end under the set they
    /// started with, and their epoch shows that when the write is applied (P6).
    pub fn replace(&self, set: Set) {
        self.0.send_if_modified(|current| {
            let is_newer = set.epoch >= current.epoch;
            if is_newer {
                *current = Arc::new(set);
            }
            is_newer
        });
    }

    /// Waits until a set of this epoch or a later one is in force; fails with [`Error::EpochWait`] at the deadline.
    pub async fn wait_for(&self, epoch: u64, deadline: Instant) -> Result<Arc<Set>, Error> {
        let mut receiver = self.0.subscribe();
        let waited = tokio::time::timeout_at(deadline.into(), receiver.wait_for(|set| set.epoch >= epoch)).await;
        match waited {
            Ok(Ok(set)) => Ok(Arc::clone(&set)),
            _ => Err(Error::EpochWait(epoch)),
        }
    }
}
