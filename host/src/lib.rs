//! brink: a replicated key-value store for the edge.
//!
//! Each node keeps a full copy on disk, serves it over HTTP, commits writes through a Raft majority, and passes every
//! write through the WebAssembly plugins that its users uploaded. `ARCHITECTURE.md` draws the way of one write and one
//! read; here is the map. Arrows run one way, and a test keeps them so:
//!
//! ```text
//! cli → node → api → {registry, write_path} → {hooks → sandbox, replication} → storage
//! telemetry and limits may be used by all
//! ```
//!
//! - [`cli`]: the command line: `serve`, and the clients.
//! - [`node`]: one node: its settings, its parts put together, its start and its end.
//! - [`api`]: HTTP: decoding, limits, status codes, problem objects.
//! - [`registry`]: plugins and hooks as part of the replicated state.
//! - [`write_path`]: the way of one write: judged by hooks, then proposed.
//! - [`hooks`]: which plugin judges which write.
//! - [`sandbox`]: guest code within limits.
//! - [`replication`]: Raft: proposals, reads, peers, transport.
//! - [`storage`]: the log and the data on disk.
//! - [`telemetry`]: traces, metrics, logs.
//! - [`limits`]: every limit, by name.

pub mod api;
pub mod cli;
pub mod hooks;
pub mod limits;
pub mod node;
pub mod registry;
pub mod replication;
pub mod sandbox;
pub mod storage;
pub mod telemetry;
pub mod write_path;
