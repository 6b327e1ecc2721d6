//! Values between their bytes in the store and what clients send and see.

use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::storage::{EntryMeta, Value};

/// Appends an entry as the JSON object clients see. Without a value, only its key and what is kept beside it.
pub(super) fn push_entry(text: &mut String, key: &str, meta: EntryMeta, value: Option<&Value>) {
    text.push_str("{\"key\":");
    push_string(text, key);
    if let Some(value) = value {
        push_value(text, value);
    }
    text.push_str(&format!(
        ",\"version\":{},\"revision\":{},\"created_at\":\"{}\",\"updated_at\":\"{}\"}}",
        meta.version,
        meta.revision,
        timestamp(meta.created_at_ms),
        timestamp(meta.updated_at_ms)
    ));
}

fn push_value(text: &mut String, value: &Value) {
    match std::str::from_utf8(&value.bytes) {
        Ok(json) if value.is_json() => {
            text.push_str(",\"value\":");
            text.push_str(json);
        }
        _ => {
            text.push_str(",\"value_base64\":\"");
            BASE64.encode_string(&value.bytes, text);
            text.push_str("\",\"content_type\":");
            push_string(text, &value.content_type);
        }
    }
}

/// Appends a JSON string.
pub(super) fn push_string(text: &mut String, string: &str) {
    text.push_str(&serde_json::Value::from(string).to_string());
}

/// Decodes a value that came as base64 (RFC 4648, section 4).
pub(super) fn from_base64(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}

/// A time as RFC 3339, in UTC with milliseconds.
fn timestamp(unix_ms: u64) -> String {
    // The year 9999 is the last that RFC 3339 can write.
    const LAST_MS: u64 = 253_402_300_799_999;
    let time = UNIX_EPOCH + Duration::from_millis(unix_ms.min(LAST_MS));
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_shown_with_its_value_or_its_bytes() {
        let meta = EntryMeta { version: 2, revision: 9, created_at_ms: 0, updated_at_ms: 1_500 };
        let mut text = String::new();
        push_entry(&mut text, "a\"b", meta, Some(&Value::json("[1]")));
        assert_eq!(
            text,
            r#"{"key":"a\"b","value":[1],"version":2,"revision":9,"created_at":"1970-01-01T00:00:00.000Z","updated_at":"1970-01-01T00:00:01.500Z"}"#
        );
        let mut text = String::new();
        let bytes = Value { content_type: "image/png".into(), bytes: vec![0xff, 0].into() };
        push_entry(&mut text, "a", meta, Some(&bytes));
        assert!(text.contains(r#""value_base64":"/wA=","content_type":"image/png""#), "{text}");
    }
}
