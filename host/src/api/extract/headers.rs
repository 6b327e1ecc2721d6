//! Headers of brink's own, and those that choose the form of a response.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::query::not_allowed;
use crate::api::problem::{Kind, Problem};
use crate::limits::{IDEMPOTENCY_KEY_BYTES_MAX, NAME_BYTES_MAX};
use crate::registry;
use crate::storage::Value;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PREFER: HeaderName = HeaderName::from_static("prefer");
const USER: HeaderName = HeaderName::from_static("brink-user");

/// The client's name for a write: `Idempotency-Key`, taken as it is.
pub(crate) struct IdempotencyKey(pub(crate) Option<String>);

/// The person who changes the registry, as the client says in `Brink-User`.
pub(crate) struct Author(pub(crate) registry::Author);

/// Which responses the client prefers (RFC 7240).
pub(crate) struct Prefer {
    /// Whether a response without a body is enough: `return=minimal`.
    pub(crate) minimal: bool,
}

/// Which media types the client accepts.
pub(crate) struct Accept(Option<HeaderValue>);

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::parse(&parts.headers)
    }
}

impl IdempotencyKey {
    fn parse(headers: &HeaderMap) -> Result<Self, Problem> {
        let bad = |found: &str| {
            let allowed = format!("one of 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters");
            Problem::new(Kind::BAD_HEADER, format!("Idempotency-Key is {found:?}; it must be {allowed}"))
        };
        let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
        let Some(value) = values.next() else { return Ok(Self(None)) };
        let key = value.to_str().map_err(|_| bad("not ASCII"))?;
        let is_allowed =
            (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
        if values.next().is_some() || !is_allowed {
            return Err(bad(key));
        }
        Ok(Self(Some(key.to_owned())))
    }
}

impl<S: Sync> FromRequestParts<S> for Author {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(by) = parts.headers.get(USER) else { return Ok(Self(registry::Author::named(None))) };
        match by.to_str() {
            Ok(by) if (1..=NAME_BYTES_MAX).contains(&by.len()) => {
                Ok(Self(registry::Author::named(Some(by.to_owned()))))
            }
            _ => {
                let allowed = format!("1 to {NAME_BYTES_MAX} visible characters of ASCII");
                Err(not_allowed("Brink-User", &format!("{by:?}"), &allowed))
            }
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Prefer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let is_minimal = |value: &str| value.split(',').any(|one| one.trim().eq_ignore_ascii_case("return=minimal"));
        let value = parts.headers.get(PREFER).and_then(|value| value.to_str().ok());
        Ok(Self { minimal: value.is_some_and(is_minimal) })
    }
}

impl<S: Sync> FromRequestParts<S> for Accept {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.headers.get(header::ACCEPT).cloned()))
    }
}

impl Accept {
    /// Whether the client wants the bytes of a value and not its entry: it accepts `application/octet-stream`, or the
    /// value's own type.
    pub(crate) fn wants_raw(&self, value: &Value) -> bool {
        let Some(accept) = self.0.as_ref().and_then(|accept| accept.to_str().ok()) else { return false };
        let own = if value.is_json() { None } else { value.content_type.split(';').next().map(str::trim) };
        accept.split(',').filter_map(|range| range.split(';').next()).map(str::trim).any(|range| {
            range.eq_ignore_ascii_case("application/octet-stream")
                || own.is_some_and(|own| range.eq_ignore_ascii_case(own))
        })
    }
}
