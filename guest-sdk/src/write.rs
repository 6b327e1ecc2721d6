//! One write, as a plugin sees it.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bindings::validating::brink::hooks::types as wire;
use crate::json;
use crate::{Rejection, Replacement, Violation};

/// The media type of values sent as JSON.
const JSON: &str = "application/json";

/// One write of a request, as the client sent it or as earlier transformers left it.
///
/// A write knows its position in the request. Violations, rejections and replacements made from it carry that position,
/// so they are right in a batch too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    item: u32,
    key: String,
    content_type: String,
    value: Option<Vec<u8>>,
}

impl Write {
    /// A write of a JSON value, for tests. `item` is its position in the request, from 0.
    ///
    /// # Panics
    ///
    /// If `value` has no JSON form, for example a map whose keys are not strings.
    #[cfg(not(target_arch = "wasm32"))]
    #[allow(clippy::panic, reason = "exists for tests only")]
    pub fn json_value(item: u32, key: impl Into<String>, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(bytes) => Self::raw(item, key, JSON, bytes),
            Err(error) => panic!("the value has no JSON form: {error}"),
        }
    }

    /// A write of raw bytes, for tests. `item` is its position in the request, from 0.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn raw(item: u32, key: impl Into<String>, content_type: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self { item, key: key.into(), content_type: content_type.into(), value: Some(value.into()) }
    }

    /// A deletion, for tests. `item` is its position in the request, from 0.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn deletion(item: u32, key: impl Into<String>) -> Self {
        Self { item, key: key.into(), content_type: String::new(), value: None }
    }

    /// The writes of a call, with their positions.
    pub(crate) fn number(writes: Vec<wire::Write>) -> Vec<Self> {
        let numbered = (0..).zip(writes);
        numbered
            .map(|(item, wire::Write { key, content_type, value })| Self { item, key, content_type, value })
            .collect()
    }

    /// The position in the request, from 0.
    pub fn item(&self) -> u32 {
        self.item
    }

    /// The key, 1 to 1,024 bytes.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The media type of the value, such as `application/json`; empty for a deletion.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// The value as it will be stored, or `None` for a deletion. JSON is compact text.
    pub fn value(&self) -> Option<&[u8]> {
        self.value.as_deref()
    }

    /// The value as it will be stored; empty for a deletion too.
    pub fn bytes(&self) -> &[u8] {
        self.value().unwrap_or_default()
    }

    /// Whether the write deletes its key.
    pub fn is_deletion(&self) -> bool {
        self.value.is_none()
    }

    /// Whether the media type is JSON: `application/json` or a type that ends in `+json`.
    pub fn is_json(&self) -> bool {
        let essence = self.content_type.split(';').next().unwrap_or_default().trim();
        let ends_in_json = || essence.rsplit_once('+').is_some_and(|(_, suffix)| suffix.eq_ignore_ascii_case("json"));
        essence.eq_ignore_ascii_case(JSON) || ends_in_json()
    }

    /// The value as a `T`, or `None` for a deletion.
    ///
    /// ```
    /// # use brink_guest::Write;
    /// #[derive(serde::Deserialize)]
    /// struct Order { total: u64 }
    ///
    /// let write = Write::json_value(0, "orders/7", &serde_json::json!({"total": 12}));
    /// let order: Order = write.json()?.expect("it has a value");
    /// assert_eq!(order.total, 12);
    ///
    /// let write = Write::json_value(0, "orders/7", &serde_json::json!({"total": "twelve"}));
    /// let rejection = write.json::<Order>().map(|_| ()).unwrap_err();
    /// assert_eq!((rejection.code.as_str(), rejection.violations[0].path.as_str()), ("form", "/total"));
    /// # Ok::<(), brink_guest::Rejection>(())
    /// ```
    ///
    /// # Errors
    ///
    /// A rejection that names the place: code `not-json` if the value has another media type, `form` if it does not have
    /// the form of `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<Option<T>, Rejection> {
        let Some(value) = self.value() else { return Ok(None) };
        if !self.is_json() {
            let message = format!("the value must be JSON, not `{}`", json::cut(&self.content_type));
            return Err(self.reject("not-json", message));
        }
        json::read(value).map(Some).map_err(|error| {
            Rejection::new("form", "the value does not have the expected form").with(self.violation(
                error.path,
                "form",
                error.message,
            ))
        })
    }

    /// A rule that this write breaks. `path` is a JSON pointer into the value, empty for the whole value.
    pub fn violation(&self, path: impl Into<String>, code: impl Into<String>, message: impl Into<String>) -> Violation {
        Violation { item: self.item, path: path.into(), code: code.into(), message: message.into() }
    }

    /// Refuses the request because of this write: the rejection has one violation, for the whole value, with the same code
    /// and message.
    pub fn reject(&self, code: impl Into<String>, message: impl Into<String>) -> Rejection {
        let (code, message) = (code.into(), message.into());
        Rejection::new(code.clone(), message.clone()).with(self.violation("", code, message))
    }

    /// A new value for this write. The media type stays, so a JSON value must be replaced by JSON.
    pub fn replace(&self, value: impl Into<Vec<u8>>) -> Replacement {
        Replacement { item: self.item, value: value.into() }
    }

    /// A new JSON value for this write.
    ///
    /// # Errors
    ///
    /// A rejection with code `no-json` if `value` has no JSON form, for example a map whose keys are not strings.
    pub fn replace_json(&self, value: &impl Serialize) -> Result<Replacement, Rejection> {
        match serde_json::to_vec(value) {
            Ok(value) => Ok(self.replace(value)),
            Err(error) => Err(self.reject("no-json", format!("the new value has no JSON form: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn writes_are_numbered_from_zero() {
        let wire = |key: &str| wire::Write { key: key.to_owned(), content_type: String::new(), value: None };
        let writes = Write::number(vec![wire("a"), wire("b")]);
        assert_eq!(writes, [Write::deletion(0, "a"), Write::deletion(1, "b")]);
    }

    #[test]
    fn json_is_known_by_its_media_type() {
        let is_json = |content_type: &str| Write::raw(0, "k", content_type, "1").is_json();
        for content_type in ["application/json", "Application/JSON; charset=utf-8", "application/ld+json", "a/b+c+json"]
        {
            assert!(is_json(content_type), "{content_type}");
        }
        for content_type in ["", "text/plain", "application/jsonl", "application/octet-stream"] {
            assert!(!is_json(content_type), "{content_type}");
        }
    }

    #[test]
    fn a_deletion_has_no_json() {
        assert_eq!(Write::deletion(0, "k").json::<Value>().unwrap(), None);
    }

    #[test]
    fn a_value_of_another_type_is_rejected_with_its_item() {
        let rejection = Write::raw(3, "k", "text/plain", "1").json::<Value>().unwrap_err();
        assert_eq!((rejection.code.as_str(), rejection.violations[0].item), ("not-json", 3));
    }

    #[test]
    fn a_replacement_names_its_write() {
        let write = Write::json_value(2, "k", &json!(1));
        assert_eq!(
            write.replace_json(&json!({"a": 1})).unwrap(),
            Replacement { item: 2, value: b"{\"a\":1}".to_vec() }
        );
        let no_json = std::collections::BTreeMap::from([((1, 2), 3)]);
        assert_eq!(write.replace_json(&no_json).unwrap_err().code, "no-json");
    }
}
