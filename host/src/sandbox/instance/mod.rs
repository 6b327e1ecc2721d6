//! Instances: started once, and reset after each call instead of started anew.
//!
//! # Problem
//!
//! No call may see what another call left in an instance. A new instance for each call is the simple way to that, and most of
//! what a short call costs: wasmtime builds its own data anew, and all of it is cold in the processor's caches. Configuring
//! each new instance costs still more: compiling a schema, or importing the modules of a language runtime.
//!
//! # Approach
//!
//! - `preinit` *pre-initializes* a component with wizer: `configure` runs once, and what it leaves in memory and globals
//!   becomes the initial state of a copy of the component. Instances of the copy are configured from their start.
//! - `resettable` adds a module to that copy which saves the globals when an instance starts, and can restore them.
//! - `reset` restores an instance after a call: its globals by that module, and of its memory the pages that the call wrote
//!   to. `pages` asks Linux for them (`PAGEMAP_SCAN`), unless the thread had no page fault since the last look: then there are no
//!   new ones.
//! - `pool` keeps reset instances for the next calls, one for each thread.
//!
//! # Guarantees
//!
//! An instance that was reset cannot be told from a new one by the code that runs in it: `resettable` refuses a component
//! that has state other than the globals and the pages of one memory. Only an instance whose call succeeded is reset. An
//! instance is dropped after a trap, a missed deadline or a refused growth; when its memory has grown; when it was given
//! handles of WASI; when it wrote to more than [`PLUGIN_KEPT_WRITTEN_BYTES_MAX`](crate::limits::PLUGIN_KEPT_WRITTEN_BYTES_MAX);
//! and when the system does not say which pages were written to.
//!
//! In debug builds, which all tests are, every reset compares the whole memory with the initial memory.
//!
//! # Failure model
//!
//! A component that cannot be pre-initialized is configured before each call, and one that cannot be reset starts an instance
//! for each call. Only the cost differs.
//!
//! # Cost
//!
//! A reset takes 1 µs, plus copies of the pages that the instance has written to since it started, and one more system call
//! after a page fault. A call of a plugin in Python takes 31 µs instead of 1,200: its memory of 13 MiB need not be mapped and
//! copied anew.

mod pages;
mod pool;
mod preinit;
mod reset;
mod resettable;

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use wasmtime::Store;
use wasmtime::component::{TypedFunc, WasmList};

use self::pages::Faults;
pub(super) use self::pool::Pool;
pub(super) use self::preinit::Instrumented;
pub(super) use self::reset::{ResetSupport, Resetter};
use super::component::{Exports, LinkedComponent};
use super::host_state::{HostReads, HostState, Random};
use super::limiter::{CallLimits, Limiter};
use super::lines::Lines;
use super::ticker::Ticker;

pub(super) struct Instance<R: 'static> {
    pub(super) store: Store<HostState<R>>,
    raw: wasmtime::component::Instance,
    /// Found at the first call.
    exports: Option<Exports>,
    /// How to reset it; found at its first reset.
    reset_state: Option<ResetState>,
}

struct ResetState {
    restore_globals: TypedFunc<(), ()>,
    memory: WasmList<u8>,
    /// The chunks of the memory (see `reset`) that the instance has written to since it started, in order.
    written: Vec<usize>,
    /// The page faults before `written` was found; `None` if they could not be counted.
    faults: Option<Faults>,
    _reserved: OwnedSemaphorePermit,
}

impl<R: HostReads> Instance<R> {
    /// Starts an instance. Its initialization runs under the limits of a call. An error comes with the state that explains
    /// it.
    pub(super) fn start(
        component: &LinkedComponent<R>,
        limits: CallLimits,
        random_seed: u64,
    ) -> Result<Self, (wasmtime::Error, Store<HostState<R>>)> {
        let state = HostState {
            lines: Lines::default(),
            random: Random(random_seed),
            has_handles: false,
            limiter: Limiter::new(limits.memory_bytes),
            reads: R::default(),
        };
        let mut store = Store::new(component.pre.engine(), state);
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(limits.output_bytes);
        // IMPORTANT: without a deadline the first check of the epoch traps.
        store.set_epoch_deadline(Ticker::ticks(limits.deadline));
        match component.pre.instantiate(&mut store) {
            Ok(raw) => Ok(Self { store, raw, exports: None, reset_state: None }),
            Err(error) => Err((error, store)),
        }
    }

    /// Prepares a reset instance for another call, as a new one is prepared. `None`: a new one could not start, because the
    /// initial memory exceeds the limit.
    pub(super) fn renew(mut self, limits: CallLimits, random_seed: u64) -> Option<Self> {
        self.store.set_hostcall_fuel(limits.output_bytes);
        self.set_deadline(limits.deadline);
        let state = self.store.data_mut();
        state.lines = Lines::default();
        state.random = Random(random_seed);
        state.limiter.renew(limits.memory_bytes).then_some(self)
    }

    /// What the instance exports, and the store to call it in. Fails if an export has not the type it should have.
    pub(super) fn exports(
        &mut self,
        component: &LinkedComponent<R>,
    ) -> wasmtime::Result<(&mut Store<HostState<R>>, &Exports)> {
        let exports = match &mut self.exports {
            Some(exports) => exports,
            unknown => unknown.insert(component.exports(&mut self.store, &self.raw)?),
        };
        Ok((&mut self.store, exports))
    }

    /// Lets the guest run for this long from now on.
    pub(super) fn set_deadline(&mut self, deadline: Duration) {
        self.store.set_epoch_deadline(Ticker::ticks(deadline));
    }

    /// Lets the host read the whole memory from now on, which is not output of the guest.
    fn lift_output_limit(&mut self) {
        self.store.set_hostcall_fuel(usize::MAX);
    }
}
