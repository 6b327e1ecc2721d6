//! Calls between nodes.
//!
//! - `protocol`: the calls and the [`Transport`](protocol::Transport) trait, through which all of them pass.
//! - `frames`: the bytes of calls and answers on a connection.
//! - `credential`: how nodes prove themselves to each other; `dial`: a request to a node that has.
//! - `connection`, `server`: the calling and the serving end of a connection.
//! - `snapshot`, `receiver`, `spool`, `turn`: a whole state on its way to another node, its receiving end, the file it arrives in, and
//!   that there is one at a time.
//! - `claims`: what the messages of other nodes may say.
//! - `http`: the transport of production.

pub(crate) mod claims;
pub(crate) mod connection;
pub(crate) mod credential;
mod dial;
pub(crate) mod frames;
pub(crate) mod http;
pub(crate) mod protocol;
pub(crate) mod receiver;
pub(crate) mod server;
pub(crate) mod snapshot;
mod spool;
mod turn;
