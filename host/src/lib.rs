//! brink: a replicated key-value store for the edge.
//!
//! Each node keeps a full copy on disk, serves it over HTTP, commits writes through a Raft majority, and passes every
//! write through the WebAssembly plugins that its users have uploaded. `ARCHITECTURE.md` has the promises (P1 to P13), the
//! glossary, and the way of one write and one read. This is the map of the rooms. Arrows run one way, between rooms and
//! between the files of a room; a test checks that:
//!
//! ```text
//! cli → node → api → registry → write_path → {hooks → sandbox, replication} → storage
//! net, telemetry, json, text, clock and limits may be used by those above them
//! ```
//!
//! | room | one line |
//! |---|---|
//! | [`cli`] | the command line: `serve`, and the client commands |
//! | [`node`] | one node: its settings, its parts put together, its start and its end |
//! | [`api`] | HTTP: decoding, status codes, problem objects |
//! | [`registry`] | plugins and hooks as part of the replicated state |
//! | [`write_path`] | the way of one write: recalled, judged, proposed, concluded |
//! | [`hooks`] | which plugin judges which write |
//! | [`sandbox`] | guest code within limits |
//! | [`replication`] | how a write becomes durable, how a read is fresh |
//! | [`storage`] | what a node keeps: the log and the state |
//! | [`net`] | the only sockets: dial and listen |
//! | [`telemetry`] | traces, metrics and logs |
//! | [`json`] | the one rule for JSON that enters the store |
//! | [`text`] | text of strangers, made safe for terminals and logs |
//! | [`clock`] | wall time |
//! | [`limits`] | every limit that a client, a plugin author or an operator can meet |

pub mod api;
pub mod cli;
pub mod clock;
pub mod hooks;
pub mod json;
pub mod limits;
pub mod net;
pub mod node;
pub mod registry;
pub mod replication;
pub mod sandbox;
pub mod storage;
pub mod telemetry;
pub mod text;
pub mod write_path;
