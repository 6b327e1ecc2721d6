//! The faults of a disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// A kind of operation on a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A read.
    Read,
    /// A write, or a change of the length.
    Write,
    /// A sync.
    Sync,
}

/// The effect of a fault on an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// The operation fails with EIO.
    Fail,
    /// The operation is delayed.
    Delay(Duration),
    /// The operation reports success without being done.
    Lie,
}

struct Fault {
    operation: Operation,
    under: PathBuf,
    effect: Effect,
}

/// The active faults of a disk.
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

    /// The effect on an operation on a file. Of several matching faults, the one added last wins.
    pub(super) fn effect_on(&mut self, operation: Operation, path: &Path) -> Option<Effect> {
        let matches = |fault: &&Fault| fault.operation == operation && path.starts_with(&fault.under);
        let effect = self.faults.iter().rev().find(matches).map(|fault| fault.effect);
        self.failed += usize::from(effect == Some(Effect::Fail));
        effect
    }

    /// Number of operations that a fault has failed so far.
    pub(super) fn failed(&self) -> usize {
        self.failed
    }
}
