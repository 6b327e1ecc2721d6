//! Values as requests bring them.

use axum::body::Bytes;
use axum::http::{HeaderMap, header};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::api::problem::{Kind, Problem};
use crate::api::request;
use crate::json;
use crate::limits::{CONTENT_TYPE_BYTES_MAX, VALUE_BYTES_MAX};
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
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else { return of_object(body) };
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
    if content_type.is_empty() || content_type.len() > CONTENT_TYPE_BYTES_MAX {
        let detail = format!("the content type must have 1 to {CONTENT_TYPE_BYTES_MAX} bytes of ASCII");
        return Err(Problem::new(Kind::UNSUPPORTED_MEDIA_TYPE, detail));
    }
    within_limit(Value::of_type(content_type, body))
}

fn of_object(body: Bytes) -> Result<Value, Problem> {
    let object: PutObject<'_> = request::json(&body, "{\"value\": <any JSON>}")?;
    of_json(body.slice_ref(object.value.get().as_bytes()))
}

/// A value of JSON text, in the form in which it is stored.
pub(super) fn of_json(text: Bytes) -> Result<Value, Problem> {
    let compact = json::compact(text).map_err(|error| {
        Problem::new(Kind::BAD_BODY, format!("the value is not JSON as brink takes it: {error} of the value"))
    })?;
    within_limit(Value::json(compact))
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
        for refused in ["", "multipart/form-data; boundary=a", FORMS[0], &"t".repeat(CONTENT_TYPE_BYTES_MAX + 1)] {
            assert!(value(refused).is_err(), "{refused}");
        }
    }
}
