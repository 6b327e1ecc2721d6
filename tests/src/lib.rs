//! Helpers of the black-box tests.
//!
//! The tests in `tests/` start real `brink` processes and drive them from outside. From below to above:
//!
//! - `artifacts`: the binary and the compiled plugins that the tests use.
//! - `client`, `cli`, `otlp`: an HTTP client, the command line, an OTLP endpoint.
//! - `fault_fs`, `fake_clock`, `hosts`: a disk that loses power, a clock that is set, and hosts whose network can be cut.
//! - `ports`, `members`: ports that no other test gets, and an operator's changes of the membership.
//! - `cluster`, `load`: processes that form a cluster, and writers that keep it busy.
//! - `probe`, `machine`: the time until writes succeed, and how long the machine itself stands still.
//! - `history`, `exchange`, `workload`, `nemesis`: clients that record their calls while faults are injected.
//! - `model`, `invariants`: the check of a recorded history.
//! - `episode`: one run of all of these.
//!
//! `README.md` has the reading order of the tests and says how to run one.

mod artifacts;
mod bomb;
mod cli;
mod client;
mod cluster;
pub mod episode;
mod exchange;
mod fake_clock;
mod fault_fs;
pub mod history;
pub mod hosts;
pub mod invariants;
mod load;
mod machine;
mod members;
pub mod model;
pub mod nemesis;
mod otlp;
mod ports;
mod probe;
mod stream;
mod wait;
pub mod workload;

pub use artifacts::{brink_bin, build_dir, plugin_file, plugin_version, plugin_wasm};
pub use bomb::{Bomb, leb128};
pub use cli::{Run, brink, brink_compiling, brink_on_terminal, brink_with};
pub use client::{Answer, Client};
pub use cluster::{Cluster, Node, Options, Place};
pub use fake_clock::{FakeClock, right_time};
pub use fault_fs::{FaultFs, Operation, Tail};
pub use load::{Load, entries};
pub use machine::{Watch, undisturbed};
pub use otlp::{Collector, Span};
pub use ports::free_ports;
pub use probe::first_success;
pub use stream::Stream;
pub use wait::eventually;
