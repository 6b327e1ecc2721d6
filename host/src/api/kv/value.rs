//! Values as requests bring them.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::header;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::api::extract::{self, Unread};
use crate::api::problem::{Kind, Problem};
use crate::json;
use crate::limits::{BODY_BYTES_MAX, CONTENT_TYPE_BYTES_MAX, VALUE_BYTES_MAX};
use crate::storage::Value;

/// The types of bodies that HTML forms send.
const FORMS: [&str; 2] = ["application/x-www-form-urlencoded", "multipart/form-data"];

/// The value in the body of a `PUT`: an object with a JSON value, or bytes of another content type.
pub(crate) struct PutValue(pub(crate) Value);

/// The body of a `PUT` of a JSON value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutObject<'a> {
    #[serde(borrow)]
    value: &'a RawValue,
}

impl<S: Sync> FromRequest<S> for PutValue {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let body = Unread::new(&parts.headers, body).read(BODY_BYTES_MAX).await?;
        let content_type = parts.headers.get(header::CONTENT_TYPE);
        let value = match content_type.map(|value| value.to_str().unwrap_or_default()) {
            None => of_object(body),
            Some(content_type) => of_body(content_type, body),
        };
        value.map(Self)
    }
}

fn of_body(content_type: &str, body: Bytes) -> Result<Value, Problem> {
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case(Value::JSON) {
        return of_object(body);
    }
    // curl sends these unless it is told otherwise; the client almost surely meant JSON.
    if FORMS.iter().any(|form| essence.eq_ignore_ascii_case(form)) {
        return Err(Problem::new(
            Kind::UNSUPPORTED_MEDIA_TYPE,
            "forms are not stored; for a JSON value send Content-Type: application/json with {\"value\": …}, for raw \
             bytes another content type such as application/octet-stream",
        ));
    }
    if content_type.is_empty() || content_type.len() > CONTENT_TYPE_BYTES_MAX {
        let detail = format!("the content type must have 1 to {CONTENT_TYPE_BYTES_MAX} bytes of ASCII");
        return Err(Problem::new(Kind::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    of_bytes(content_type.to_owned(), body)
}

fn of_object(body: Bytes) -> Result<Value, Problem> {
    let object: PutObject<'_> = extract::json(&body, "{\"value\": <any JSON>}")?;
    of_json(body.slice_ref(object.value.get().as_bytes()))
}

/// A value of JSON text, in the form in which it is stored.
pub(super) fn of_json(text: Bytes) -> Result<Value, Problem> {
    let compact = json::compact(text).map_err(|error| {
        Problem::new(Kind::BAD_BODY, format!("the value is not JSON as brink takes it: {error} of the value"))
    })?;
    within_limit(Value::json(compact))
}

/// A value of another content type.
pub(super) fn of_bytes(content_type: String, bytes: Bytes) -> Result<Value, Problem> {
    within_limit(Value { content_type, bytes })
}

/// Decodes base64 (RFC 4648, section 4).
pub(super) fn from_base64(text: &str) -> Option<Bytes> {
    BASE64.decode(text).ok().map(Bytes::from)
}

fn within_limit(value: Value) -> Result<Value, Problem> {
    match value.bytes.len() {
        0..=VALUE_BYTES_MAX => Ok(value),
        bytes => Err(Problem::new(
            Kind::TOO_LARGE,
            format!("the value has {bytes} bytes; at most {VALUE_BYTES_MAX} are allowed"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_type_decides_how_a_body_is_kept() {
        let body = Bytes::from_static(b"{\"value\": [1, 2]}");
        assert_eq!(of_body("application/json; charset=utf-8", body.clone()).unwrap(), Value::json("[1,2]"));
        assert_eq!(of_body("Application/JSON", body.clone()).unwrap(), Value::json("[1,2]"));
        assert_eq!(of_body("text/plain; charset=utf-8", body.clone()).unwrap().bytes, body);
        for refused in ["", "multipart/form-data; boundary=a", FORMS[0], &"t".repeat(CONTENT_TYPE_BYTES_MAX + 1)] {
            assert!(of_body(refused, body.clone()).is_err(), "{refused}");
        }
    }
}
