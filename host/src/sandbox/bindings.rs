//! The Rust side of `wit/hooks.wit`, generated. Bindings are generated nowhere else in the host.

#![allow(missing_docs, reason = "generated from wit/hooks.wit, where everything is documented")]

/// The version of `brink:hooks` that this node serves.
pub const HOOKS_VERSION: &str = "0.1.0";

wasmtime::component::bindgen!({
    path: "../wit",
    world: "plugin",
    // Writes are lent to the plugin, not copied for it; answers are owned.
    ownership: Borrowing { duplicate_if_necessary: false },
});
