//! The HTTP API.
//!
//! # Problem
//!
//! Clients send anything: unknown parameters, keys that are not UTF-8, endless bodies. Every handler must answer the same
//! mistake alike, with what is wrong and what is allowed. No response may claim more than the node knows.
//!
//! # Approach
//!
//! A request passes four stages:
//!
//! 1. `access` decides whether its sender has the right that its route needs.
//! 2. `request` decodes and checks it: parameters, key, conditions; `body` reads its body.
//! 3. A handler (`kv`, `registry`, `cluster`, `health`) calls the room that does the work: [`crate::write_path`],
//!    [`crate::storage`], [`crate::registry`] or [`crate::replication`].
//! 4. The result becomes a response: `schema` has the typed bodies, `answer` makes the response, `problem` every error.
//!
//! `router` has the table of paths with their rights and handlers, which `route` mounts; requests for one key go to theirs directly.
//! `observe` surrounds each request with its trace and its metrics, asks `browser` whether a page of another site may have sent it, and
//! then `access`. `peer` serves the other nodes of the cluster, once `caller` has seen their proof. Until a node has its state,
//! `starting` answers its probes, and refuses everything else.
//!
//! # Guarantees
//!
//! - Every error of a handler is a problem object; its status and type are chosen in `problem`.
//! - A handler is reached only by those who have its right, and touches only keys that they may use (`access`).
//! - Every handler but the probes checks its query parameters: it gets the node only together with them (`request::Call`).
//! - What a page of another site makes a browser send is refused, and a stored value runs nothing in a browser (`browser`).
//! - A trailing slash is accepted everywhere and means nothing.
//! - A read states its consistency and revision, and never claims more than it has (P5).
//! - A failed write without an explicit outcome was not written.
//!
//! # Failure model
//!
//! A handler that panics answers with 500; the node goes on. A body over its limit is refused, and so is one for which the
//! node has no room. The server discards the rest of it (`net`), so that the client gets to read the refusal.
//!
//! # Cost
//!
//! Headers and bodies are moved, not copied. Entries are the hot responses; `kv` writes their JSON by hand.

mod access;
mod answer;
mod body;
mod browser;
mod caller;
mod cluster;
mod health;
mod kv;
mod observe;
mod peer;
mod problem;
mod registry;
mod request;
mod route;
mod router;
mod schema;
mod starting;

pub(crate) use self::access::{Access, Anonymous};
pub(crate) use self::browser::Browsers;
pub(crate) use self::caller::Callers;
pub(crate) use self::observe::Surroundings;
pub(crate) use self::request::App;
pub(crate) use self::router::Api;
pub(crate) use self::starting::{Starting, starting_router};
