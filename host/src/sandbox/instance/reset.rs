//! Resetting an instance: its globals and its memory become what they were when it started.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use wasmtime::component::{ComponentExportIndex, WasmList};

use super::super::component::LinkedComponent;
use super::super::host_state::HostReads;
use super::pages::{Faults, PageMap, Pages, RUNS_MAX, drop_pages, forbid_huge_pages};
use super::resettable::{MEMORY, RESTORE_GLOBALS};
use super::{Instance, ResetState};
use crate::limits;

/// How long restoring the globals may take. It is a few instructions.
const RESTORE_DEADLINE: Duration = Duration::from_secs(1);

/// What a node needs to reset instances: the map of its pages, and a budget of memory.
pub(crate) struct ResetSupport {
    pages: PageMap,
    /// One permit for each MiB of waiting instances, and of initial memories.
    budget: Arc<Semaphore>,
}

/// Resets the instances of one pre-initialized component.
pub(crate) struct Resetter {
    support: Arc<ResetSupport>,
    /// The exports that `resettable` added.
    restore_globals: ComponentExportIndex,
    memory: ComponentExportIndex,
    initial: InitialMemory,
    _reserved: OwnedSemaphorePermit,
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
    fn reserve(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.div_ceil(1 << 20)).ok()?;
        Arc::clone(&self.budget).try_acquire_many_owned(permits.max(1)).ok()
    }
}

impl Resetter {
    /// Finds what `resettable` added to a component that was pre-initialized from `plugin`, and copies the initial memory from
    /// an instance that has just started. The caller drops the instance, which must not run any more. An error says why no
    /// instance will be reset.
    pub(crate) fn new<R: HostReads>(
        support: &Arc<ResetSupport>,
        plugin: &LinkedComponent<R>,
        pre_initialized: &LinkedComponent<R>,
        instance: &mut Instance<R>,
    ) -> Result<Self, String> {
        // IMPORTANT: only exports that `resettable` added may be called. It adds none to a plugin that has such exports itself.
        let plugin = plugin.pre.component();
        if [RESTORE_GLOBALS, MEMORY].iter().any(|name| plugin.get_export_index(None, name).is_some()) {
            return Err("it has exports of its own that are named like ours".to_owned());
        }
        let missing = "it may have state that cannot be reached (the log of its pre-initialization has the reason, at level debug)";
        let find = |name| pre_initialized.pre.component().get_export_index(None, name).ok_or(missing);
        let (restore_globals, memory_export) = (find(RESTORE_GLOBALS)?, find(MEMORY)?);
        let memory = memory_of(instance, memory_export).map_err(|error| format!("{error:#}"))?;
        let memory = memory.as_le_slice(&instance.store);
        let initial = InitialMemory::of(memory);
        #[allow(unsafe_code, reason = "the instance ends here")]
        // SAFETY: the instance does not run any more, and nobody else refers to its memory.
        unsafe {
            drop_pages(memory.as_ptr_range());
        }
        let reserved = support.reserve(initial.bytes());
        let reserved = reserved.ok_or("other hooks have all the memory that a node keeps for that")?;
        let support = Arc::clone(support);
        Ok(Self { support, restore_globals, memory: memory_export, initial, _reserved: reserved })
    }

    /// Resets an instance. `false`: it cannot be reset.
    pub(super) fn reset<R: HostReads>(&self, instance: &mut Instance<R>) -> wasmtime::Result<bool> {
        let host = instance.store.data();
        let has_grown = host.limiter.memory_bytes() != self.initial.bytes() || host.limiter.refused().is_some();
        if has_grown || host.has_handles {
            return Ok(false);
        }
        instance.set_deadline(RESTORE_DEADLINE);
        let known = instance.reset_state.take();
        let Some(mut state) = known.map_or_else(|| self.find_state(instance), |state| Ok(Some(state)))? else {
            return Ok(false);
        };
        state.restore_globals.call(&mut instance.store, ())?;
        let memory = state.memory.as_le_slice(&instance.store).as_ptr_range();
        let faults = Faults::of_this_thread();
        if (faults.is_none() || faults != state.faults)
            && !self.find_written(memory.start.addr()..memory.end.addr(), &mut state.written)?
        {
            return Ok(false);
        }
        state.faults = faults;
        #[allow(unsafe_code, reason = "the guest's memory is not accessible otherwise")]
        // SAFETY: the instance is borrowed exclusively and does not run. Its memory begins at this address and has as many
        // bytes as the initial memory, because it has not grown (checked above). The system owns the memory, and compiled code,
        // unknown to the language, writes to it by its address; so does this.
        unsafe {
            let memory = std::ptr::with_exposed_provenance_mut(memory.start.expose_provenance());
            self.initial.restore(memory, &state.written);
        }
        debug_assert!(self.initial == InitialMemory::of(state.memory.as_le_slice(&instance.store)), "it is as it was");
        instance.reset_state = Some(state);
        Ok(true)
    }

