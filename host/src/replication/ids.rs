//! Ids of nodes and clusters.

use std::fmt;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

/// The id of a cluster: a random number, the same on all its nodes forever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterId(NonZeroU64);

impl ClusterId {
    pub(super) fn random() -> Self {
        Self(NonZeroU64::MIN.saturating_add(fastrand::u64(..u64::MAX)))
    }

    /// The id as a number.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The id with a number from [`ClusterId::get`]; none for 0.
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The node id derived from a base URL: the first eight bytes of its SHA-256. All nodes derive the same ids from the
/// same URLs, so forming a cluster needs no init command.
pub fn node_id(url: &str) -> u64 {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(url.as_bytes());
    digest.iter().take(8).fold(0, |id, byte| (id << 8) | u64::from(*byte))
}

/// A random node id, which no node has ever had.
pub(super) fn new_node_id() -> u64 {
    fastrand::u64(1..)
}
