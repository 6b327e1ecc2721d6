//! Values as requests bring them.

use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::api::problem::{Kind, Problem};
use crate::api::request;
use crate::json;
use crate::limits::{CONTENT_TYPE_BYTES_MAX, JSON_LEVELS_MAX, VALUE_BYTES_MAX};
use crate::storage::Value;

/// The types of bodies that HTML forms send.
const FORMS: [&str; 2] = ["application/x-www-form-urlencoded", "multipart/form-data"];

/// The body of a `PUT` of a JSON value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutObject<'a> {
    #[serde(borrow)]
    value: &'a RawValue,
}

/// The value in the body of a `PUT`: an object with a JSON value, or bytes of another content type.
pub(super) fn of_body(headers: &HeaderMap, body: Bytes) -> Result<Value, Problem> {
    let Some(content_type) = request::single(headers, &header::CONTENT_TYPE)? else { return of_object(body) };
    let content_type = content_type.to_str().unwrap_or_default();
    let essence = request::essence(content_type);
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
    if !is_content_type(content_type) {
        let detail = format!("the content type must have 1 to {CONTENT_TYPE_BYTES_MAX} visible ASCII characters");
        return Err(Problem::new(Kind::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    of_type(content_type, body)
}

/// Whether a content type can be kept: readers get it as a header.
pub(super) fn is_content_type(content_type: &str) -> bool {
    (1..=CONTENT_TYPE_BYTES_MAX).contains(&content_type.len()) && request::is_printable(content_type)
}

/// A value of bytes that are kept as they are. Of a type that ends in `+json`, they must be JSON all the same: plugins and
/// readers parse them.
pub(super) fn of_type(content_type: &str, bytes: Bytes) -> Result<Value, Problem> {
    let value = within_limit(Value::of_type(content_type, bytes))?;
    if value.is_json_syntax() {
        json::check(&value.bytes, JSON_LEVELS_MAX).map_err(|error| not_json(&error))?;
    }
    Ok(value)
}

fn of_object(body: Bytes) -> Result<Value, Problem> {
    let object: PutObject<'_> = request::json(&body, "{\"value\": <any JSON>}")?;
    of_json(body.slice_ref(object.value.get().as_bytes()))
}

/// A value of JSON text, in the form in which it is stored.
pub(super) fn of_json(text: Bytes) -> Result<Value, Problem> {
    within_limit(Value::json(json::compact(text).map_err(|error| not_json(&error))?))
}

fn not_json(error: &json::Error) -> Problem {
    Problem::new(Kind::BAD_BODY, format!("the value is not JSON as brink takes it: {error} of the value"))
}

pub(super) fn within_limit(value: Value) -> Result<Value, Problem> {
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
        let value = |content_type: &str| {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, content_type.parse().unwrap())]);
            of_body(&headers, body.clone())
        };
        assert_eq!(of_body(&HeaderMap::new(), body.clone()).unwrap(), Value::json("[1,2]"));
        assert_eq!(value("application/json; charset=utf-8").unwrap(), Value::json("[1,2]"));
        assert_eq!(value("Application/JSON").unwrap(), Value::json("[1,2]"));
        assert_eq!(value("text/plain; charset=utf-8").unwrap().bytes, body);
        let too_long = "t".repeat(CONTENT_TYPE_BYTES_MAX + 1);
        for refused in
            ["", "text/plain;\tcharset=utf-8", "text/é", "multipart/form-data; boundary=a", FORMS[0], &too_long]
        {
            assert!(value(refused).is_err(), "{refused}");
        }
        let mut twice = HeaderMap::new();
        for content_type in ["text/plain", Value::JSON] {
            twice.append(header::CONTENT_TYPE, content_type.parse().unwrap());
        }
        assert!(of_body(&twice, body.clone()).is_err());
    }

    #[test]
    fn a_type_that_says_json_has_json_as_it_was_sent() {
        let spaced = Bytes::from_static(b"{ \"a\": 1 }");
        let value = |content_type, bytes: &'static [u8]| of_type(content_type, Bytes::from_static(bytes));
        assert_eq!(of_type("application/geo+json", spaced.clone()).unwrap().bytes, spaced);
        for wrong in [&b"{\"a\":1,\"a\":2}"[..], b"{", b"\"\\ud800\"", b"\xff"] {
            assert!(value("application/ld+json; profile=\"x\"", wrong).is_err());
            assert!(value("Application/LD+JSON", wrong).is_err());
            assert!(value("application/json-seq", wrong).is_ok());
        }
    }
}
