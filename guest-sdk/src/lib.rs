//! Write plugins for brink in Rust.
//!
//! A plugin sees every write under its prefix before the cluster commits it. A [`Validator`] accepts or refuses writes, a
//! [`Transformer`] rewrites values, a [`Plugin`] does both. Implement one of the three, export it, and build for
//! `wasm32-wasip2`: the result is a component for `brink plugin deploy`. A rule about one value needs only a function over
//! a type of yours:
//!
//! ```
//! use brink_guest::Verdict;
//!
//! #[derive(serde::Deserialize)]
//! struct User { name: String, age: u8 }
//!
//! fn validate(user: User) -> Verdict {
//!     Verdict::accept().require(user.age >= 18, "/age", "minimum", "must be 18 or more")
//! }
//!
//! brink_guest::export_validate!(validate);
//! ```
//!
//! A validator that uses keys, raw bytes, a configuration, or all writes of a request together implements the trait:
//!
//! ```
//! use brink_guest::{Invalid, Rejection, Validator, Write};
//!
//! #[derive(serde::Deserialize)]
//! struct Limits { bytes_max: usize }
//!
//! impl Validator for Limits {
//!     type Config = Self;
//!     fn configure(config: Self) -> Result<Self, Invalid> { Ok(config) }
//!     fn validate(&self, writes: &[Write]) -> Result<(), Rejection> {
//!         match writes.iter().find(|write| write.bytes().len() > self.bytes_max) {
//!             Some(write) => Err(write.reject("too-large", format!("at most {} bytes are allowed", self.bytes_max))),
//!             None => Ok(()),
//!         }
//!     }
//! }
//!
//! brink_guest::export_validator!(Limits);
//! ```
//!
//! # Configuration
//!
//! The configuration of a hook is JSON. The SDK reads it into [`Validator::Config`], any type that `serde` can read. A
//! mismatch is refused when the hook is created, with the place and what was expected there. Without a configuration
//! the node sends `null`: an `Option` becomes `None`, and a struct is read from `{}`, so `#[serde(default)]` fields take
//! their defaults.
//!
//! # What a plugin may do
//!
//! Look at the writes of one request, read other keys ([`store`]), and log ([`log`]). It has no clock, no network, no
//! files, no environment and no entropy. Each request starts from the memory that `configure` left; changes that a request
//! makes are undone after it. A panic refuses the request, and its message goes to the client and to the node's log.
//!
//! # Tests
//!
//! Plugin logic is ordinary Rust: test it with `cargo test`, without a node and without WebAssembly. [`Write`] has
//! constructors for every kind of write, [`config::parse`] reads a configuration as a node does, and `mock` replaces the
//! node's store and log.
//!
//! ```
//! # use brink_guest::{Invalid, Rejection, Validator, Write};
//! # #[derive(serde::Deserialize)]
//! # struct Limits { bytes_max: usize }
//! # impl Validator for Limits {
//! #     type Config = Self;
//! #     fn configure(config: Self) -> Result<Self, Invalid> { Ok(config) }
//! #     fn validate(&self, writes: &[Write]) -> Result<(), Rejection> {
//! #         match writes.iter().find(|write| write.bytes().len() > self.bytes_max) {
//! #             Some(write) => Err(write.reject("too-large", "too large")),
//! #             None => Ok(()),
//! #         }
//! #     }
//! # }
//! # fn main() -> Result<(), Invalid> {
//! let limits = Limits::configure(brink_guest::config::parse(r#"{"bytes_max": 4}"#)?)?;
//! assert!(limits.validate(&[Write::raw(0, "a", "text/plain", "four")]).is_ok());
//! assert_eq!(limits.validate(&[Write::raw(0, "a", "text/plain", "fives")]).unwrap_err().code, "too-large");
//! # Ok(())
//! # }
//! ```

mod answer;
#[doc(hidden)]
pub mod bindings;
pub mod config;
pub mod fields;
mod glue;
mod json;
pub mod log;
#[cfg(not(target_arch = "wasm32"))]
pub mod mock;
pub mod store;
mod verdict;
mod write;

use serde::de::DeserializeOwned;

pub use bindings::validating::brink::hooks::types::{Entry, Rejection, Replacement, Violation};
pub use config::Invalid;
#[doc(hidden)]
pub use glue::State as __State;
pub use verdict::Verdict;
#[doc(hidden)]
pub use verdict::judge as __judge;
pub use write::Write;

