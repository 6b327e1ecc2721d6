//! What a node needs to reset instances: the map of its pages, and a budget of memory.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::pages::PageMap;
use crate::limits;

/// What a node needs to reset instances.
pub(crate) struct ResetSupport {
    pub(super) pages: PageMap,
    /// One permit for each MiB of waiting instances, and of initial memories.
    budget: Arc<Semaphore>,
}

impl ResetSupport {
    /// The support of this system; `None`, with a line in the log, if it has none.
    pub(crate) fn find() -> Option<Arc<Self>> {
        let pages = PageMap::open();
        let pages = pages.map_err(|error| tracing::debug!(%error, "plugin instances are not reset")).ok()?;
        let budget = Arc::new(Semaphore::new(limits::PLUGIN_KEPT_MIB_MAX));
        Some(Arc::new(Self { pages, budget }))
    }

    /// Takes this much memory from the budget, if there is enough.
    pub(super) fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.div_ceil(1 << 20)).ok()?;
        Arc::clone(&self.budget).try_acquire_many_owned(permits.max(1)).ok()
    }
}
