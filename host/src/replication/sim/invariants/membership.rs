//! Membership: an acknowledged change of a member stays in force until another is requested.
//!
//! A request that was not acknowledged may take effect later. So a change is checked if it is the last one requested for its
//! node, and was requested long after the one before.

use std::sync::Arc;

use parking_lot::Mutex;

use super::Violation;
use crate::replication::Role;
use crate::replication::types::{Metrics, url_of};

const NAME: &str = "membership";

/// Time after which a request has no more effect, in milliseconds: its deadline, its last step, and the delays of both.
const EFFECT_MS_MAX: u64 = 8_000;

/// A requested change: the role that a node gets; none if it is removed.
#[derive(Debug)]
pub(in crate::replication::sim) struct Requested {
    pub(in crate::replication::sim) url: String,
    pub(in crate::replication::sim) role: Option<Role>,
    pub(in crate::replication::sim) at_ms: u64,
    pub(in crate::replication::sim) is_acknowledged: bool,
}

/// All requested changes, in order.
pub(in crate::replication::sim) type Changes = Arc<Mutex<Vec<Requested>>>;

pub(super) fn conclude(changes: &Changes, leader: &Metrics) -> Result<(), Violation> {
    let changes = changes.lock();
    let membership = leader.membership_config.membership();
    let voters: Vec<u64> = membership.voter_ids().collect();
    for (number, change) in changes.iter().enumerate().filter(|(_, change)| change.is_acknowledged) {
        let is_alone = |(other, found): (usize, &Requested)| {
            other == number || found.url != change.url || (other < number && found.at_ms + EFFECT_MS_MAX < change.at_ms)
        };
        if !changes.iter().enumerate().all(is_alone) {
            continue;
        }
        // A node that lost its disk is replaced by one with the same URL and role.
        let mut with_url = membership.nodes().filter(|(_, node)| url_of(node) == change.url).map(|(id, _)| *id);
        let holds = match change.role {
            None => with_url.next().is_none(),
            Some(Role::Learner) => with_url.next().is_some_and(|id| !voters.contains(&id)),
            Some(Role::Voter) => with_url.any(|id| voters.contains(&id)),
        };
        if !holds {
            return Err(Violation::new(NAME, format!("{change:?} was acknowledged; in force is {membership:?}")));
        }
    }
    Ok(())
}
