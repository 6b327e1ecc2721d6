//! Extractors: each decodes and checks one part of a request, or answers with the problem it found.
//!
//! They run in the order of a handler's arguments, so the first argument that fails decides the answer. Extractors borrow
//! from the request and copy only the part they return.
//!
//! A client that is cut off while it sends a large body does not see the answer. Handlers with a large body therefore take
//! some headers as a `Result`, and check it once the body has been read.
//!
//! - `query`: query parameters, and `consistency` among them.
//! - `key`: the key in a path.
//! - `conditions`: `If-Match`, `If-None-Match`, and entity tags.
//! - `headers`: the other headers: `Idempotency-Key`, `Accept`, `Prefer`, `Brink-User`.
//! - `body`: bodies within their limits.

mod body;
mod conditions;
mod headers;
mod key;
mod query;

pub(super) use self::body::{Body, Unread, json};
pub(super) use self::conditions::{IfNoneMatch, Preconditions, etag};
pub(super) use self::headers::{Accept, Author, IdempotencyKey, Prefer};
pub(super) use self::key::{Key, check as check_key};
pub(super) use self::query::{Consistency, NoParameters, Parameters, Query, Values, not_allowed};
