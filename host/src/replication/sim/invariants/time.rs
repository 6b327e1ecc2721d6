//! Time: the time that a node has applied never goes back, and is not later than a right clock by more than the bound, as long as the
//! clocks of a majority are right. After the faults it is not behind them either, and entries have times in the order of their revisions.

use std::collections::HashMap;

use super::{View, Violation};
use crate::limits::CLOCK_OFFSET_MAX;
use crate::replication::sim::{history::History, node::WALL_START_MS};
use crate::storage::{Data, RangeQuery};

const NAME: &str = "time";

/// Right clocks differ by this, since they run at different rates and are read from afar.
const UNCERTAINTY_MS: u64 = 2_000;

/// The last start and time of each node.
#[derive(Default)]
pub(super) struct Time {
    seen: HashMap<usize, (u64, u64)>,
    /// The first time that was seen.
    began_ms: Option<u64>,
}

fn allowance_ms() -> u64 {
    u64::try_from(CLOCK_OFFSET_MAX.as_millis()).unwrap() + UNCERTAINTY_MS
}

impl Time {
    pub(super) fn observe(&mut self, view: &View<'_>) -> Result<(), Violation> {
        if view.time_ms > WALL_START_MS + view.now_ms + allowance_ms() {
            let detail = format!("node {} has the time {} at {}", view.number, view.time_ms, view.now_ms);
            return Err(Violation::new(NAME, detail));
        }
        if view.time_ms > 0 {
            self.began_ms.get_or_insert(view.time_ms);
        }
        match self.seen.insert(view.number, (view.start, view.time_ms)) {
            Some((start, before)) if start == view.start && before > view.time_ms => {
                Err(Violation::new(NAME, format!("node {} went from {before} back to {}", view.number, view.time_ms)))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn conclude(&self, history: &History, datas: &[&Data]) -> Result<(), Violation> {
        let acknowledged = history.operations.iter().filter(|operation| operation.outcome().is_some());
        let last_ms = acknowledged.map(|operation| operation.called_ms).max().unwrap_or(0);
        // Time may stand still during faults. But the last write was made at rest, when the leader knew the clocks of all voters. Time
        // begins once all have answered at one moment, which faults may prevent.
        let newest_ms = self.seen.values().map(|(_, time_ms)| *time_ms).max().filter(|time_ms| *time_ms > 0);
        if let Some(newest_ms) = newest_ms
            && newest_ms + allowance_ms() < WALL_START_MS + last_ms
        {
            let detail = format!("the newest time is {newest_ms}, though a write began at {last_ms}");
            return Err(Violation::new(NAME, detail));
        }
        for data in datas {
            let page = data.scan(&RangeQuery::default()).map_err(|error| Violation::new(NAME, error.to_string()))?;
            let mut metas: Vec<_> = page.entries.iter().map(|entry| entry.meta).collect();
            metas.sort_by_key(|meta| meta.revision);
            // Before the first stamp, writes had the times of the nodes that received them.
            let settled_ms = self.began_ms.map_or(u64::MAX, |began_ms| began_ms + allowance_ms());
            let stamped: Vec<_> = metas.iter().filter(|meta| meta.updated_at_ms > settled_ms).collect();
            if let Some(meta) = stamped.iter().find(|meta| meta.created_at_ms > meta.updated_at_ms) {
                return Err(Violation::new(NAME, format!("{meta:?} was created after it was updated")));
            }
            if let Some(pair) = stamped.windows(2).find(|pair| pair[0].updated_at_ms > pair[1].updated_at_ms) {
                return Err(Violation::new(NAME, format!("times are not in the order of revisions: {pair:?}")));
            }
        }
        Ok(())
    }
}
