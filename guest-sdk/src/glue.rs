//! The macros that export an author's type as a component, and the configured plugin that the exports call.

use std::cell::RefCell;

use serde::de::DeserializeOwned;

use crate::bindings::configured::exports::brink::hooks::configuration;
use crate::bindings::validating::brink::hooks::types;
use crate::{Invalid, Write, config};

/// The configured plugin of a component instance. For the macros of this crate only.
#[doc(hidden)]
pub struct State<P>(RefCell<Option<P>>);

impl<P> State<P> {
    /// A plugin that is not configured yet.
    pub const fn empty() -> Self {
        Self(RefCell::new(None))
    }

    /// Makes the plugin from its configuration. It replaces an earlier one.
    pub fn configure<C: DeserializeOwned>(
        &self,
        text: &str,
        make: impl FnOnce(C) -> Result<P, Invalid>,
    ) -> Result<(), configuration::Invalid> {
        let plugin = config::parse(text).and_then(make)?;
        self.0.replace(Some(plugin));
        Ok(())
    }

    /// Calls the plugin with the writes of one request.
    ///
    /// # Panics
    ///
    /// If the plugin is not configured, which means that the host broke the contract of `brink:hooks`.
    #[allow(clippy::panic, reason = "the interface has no other way to report a broken contract")]
    pub fn ask<A>(&self, call: &str, writes: Vec<types::Write>, ask: impl FnOnce(&P, &[Write]) -> A) -> A {
        match &*self.0.borrow() {
            Some(plugin) => ask(plugin, &Write::number(writes)),
            None => panic!("`{call}` was called before `configure` accepted a configuration"),
        }
    }
}

/// Exports a type that implements [`Validator`](crate::Validator). Use it once per crate; the crate must be a `cdylib`.
///
/// In native builds it exports nothing and only checks the type, so that tests can use it.
#[macro_export]
macro_rules! export_validator {
    ($plugin:ty) => {
        $crate::__export!($plugin, $crate::Validator, validate);
    };
}

/// Exports a type that implements [`Transformer`](crate::Transformer). Use it once per crate; the crate must be a `cdylib`.
///
/// In native builds it exports nothing and only checks the type, so that tests can use it.
#[macro_export]
macro_rules! export_transformer {
    ($plugin:ty) => {
        $crate::__export!($plugin, $crate::Transformer, transform);
    };
}

/// Exports a type that implements [`Plugin`](crate::Plugin), in both roles. Use it once per crate; the crate must be a
/// `cdylib`.
///
/// In native builds it exports nothing and only checks the type, so that tests can use it.
#[macro_export]
macro_rules! export_plugin {
    ($plugin:ty) => {
        $crate::__export!($plugin, $crate::Plugin, validate, transform);
    };
}

/// Exports `configuration` and the given functions of `$role`.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($plugin:ty, $role:path, $($function:ident),+) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            struct Exports;

            ::std::thread_local! {
                static STATE: $crate::__State<$plugin> = const { $crate::__State::empty() };
            }

            impl $crate::bindings::configured::exports::brink::hooks::configuration::Guest for Exports {
                fn configure(
                    config: ::std::string::String,
                ) -> ::std::result::Result<
                    (),
                    $crate::bindings::configured::exports::brink::hooks::configuration::Invalid,
                > {
                    STATE.with(|state| state.configure(&config, <$plugin as $role>::configure))
                }
            }

            $crate::bindings::configured::export_configuration!(
                Exports with_types_in $crate::bindings::configured
            );
            $($crate::__export_role!($function, $plugin, $role);)+
        };

        #[cfg(not(target_arch = "wasm32"))]
        const _: () = {
            $(let _ = <$plugin as $role>::$function;)+
        };
    };
}

/// Implements one role for the `Exports` of [`__export!`], with its `STATE`.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_role {
    (validate, $plugin:ty, $role:path) => {
        impl $crate::bindings::validating::exports::brink::hooks::validator::Guest for Exports {
            fn validate(
                writes: ::std::vec::Vec<$crate::bindings::validating::brink::hooks::types::Write>,
            ) -> ::std::result::Result<(), $crate::Rejection> {
                STATE.with(|state| state.ask("validate", writes, <$plugin as $role>::validate))
            }
        }

        $crate::bindings::validating::export_validator!(Exports with_types_in $crate::bindings::validating);
    };
    (transform, $plugin:ty, $role:path) => {
        impl $crate::bindings::transforming::exports::brink::hooks::transformer::Guest for Exports {
            fn transform(
                writes: ::std::vec::Vec<$crate::bindings::validating::brink::hooks::types::Write>,
            ) -> ::std::result::Result<::std::vec::Vec<$crate::Replacement>, $crate::Rejection> {
                STATE.with(|state| state.ask("transform", writes, <$plugin as $role>::transform))
            }
        }

        $crate::bindings::transforming::export_transformer!(Exports with_types_in $crate::bindings::transforming);
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_configuration_takes_the_place_of_the_earlier() {
        let state = State::empty();
        for limit in ["1", "2"] {
            state.configure(limit, |limit: u8| Ok(limit)).unwrap();
            assert_eq!(state.ask("validate", Vec::new(), |limit, _| limit.to_string()), limit);
        }
        assert!(state.configure("\"x\"", |limit: u8| Ok(limit)).is_err());
    }

    #[test]
    #[should_panic(expected = "`validate` was called before `configure`")]
    fn a_call_before_configure_stops_with_a_clear_message() {
        State::<u8>::empty().ask("validate", Vec::new(), |_, _| ());
    }
}
