//! A violation of an invariant, with the calls that prove it.

use std::fmt;
use std::sync::Arc;

use crate::history::Call;

/// A violation of an invariant.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The invariant.
    pub invariant: &'static str,
    /// The finding.
    pub what: String,
    /// The calls that prove it.
    pub calls: Vec<Arc<Call>>,
}

impl Violation {
    pub(super) fn new(invariant: &'static str, what: impl Into<String>, calls: &[&Arc<Call>]) -> Self {
        let mut calls: Vec<Arc<Call>> = calls.iter().map(|call| Arc::clone(call)).collect();
        calls.dedup_by_key(|call| call.id);
        Self { invariant, what: what.into(), calls }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.invariant, self.what)?;
        for call in &self.calls {
            write!(formatter, "\n    {}", call.describe())?;
        }
        Ok(())
    }
}