/// A plugin that accepts or refuses writes and cannot change them. Export it with [`export_validator!`].
pub trait Validator: Sized + 'static {
    /// The configuration of a hook: any type that can be read from JSON, `()` if there is none.
    type Config: DeserializeOwned;

    /// Checks the configuration and prepares for the calls that follow.
    ///
    /// It runs when a hook is created. Until a node has pre-initialized the plugin, it also runs before each request, within
    /// the deadline of the hook: keep it cheap. It must be deterministic, and the store cannot be read here.
    ///
    /// # Errors
    ///
    /// [`Invalid`] says what is wrong with the configuration and where; the hook is then not created.
    fn configure(config: Self::Config) -> Result<Self, Invalid>;

    /// Judges the writes of one request, all or none. A single `PUT` is a list of one.
    ///
    /// # Errors
    ///
    /// A [`Rejection`] refuses the request; the client receives it with status 422.
    fn validate(&self, writes: &[Write]) -> Result<(), Rejection>;
}

/// A plugin that rewrites values. Export it with [`export_transformer!`].
///
/// ```
/// use brink_guest::{Invalid, Rejection, Replacement, Transformer, Write};
///
/// struct Stamp;
///
/// impl Transformer for Stamp {
///     type Config = ();
///     fn configure((): ()) -> Result<Self, Invalid> { Ok(Self) }
///     fn transform(&self, writes: &[Write]) -> Result<Vec<Replacement>, Rejection> {
///         let mut replacements = Vec::new();
///         for write in writes {
///             let Some(mut value) = write.json::<serde_json::Map<_, _>>()? else { continue };
///             value.insert("checked".to_owned(), true.into());
///             replacements.push(write.replace_json(&value)?);
///         }
///         Ok(replacements)
///     }
/// }
///
/// brink_guest::export_transformer!(Stamp);
/// ```
pub trait Transformer: Sized + 'static {
    /// The configuration of a hook, as for [`Validator::Config`].
    type Config: DeserializeOwned;

    /// Checks the configuration, as [`Validator::configure`] does.
    ///
    /// # Errors
    ///
    /// [`Invalid`] says what is wrong with the configuration and where; the hook is then not created.
    fn configure(config: Self::Config) -> Result<Self, Invalid>;

    /// Returns the new values of the writes to change: at most one [`Replacement`] for each write, and none for deletions.
    /// A write without a replacement stays as it is.
    ///
    /// # Errors
    ///
    /// A [`Rejection`] refuses the request; the client receives it with status 422.
    fn transform(&self, writes: &[Write]) -> Result<Vec<Replacement>, Rejection>;
}

/// A plugin in both roles, with one configuration. Export it with [`export_plugin!`].
///
/// The node calls [`transform`](Plugin::transform), then [`validate`](Plugin::validate) on the result of all transformers.
///
/// ```
/// use brink_guest::{Invalid, Plugin, Rejection, Replacement, Write};
///
/// /// Makes texts lower-case, and refuses empty ones.
/// struct Texts;
///
/// impl Plugin for Texts {
///     type Config = ();
///     fn configure((): ()) -> Result<Self, Invalid> { Ok(Self) }
///     fn transform(&self, writes: &[Write]) -> Result<Vec<Replacement>, Rejection> {
///         let texts = writes.iter().filter(|write| write.content_type() == "text/plain");
///         Ok(texts.map(|write| write.replace(write.bytes().to_ascii_lowercase())).collect())
///     }
///     fn validate(&self, writes: &[Write]) -> Result<(), Rejection> {
///         match writes.iter().find(|write| !write.is_deletion() && write.bytes().is_empty()) {
///             Some(write) => Err(write.reject("empty", "a text must not be empty")),
///             None => Ok(()),
///         }
///     }
/// }
///
/// brink_guest::export_plugin!(Texts);
/// ```
pub trait Plugin: Sized + 'static {
    /// The configuration of a hook, as for [`Validator::Config`].
    type Config: DeserializeOwned;

    /// Checks the configuration, as [`Validator::configure`] does.
    ///
    /// # Errors
    ///
    /// [`Invalid`] says what is wrong with the configuration and where; the hook is then not created.
    fn configure(config: Self::Config) -> Result<Self, Invalid>;

    /// Returns new values, as [`Transformer::transform`] does.
    ///
    /// # Errors
    ///
    /// A [`Rejection`] refuses the request; the client receives it with status 422.
    fn transform(&self, writes: &[Write]) -> Result<Vec<Replacement>, Rejection>;

    /// Judges the writes, as [`Validator::validate`] does.
    ///
    /// # Errors
    ///
    /// A [`Rejection`] refuses the request; the client receives it with status 422.
    fn validate(&self, writes: &[Write]) -> Result<(), Rejection>;
}
