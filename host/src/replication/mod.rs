//! How a write becomes durable on a majority, and how a read knows that it is fresh.
//!
//! # Problem
//!
//! Every node holds the whole store. A write may arrive at any of them, and once it is acknowledged it must survive
//! the loss of any minority, and power loss of all nodes (P1). Any node must be able to serve linearizable reads (P2), and a
//! node cut off from the others must still answer from its own state and say so (P5).
//!
//! # Approach
//!
//! Raft (Ongaro and Ousterhout 2014), with openraft as the consensus engine. Writes that share a proposal form one log entry,
//! a round; each node applies the log to its own state. Everything a node sends to another passes through one trait,
//! `Transport`, so that this code also runs on a simulated network. From top to bottom:
//!
//! - `handle`: the room's door, [`Handle`], and its concerns, connected; `options`: the settings.
//! - `server`: answers the calls of other nodes; `doorkeeper`: checks what they claim.
//! - `proposer`: makes rounds of writes and sends them to the leader; `queue`: the writes that wait for that; `gathering`: how long;
//!   `proposed`: what the leader takes from others.
//! - `reads`: the gate of strong reads, and the staleness of local ones.
//! - `lost_state`: how a node that lost its state gets another.
//! - `log_cut`, `disk_full`: when the log is cut, and how a node with a full disk behaves.
//! - `cluster`: who this node is, who the others are, who leads, and how that changes.
//! - `raft`: openraft's log, state machine, network and engine.
//! - `peer`: calls between nodes, on connections and as streams.
//! - `lease`, `suspensions`, `addresses`, `blocking`, `types`, `error`, `start_error`: used by all of the above.
//! - `sim`: all of it on simulated time, network and disks, from seeds; for tests.
//!
//! Each concern owns its state and is shared by `Arc`; a file holds only the concerns it uses. A node's identity goes through
//! stages (unidentified, waiting, member), each with only the fields known in it.
//!
//! # Guarantees
//!
//! - An acknowledged write is fsynced in the logs of a majority of the voters.
//! - The error of a write says whether the write may yet appear ([`WriteOutcome`]).
//! - A restarted voter neither votes nor stands for election for one lease, since it has forgotten its promises.
//! - A call from another cluster, even one with the same URLs, changes nothing.
//!
//! # Cost of one write on an idle cluster
//!
//! One fsync on the leader, in parallel with one round trip and one fsync on the fastest majority of followers; one
//! more round trip if the write arrived at a follower. Concurrent writes share rounds (`gathering`), and appends share fsyncs.
//! `data/` is not fsynced per write. A command is encoded once, by the node that received it; its bytes are copied into
//! the log entry, and once per follower into the request.
//!
//! # Failure model
//!
//! Nodes stop and return, networks lose and delay messages, disks keep all fsynced data. Wall clocks may be wrong and may step: the
//! cluster's time holds as long as those of a majority are right (see `cluster/time`). Monotonic clocks run at rates that differ by less
//! than a tenth, and stand still while a machine is suspended (leader leases rely on it, see `lease` and `suspensions`). A stranger is
//! no node, since nodes prove themselves to each other (`peer/credential`). Nodes do not lie about who was elected, nor about what they
//! have stored; what else they claim is checked (see `doorkeeper`).

mod addresses;
mod blocking;
mod cluster;
mod disk_full;
mod doorkeeper;
mod error;
mod gathering;
mod handle;
mod lease;
mod log_cut;
mod lost_state;
mod options;
mod peer;
mod proposed;
mod proposer;
mod queue;
mod raft;
mod reads;
mod server;
#[cfg(test)]
mod sim;
mod start_error;
mod suspensions;
mod types;

pub use self::blocking::Blocking;
pub use self::cluster::change::Role;
pub use self::cluster::status::Status;
pub use self::error::{Error, WriteOutcome};
pub use self::handle::Handle;
pub use self::lost_state::lacks_state;
pub use self::options::Options;
pub use self::peer::credential::{Caller, Challenge, Credentials, Greeting, Secrets, SecretsError};
pub use self::peer::http::HttpTransport;
pub use self::peer::protocol::{
    CHALLENGE_PATH, CLUSTER_HEADER, Envelope, INDEX_MIN_HEADER, NONCE_HEADER, PROOF_HEADER, PROTOCOL, REFUSAL_HEADER,
    SnapshotBody, TO_HEADER, URL_HEADER, VERSION_HEADER, common_version,
};
pub use self::proposed::CheckProposed;
pub use self::raft::engine::{Condition, accept_loss, check_storage};
pub use self::start_error::StartError;
pub use self::types::ClusterId;
