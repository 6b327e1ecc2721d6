//! Configured once: what `configure` leaves in an instance becomes the start of all others.
//!
//! # Problem
//!
//! No write may see what another left in an instance, and each instance must know its hook's configuration. To configure it
//! anew is to compile a schema, or to import a language's modules, for every write.
//!
//! # Approach
//!
//! Pre-initialisation, by `wasmtime-wizer`. The component is instrumented so that its memories and globals can be read
//! from outside; one instance of it is configured; what it then holds is written into a copy of the component. Instances
//! of the copy begin where `configure` ended, and the system maps their memory when they touch it. If it can be, the copy is
//! also given what puts its instances back there after a call (see `rewindable`).
//!
//! # Guarantees
//!
//! A fresh instance of the image answers like one that was just configured. All state of WebAssembly is in memories,
//! globals and tables; a component that could change its tables is refused, and so is one that holds handles of WASI,
//! which end with their instance.
//!
//! # Failure model
//!
//! Where no image can be made, the reason is kept with the hook, and each of its instances is configured before its call,
//! as it is until the image is ready. That changes what a write costs and nothing else.
//!
//! # Cost
//!
//! Compiling the component once without optimisations, and its copy once with them, on threads of low priority, off
//! the way of writes. The copy is kept in the node's cache of compiled code.

use std::panic::{AssertUnwindSafe, catch_unwind};

use futures::FutureExt;
use sha2::{Digest, Sha256};
use wasmtime::component::{Component, Lift, WasmList};
use wasmtime_wizer::{ComponentInstanceState, Wizer};

use super::guest::{Allowance, Guest};
use super::hook::Hook;
use super::plugin::{Code, check_resources};
use super::rewind::Rewinder;
use super::rewindable::rewindable;
use super::runtime::Runtime;
use crate::limits;

/// What the instrumented instance needs beyond its hook's memory: a page of each memory, to be read from.
const HEADROOM_BYTES: usize = limits::PLUGIN_MEMORIES_MAX * 64 * 1024;

impl Runtime {
    /// Makes the image of a hook from its plugin's component, unless it has been tried before. From then on its calls
    /// start configured.
    ///
    /// Takes seconds if the component is large: call it on a thread that may.
    pub fn specialise(&self, hook: &Hook, component: &[u8]) {
        hook.specialise(|| {
            let key = key(hook);
            if let Some(cached) = self.core().cached(&key) {
                return ready(hook, &cached);
            }
            // The component comes from outside, and reading it is intricate: a panic is a reason like any other.
            let image = catch_unwind(AssertUnwindSafe(|| image(hook, component)));
            let image = image.unwrap_or_else(|_| Err("it cannot be instrumented".to_owned()))?;
            let compiled = self.core().compile(&key, &image)?;
            check_resources(&compiled).map_err(|mismatch| mismatch.to_string())?;
            ready(hook, &compiled)
        });
    }
}

/// An image that was compiled, and what puts its instances back if that can be done.
fn ready(hook: &Hook, compiled: &Component) -> Result<Code, String> {
    let core = hook.core();
    let mut code = Code::new(core, compiled).map_err(|mismatch| mismatch.to_string())?;
    code.rewinder = match core.rewinding() {
        Some(means) => Rewinder::new(means, &code, hook),
        None => Err("this node cannot".to_owned()),
    };
    if let Err(why) = &code.rewinder {
        tracing::debug!(hook = hook.name(), why, "each call starts an instance");
    }
    Ok(code)
}

/// The name of a hook's image in the cache: it is the same for the same code, configuration and random numbers.
pub(super) fn key(hook: &Hook) -> String {
    let mut hash = Sha256::new();
    for part in ["rewindable image", hook.name(), hook.plugin().digest(), hook.config()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The component with the hook's configuration in its memory.
fn image(hook: &Hook, component: &[u8]) -> Result<Vec<u8>, String> {
    let mut wizer = Wizer::new();
    // Everything that the component exports stays, `configure` included.
    wizer.keep_init_func(true);
    let (context, instrumented) = wizer.instrument_component(component).map_err(reason)?;
    let scratch = hook.core().scratch()?;
    let code = Code::new(&scratch, &scratch.compile("", &instrumented)?).map_err(|mismatch| mismatch.to_string())?;
    let allowance = hook.allowance();
    let allowance = Allowance {
        deadline: limits::PLUGIN_CONFIGURE_DEADLINE,
        memory_bytes: allowance.memory_bytes + HEADROOM_BYTES,
        ..allowance
    };
    let image = Guest::with(&scratch, &code, hook.speaker(), allowance, |guest| {
        hook.configure(guest).map_err(|error| error.to_string())?;
        if guest.has_handles() {
            return Err("it holds handles of WASI when it is configured, such as that of standard output".to_owned());
        }
        guest.live().expect_reading();
        let mut state = State { guest, failure: None };
        // Nothing in it waits: what it asks for is answered at once.
        let image = wizer.snapshot_component(&context, &mut state).now_or_never();
        match (state.failure, image) {
            (None, Some(image)) => image.map_err(reason),
            (Some(failure), _) => Err(failure),
            (None, None) => Err("its state cannot be read at once".to_owned()),
        }
    });
    let image = image.map_err(|error| error.to_string()).flatten()?;
    // Where its instances cannot be put back, each call starts one.
    Ok(rewindable(&image).unwrap_or_else(|why| {
        tracing::debug!(hook = hook.name(), why, "its instances cannot be put back");
        image
    }))
}

fn reason(error: impl std::fmt::Display) -> String {
    format!("{error:#}")
}

/// The state of an instrumented instance. The first failure is kept; what is read after it does not matter.
struct State<'a, 'b> {
    guest: &'a mut Guest<'b>,
    failure: Option<String>,
}

impl State<'_, '_> {
    fn read<R: Lift + 'static, T: Default>(
        &mut self,
        instance: &str,
        function: &str,
        take: impl FnOnce(R, &wasmtime::Store<super::guest::Call>) -> T,
    ) -> T {
        self.guest.read(instance, function, take).unwrap_or_else(|error| {
            self.failure.get_or_insert(format!("its state cannot be read: {error:#}"));
            T::default()
        })
    }
}

impl ComponentInstanceState for State<'_, '_> {
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
