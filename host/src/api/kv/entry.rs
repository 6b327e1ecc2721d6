//! Entries as the JSON text of responses, written by hand.
//!
//! # Why by hand
//!
//! The value of an entry is JSON text already. `serde_json` embeds text only as a `RawValue`, and makes one only by parsing
//! the text again; every read would parse its value to copy it.

use std::fmt::{Display, Write as _};
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::storage::{Action, Effect, EntryMeta, Page, Value};
use crate::write_path::Written;

/// Room for the members of an entry other than its key and its value, in bytes.
const ENTRY_SPARE_BYTES: usize = 192;

/// One entry.
pub(super) fn one(key: &str, meta: EntryMeta, value: &Value) -> String {
    let mut text = Text(String::with_capacity(ENTRY_SPARE_BYTES + key.len() + value.bytes.len()));
    text.entry(key, meta, Some(value));
    text.0
}

/// A page of a range; without values if `keys_only`.
pub(super) fn page(page: &Page, keys_only: bool, next_cursor: Option<&str>) -> String {
    let mut text = Text(String::new());
    text.raw("{\"count\":").show(page.entries.len()).raw(",\"results\":[");
    for (position, entry) in page.entries.iter().enumerate() {
        text.separate(position);
        text.entry(&entry.key, entry.meta, Some(&entry.value).filter(|_| !keys_only));
    }
    text.raw("],\"has_more\":").show(page.has_more).raw(",\"next_cursor\":");
    match next_cursor {
        Some(cursor) => text.string(cursor).raw("}"),
        None => text.raw("null}"),
    };
    text.0
}

/// The result of a batch.
pub(super) fn batch(written: &Written) -> String {
    let mut text = Text(String::new());
    text.raw("{\"count\":").show(written.operations.len());
    text.raw(",\"revision\":").show(written.revision).raw(",\"results\":[");
    for (position, (operation, effect)) in written.operations.iter().zip(&written.effects).enumerate() {
        text.separate(position);
        match (effect, &operation.action) {
            (Effect::Put(meta), Action::Put(value)) => text.entry(&operation.key, *meta, Some(value)),
            (effect, _) => {
                let existed = matches!(effect, Effect::Deleted { existed: true });
                text.raw("{\"key\":").string(&operation.key);
                text.raw(",\"deleted\":true,\"existed\":").show(existed).raw("}");
            }
        }
    }
    text.raw("]}");
    text.0
}

/// JSON text that grows.
struct Text(String);

impl Text {
    fn raw(&mut self, text: &str) -> &mut Self {
        self.0.push_str(text);
        self
    }

    /// Appends a number, a boolean or a time.
    fn show(&mut self, shown: impl Display) -> &mut Self {
        // Writing to a string does not fail.
        let _ = write!(self.0, "{shown}");
        self
    }

    fn string(&mut self, string: &str) -> &mut Self {
        if string.bytes().any(|byte| matches!(byte, 0..=0x1f | b'"' | b'\\')) {
            return self.show(serde_json::Value::from(string));
        }
        self.raw("\"").raw(string).raw("\"")
    }

    /// Separates an element from the one before it.
    fn separate(&mut self, position: usize) {
        if position > 0 {
            self.raw(",");
        }
    }

    fn entry(&mut self, key: &str, meta: EntryMeta, value: Option<&Value>) {
        self.raw("{\"key\":").string(key);
        if let Some(value) = value {
            self.value(value);
        }
        self.raw(",\"version\":").show(meta.version).raw(",\"revision\":").show(meta.revision);
        self.raw(",\"created_at\":\"").show(timestamp(meta.created_at_ms));
        self.raw("\",\"updated_at\":\"").show(timestamp(meta.updated_at_ms)).raw("\"}");
    }

    fn value(&mut self, value: &Value) {
        match std::str::from_utf8(&value.bytes) {
            Ok(json) if value.is_json() => {
                self.raw(",\"value\":").raw(json);
            }
            _ => {
                self.raw(",\"value_base64\":\"");
                BASE64.encode_string(&value.bytes, &mut self.0);
                self.raw("\",\"content_type\":").string(&value.content_type);
            }
        }
    }
}

/// A time as RFC 3339, in UTC with milliseconds.
fn timestamp(unix_ms: u64) -> impl Display {
    // The year 9999 is the last that RFC 3339 can write.
    const LAST_MS: u64 = 253_402_300_799_999;
    humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(unix_ms.min(LAST_MS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: EntryMeta = EntryMeta { version: 2, revision: 9, created_at_ms: 0, updated_at_ms: 1_500 };

    #[test]
    fn an_entry_is_shown_with_its_value_or_its_bytes() {
        assert_eq!(
            one("a\"b", META, &Value::json("[1]")),
            r#"{"key":"a\"b","value":[1],"version":2,"revision":9,"created_at":"1970-01-01T00:00:00.000Z","updated_at":"1970-01-01T00:00:01.500Z"}"#
        );
        let bytes = Value { content_type: "image/png".into(), bytes: vec![0xff, 0].into() };
        let text = one("a", META, &bytes);
        assert!(text.contains(r#""value_base64":"/wA=","content_type":"image/png""#), "{text}");
    }

    #[test]
    fn strings_are_escaped_as_serde_json_escapes_them() {
        for string in ["", "plain é", "a\"b", "a\\b", "\n\u{1f}", "\u{7f}\u{2028}"] {
            let mut text = Text(String::new());
            text.string(string);
            assert_eq!(text.0, serde_json::to_string(string).unwrap());
        }
    }

    #[test]
    fn times_end_with_the_year_9999() {
        assert_eq!(timestamp(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    }
}
