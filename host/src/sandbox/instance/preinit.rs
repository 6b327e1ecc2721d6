//! Pre-initialization: what `configure` leaves in an instance becomes the initial state of all others.
//!
//! `wasmtime-wizer` instruments a component so that its memories and globals can be read from outside. One instance of it is
//! configured; what it then holds is written into a copy of the component. The system maps the memory of its instances when
//! they touch it. If possible, the copy is made resettable.
//!
//! A new instance of the copy answers like one that was just configured: all state of WebAssembly is in memories, globals and
//! tables. A component that could change its tables is refused, and so is an instance that holds handles of WASI, which end
//! with it.

use std::time::Duration;

use futures::FutureExt;
use wasmtime::Store;
use wasmtime::component::{Lift, WasmList};
use wasmtime_wizer::{ComponentContext, ComponentInstanceState, Wizer};

use super::super::host_state::{HostReads, HostState};
use super::Instance;
use super::resettable::resettable;

pub(crate) struct Instrumented<'a> {
    wizer: Wizer,
    context: ComponentContext<'a>,
    pub(crate) component: Vec<u8>,
    /// For each step of reading its state.
    deadline: Duration,
}

impl<'a> Instrumented<'a> {
    pub(crate) fn new(component: &'a [u8], deadline: Duration) -> Result<Self, String> {
        let mut wizer = Wizer::new();
        // The copy keeps all exports, `configure` included.
        wizer.keep_init_func(true);
        let (context, component) = wizer.instrument_component(component).map_err(reason)?;
        Ok(Self { wizer, context, component, deadline })
    }

    /// The pre-initialized copy of the component, from an instance of [`Self::component`] that has been configured. An error
    /// says why there can be none.
    pub(crate) fn snapshot<R: HostReads>(&self, instance: &mut Instance<R>) -> Result<Vec<u8>, String> {
        if instance.store.data().has_handles {
            return Err("it holds handles of WASI when it is configured, such as that of standard output".to_owned());
        }
        instance.lift_output_limit();
        let mut state = InstanceState { instance, failure: None, deadline: self.deadline };
        // Nothing in it waits: all reads are answered at once.
        let copy = self.wizer.snapshot_component(&self.context, &mut state).now_or_never();
        let copy = match (state.failure, copy) {
            (None, Some(copy)) => copy.map_err(reason)?,
            (Some(failure), _) => return Err(failure),
            (None, None) => return Err("its state cannot be read at once".to_owned()),
        };
        // Without that, each call starts an instance.
        Ok(resettable(&copy).unwrap_or_else(|reason| {
            tracing::debug!(reason, "instances of a pre-initialized plugin cannot be reset");
            copy
        }))
    }
}

fn reason(error: impl std::fmt::Display) -> String {
    format!("{error:#}")
}

/// The state of an instrumented instance. It keeps the first failure, after which the values read do not matter.
struct InstanceState<'a, R: 'static> {
    instance: &'a mut Instance<R>,
    failure: Option<String>,
    deadline: Duration,
}

impl<R: HostReads> InstanceState<'_, R> {
    /// Calls a function without arguments of an exported interface, and takes what it returns.
    fn read<V: Lift + 'static, T: Default>(
        &mut self,
        interface: &str,
        function: &str,
        take: impl FnOnce(V, &Store<HostState<R>>) -> T,
    ) -> T {
        match self.call(interface, function) {
            Ok(answer) => take(answer, &self.instance.store),
            Err(error) => {
                self.failure.get_or_insert(format!("its state cannot be read: {error:#}"));
                T::default()
            }
        }
    }

    fn call<V: Lift + 'static>(&mut self, interface: &str, function: &str) -> wasmtime::Result<V> {
        self.instance.set_deadline(self.deadline);
        let Instance { store, raw, .. } = &mut *self.instance;
        let missing = || wasmtime::format_err!("there is no {interface}#{function}");
        let (_, exports) = raw.get_export(&mut *store, None, interface).ok_or_else(missing)?;
        let (_, function) = raw.get_export(&mut *store, Some(&exports), function).ok_or_else(missing)?;
        let function = raw.get_typed_func::<(), (V,)>(&mut *store, function)?;
        Ok(function.call(store, ())?.0)
    }
}

impl<R: HostReads> ComponentInstanceState for InstanceState<'_, R> {
    async fn call_func_ret_list_u8(&mut self, instance: &str, function: &str, contents: impl FnOnce(&[u8]) + Send) {
        self.read(instance, function, |list: WasmList<u8>, store| contents(list.as_le_slice(store)));
    }

    async fn call_func_ret_s32(&mut self, instance: &str, function: &str) -> i32 {
        self.read(instance, function, |value, _| value)
    }

    async fn call_func_ret_s64(&mut self, instance: &str, function: &str) -> i64 {
        self.read(instance, function, |value, _| value)
    }

    async fn call_func_ret_f32(&mut self, instance: &str, function: &str) -> u32 {
        self.read(instance, function, |value: f32, _| value.to_bits())
    }

    async fn call_func_ret_f64(&mut self, instance: &str, function: &str) -> u64 {
        self.read(instance, function, |value: f64, _| value.to_bits())
    }
}
