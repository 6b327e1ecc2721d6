//! What all nodes of a cluster understand.

use serde::{Deserialize, Serialize};

/// A number that the nodes of a cluster share, and that only grows. A node writes nothing into the log, the state or a message that
/// needs a higher level than the cluster has, so nodes of two versions can run together, and an upgrade can be undone until the
/// level is raised.
///
/// | level | since then |
/// |---|---|
/// | 1 | everything before there were levels |
/// | 2 | the leader stamps each round with its time; remembered outcomes hold no values |
/// | 3 | a command beyond its bounds is refused when it is applied (see `usability`); a round that raises the level names it |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FeatureLevel(pub u32);

impl FeatureLevel {
    /// The level of a cluster that has never raised it.
    pub const FIRST: Self = Self(1);
    /// Rounds carry the leader's time.
    pub const STAMPED: Self = Self(2);
    /// Commands beyond their bounds are refused when they are applied.
    pub const CLOSED: Self = Self(3);
    /// The highest level that this version understands.
    pub const NEWEST: Self = Self::CLOSED;
}

impl Default for FeatureLevel {
    fn default() -> Self {
        Self::FIRST
    }
}

impl std::fmt::Display for FeatureLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.0, f)
    }
}
