//! openraft: its log, its state machine, its network, and the engine under this node's id.
//!
//! - `log_store`, `state_machine`: openraft's storage traits on the two databases of [`crate::storage`].
//! - `network`: openraft's network traits on [`Transport`](super::peer::protocol::Transport).
//! - `engine`: the running engine, and the check of the two databases before it starts.

pub(crate) mod engine;
pub(crate) mod log_store;
pub(crate) mod network;
pub(crate) mod snapshot_rows;
pub(crate) mod state_machine;
