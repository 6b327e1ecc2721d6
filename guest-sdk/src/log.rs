//! Writing to the node's log. Each line carries plugin, hook and trace id.
//!
//! ```
//! use brink_guest::log;
//!
//! let found = 3;
//! log::info!("{found} orders");
//! log::warn!("{} of them are late", 1);
//! ```
//!
//! Text beyond 4 KiB a line or 64 lines a call is dropped. In native builds, `mock::take_lines` returns the lines.

#[cfg(target_arch = "wasm32")]
use crate::bindings::validating::brink::hooks::log as node;
pub use crate::bindings::validating::brink::hooks::log::Level;
#[cfg(not(target_arch = "wasm32"))]
use crate::mock as node;
#[doc(inline)]
pub use crate::{__log_debug as debug, __log_error as error, __log_info as info, __log_warn as warn};

/// Writes one line.
pub fn write(level: Level, message: &str) {
    node::write(level, message);
}

/// Writes one line of level `debug`, formatted as by [`format!`].
#[macro_export]
#[doc(hidden)]
macro_rules! __log_debug {
    ($($message:tt)+) => { $crate::log::write($crate::log::Level::Debug, &::std::format!($($message)+)) };
}

/// Writes one line of level `info`, formatted as by [`format!`].
#[macro_export]
#[doc(hidden)]
macro_rules! __log_info {
    ($($message:tt)+) => { $crate::log::write($crate::log::Level::Info, &::std::format!($($message)+)) };
}

/// Writes one line of level `warn`, formatted as by [`format!`].
#[macro_export]
#[doc(hidden)]
macro_rules! __log_warn {
    ($($message:tt)+) => { $crate::log::write($crate::log::Level::Warn, &::std::format!($($message)+)) };
}

/// Writes one line of level `error`, formatted as by [`format!`].
#[macro_export]
#[doc(hidden)]
macro_rules! __log_error {
    ($($message:tt)+) => { $crate::log::write($crate::log::Level::Error, &::std::format!($($message)+)) };
}
