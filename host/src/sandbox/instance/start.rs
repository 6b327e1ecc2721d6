//! One instance of a component: started, and prepared for each call.

use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use wasmtime::Store;
use wasmtime::component::{Lift, TypedFunc, WasmList};

use super::super::component::LinkedComponent;
use super::super::host_state::{HostReads, HostState};
use super::super::limiter::CallLimits;
use super::super::ticker::Ticker;

/// An instance, and what belongs to it.
pub(crate) struct Instance<R: 'static> {
    pub(crate) store: Store<HostState<R>>,
    pub(crate) raw: wasmtime::component::Instance,
    /// How to reset it; found at its first reset.
    pub(super) reset_state: Option<ResetState>,
}

/// What it takes to reset one instance.
pub(super) struct ResetState {
    /// Restores the globals.
    pub(super) restore_globals: TypedFunc<(), ()>,
    /// The whole memory.
    pub(super) memory: WasmList<u8>,
    /// The chunks of the memory (see `reset`) that the instance has written to since it started, in order.
    pub(super) written: Vec<usize>,
    /// The thread's page faults when `written` was complete; `None` if they could not be counted.
    pub(super) faults: Option<i64>,
    pub(super) _reserved: OwnedSemaphorePermit,
}

impl<R: HostReads> Instance<R> {
    /// Starts an instance. Its initialization runs under the limits of a call. An error comes with the state that explains
    /// it.
    pub(crate) fn start(
        component: &LinkedComponent<R>,
        limits: CallLimits,
        random_seed: u64,
    ) -> Result<Self, (wasmtime::Error, Store<HostState<R>>)> {
        let mut store = Store::new(component.pre.engine(), HostState::new(limits, random_seed));
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(limits.output_bytes);
        // IMPORTANT: without a deadline the first check of the epoch traps.
        store.set_epoch_deadline(Ticker::ticks(limits.deadline));
        match component.pre.instantiate(&mut store) {
            Ok(raw) => Ok(Self { store, raw, reset_state: None }),
            Err(error) => Err((error, store)),
        }
    }

    /// Prepares a reset instance for another call, as a new one is prepared. `None`: a new one could not start, because the
    /// initial memory exceeds the limit.
    pub(crate) fn renew(mut self, limits: CallLimits, random_seed: u64) -> Option<Self> {
        self.store.set_hostcall_fuel(limits.output_bytes);
        self.set_deadline(limits.deadline);
        self.store.data_mut().renew(limits, random_seed).then_some(self)
    }

    /// Lets the guest run for this long from now on.
    pub(crate) fn set_deadline(&mut self, deadline: Duration) {
        self.store.set_epoch_deadline(Ticker::ticks(deadline));
    }

    /// Lets the host read the whole memory from now on, which is not output of the guest.
    pub(super) fn lift_output_limit(&mut self) {
        self.store.set_hostcall_fuel(usize::MAX);
    }

    /// Calls a function without arguments of an exported interface, and takes what it returns.
    pub(super) fn read<V: Lift + 'static, T>(
        &mut self,
        interface: &str,
        function: &str,
        take: impl FnOnce(V, &Store<HostState<R>>) -> T,
    ) -> wasmtime::Result<T> {
        let missing = || wasmtime::format_err!("there is no {interface}#{function}");
        let (_, exports) = self.raw.get_export(&mut self.store, None, interface).ok_or_else(missing)?;
        let (_, function) = self.raw.get_export(&mut self.store, Some(&exports), function).ok_or_else(missing)?;
        let function = self.raw.get_typed_func::<(), (V,)>(&mut self.store, function)?;
        let (answer,) = function.call(&mut self.store, ())?;
        Ok(take(answer, &self.store))
    }
}
