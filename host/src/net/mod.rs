//! The network: the only room that opens a socket.
//!
//! - `url`: base URLs of nodes, in their one normal form.
//! - `dial`: connections to other nodes, and HTTP clients.
//! - `listen`: the listener of a node.
//!
//! Every socket that carries small messages has `TCP_NODELAY` set: a call or an answer must not wait for the
//! acknowledgement of an earlier one.

mod dial;
mod listen;
mod url;

pub use self::dial::{HttpClientOptions, connect, http_client};
pub use self::listen::Listener;
pub use self::url::{BASE_PATH, Path, UrlError, authority_and_path, base_url};
