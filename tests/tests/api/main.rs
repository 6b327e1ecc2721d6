//! The HTTP API, exchange by exchange: the scripts in `scripts/` show requests and the answers to them.
//!
//! A line that begins with `>` is sent: method and path, then headers, then the body behind `>>`. The lines below it
//! are the answer of a fresh single node. `UPDATE_GOLDENFILES=1` writes the answers anew; review them as code.

#![allow(missing_docs, reason = "tests are named as facts")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure here is a failed test"
)]

mod limits;
mod scripts;
