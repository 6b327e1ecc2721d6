//! The Rust side of `wit/hooks.wit`, generated. The only place where bindings are generated.

#![allow(missing_docs, reason = "generated from wit/hooks.wit, where everything is documented")]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "plugin",
    // Writes are lent to the plugin, not copied for it; what comes back is owned.
    ownership: Borrowing { duplicate_if_necessary: false },
});
