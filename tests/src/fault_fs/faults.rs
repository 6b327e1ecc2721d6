//! What is wrong with a disk at the moment.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Reading of it.
    Read,
    /// Writing to it, or changing its length.
    Write,
    /// Making it durable.
    Sync,
}

/// What happens instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It fails with EIO.
    Fail,
    /// It takes longer.
    Delay(Duration),
    /// It says that it was done, and was not.
    Lie,
}

struct Fault {
    operation: Operation,
    under: PathBuf,
    effect: Effect,
}

/// All that is wrong.
#[derive(Default)]
pub(super) struct Faults {
    faults: Vec<Fault>,
    failed: usize,
}

impl Faults {
    pub(super) fn add(&mut self, operation: Operation, under: &Path, effect: Effect) {
        self.faults.push(Fault { operation, under: under.to_path_buf(), effect });
    }

    pub(super) fn clear(&mut self) {
        self.faults.clear();
    }

    /// What happens to an operation on a file. The last fault that was added counts.
    pub(super) fn on(&mut self, operation: Operation, path: &Path) -> Option<Effect> {
        let fits = |fault: &&Fault| fault.operation == operation && path.starts_with(&fault.under);
        let effect = self.faults.iter().rev().find(fits).map(|fault| fault.effect);
        self.failed += usize::from(effect == Some(Effect::Fail));
        effect
    }

    /// How many operations have failed so far.
    pub(super) fn failed(&self) -> usize {
        self.failed
    }
}