    /// Finds the chunks of a memory that were written to. `false`: there are too many, or the system does not say.
    fn find_written(&self, memory: Range<usize>, written: &mut Vec<usize>) -> wasmtime::Result<bool> {
        written.clear();
        let mut found = [Pages::default(); RUNS_MAX];
        let mut at = memory.start;
        while at < memory.end {
            let (runs, end) = self.support.pages.written(at..memory.end, &mut found)?;
            for pages in runs {
                let range = pages.range();
                let chunks = (range.start - memory.start) / CHUNK_BYTES..(range.end - memory.start) / CHUNK_BYTES;
                written.extend(chunks.filter(|chunk| !pages.are_zero() || self.initial.has(*chunk)));
            }
            if end <= at || written.len() * CHUNK_BYTES > limits::PLUGIN_KEPT_WRITTEN_BYTES_MAX {
                return Ok(false);
            }
            at = end;
        }
        Ok(true)
    }

    /// Finds what it takes to reset an instance for the first time. `None`: too much memory waits already.
    fn find_state<R: HostReads>(&self, instance: &mut Instance<R>) -> wasmtime::Result<Option<ResetState>> {
        let Some(reserved) = self.support.reserve(self.initial.bytes()) else { return Ok(None) };
        let restore_globals = instance.raw.get_typed_func(&mut instance.store, self.restore_globals)?;
        let memory = memory_of(instance, self.memory)?;
        forbid_huge_pages(memory.as_le_slice(&instance.store).as_ptr_range())?;
        Ok(Some(ResetState { restore_globals, memory, written: Vec::new(), faults: None, _reserved: reserved }))
    }
}

/// Where the memory of an instance is, by the export that says so.
fn memory_of<R: HostReads>(instance: &mut Instance<R>, export: ComponentExportIndex) -> wasmtime::Result<WasmList<u8>> {
    instance.lift_output_limit();
    let memory = instance.raw.get_typed_func::<(), (WasmList<u8>,)>(&mut instance.store, export)?;
    Ok(memory.call(&mut instance.store, ())?.0)
}

/// Bytes of a chunk. A page of the system is one chunk, or several.
const CHUNK_BYTES: usize = 4096;

/// The memory of an instance that has just started, in chunks. Chunks of zeros are left out.
#[derive(PartialEq)]
pub(super) struct InitialMemory(Vec<Option<Box<[u8; CHUNK_BYTES]>>>);

impl InitialMemory {
    fn of(memory: &[u8]) -> Self {
        // A memory consists of pages of 64 KiB.
        let (chunks, _) = memory.as_chunks::<CHUNK_BYTES>();
        Self(chunks.iter().map(|chunk| (*chunk != [0; CHUNK_BYTES]).then(|| Box::new(*chunk))).collect())
    }

    fn bytes(&self) -> usize {
        self.0.len() * CHUNK_BYTES
    }

    /// Whether a chunk has other bytes than zeros.
    fn has(&self, chunk: usize) -> bool {
        self.0.get(chunk).is_some_and(Option::is_some)
    }

    /// Restores some chunks of a memory.
    ///
    /// # Safety
    ///
    /// At `memory` are as many bytes as this has, which nobody else refers to.
    #[allow(unsafe_code, reason = "the guest's memory is not accessible otherwise")]
    unsafe fn restore(&self, memory: *mut u8, chunks: &[usize]) {
        for index in chunks {
            let Some(chunk) = self.0.get(*index) else { continue };
            // SAFETY: the chunk is one of ours, so there is memory for it, as the caller guarantees.
            unsafe {
                let at = memory.add(index * CHUNK_BYTES);
                match chunk {
                    Some(chunk) => chunk.as_ptr().copy_to_nonoverlapping(at, CHUNK_BYTES),
                    None => at.write_bytes(0, CHUNK_BYTES),
                }
            }
        }
    }
}
