//! A request of the load, whatever the API, and the reasons why it fails.

use super::super::super::kv::Consistency;
use crate::limits::VALUE_BYTES_MAX;

/// Maximum bytes of an answer: the largest value in base64, and what surrounds it.
pub(super) const ANSWER_BYTES_MAX: usize = VALUE_BYTES_MAX / 3 * 4 + 64 * 1024;

/// Maximum characters of a node's error message that are reported.
const MESSAGE_CHARS_MAX: usize = 200;

/// One request of the load.
#[derive(Debug, Clone, Copy)]
pub(in crate::cli::bench) enum Call<'a> {
    Write {
        key: &'a str,
        value: &'a str,
        /// Replicas that must have the write, where a client chooses that.
        replicas: Option<u32>,
    },
    Read {
        key: &'a str,
        consistency: Option<Consistency>,
    },
}

/// The reason why a connection could not be opened, or an exchange failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Http(#[from] hyper::Error),
    #[error(transparent)]
    Request(#[from] hyper::http::Error),
    #[error("the node closed the connection")]
    Closed,
    #[error("the answer has more than {ANSWER_BYTES_MAX} bytes")]
    TooLarge,
    #[error("the answer breaks the protocol")]
    Malformed,
    #[error("the key was not found")]
    NotFound,
    /// A write that too few replicas have. It is on the primary, and may yet reach the others.
    #[error("too few replicas have the write")]
    NotReplicated,
    /// The node answered with an error.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// An error that the node put into words.
    pub(super) fn refused(message: &[u8]) -> Self {
        Self::Refused(String::from_utf8_lossy(message).chars().take(MESSAGE_CHARS_MAX).collect())
    }
}
