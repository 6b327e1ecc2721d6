//! Entries as the JSON text of responses, written by hand.
//!
//! The value of an entry is JSON text already. `serde_json` embeds text only as a `RawValue`, and makes one only by parsing
//! the text again; every read would parse its value to copy it.

use std::fmt::Display;
use std::io::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::api::problem::Problem;
use crate::storage::{Effect, EntryMeta, Page, Value};
use crate::write_path::{Change, Written};

/// Room for the members of an entry other than its key and its value, in bytes.
const ENTRY_SPARE_BYTES: usize = 192;

/// An entry; without its value if that is not known.
pub(super) fn one(key: &str, meta: EntryMeta, value: Option<&Value>) -> Vec<u8> {
    let value_bytes = value.map_or(0, |value| value.bytes.len());
    let mut text = Vec::with_capacity(ENTRY_SPARE_BYTES + key.len() + value_bytes);
    push_entry(&mut text, key, meta, value);
    text
}

/// A page of a range; without values if `keys_only`.
pub(super) fn page(page: &Page, keys_only: bool, next_cursor: Option<String>) -> Vec<u8> {
    let mut text = format!("{{\"count\":{},\"results\":[", page.entries.len()).into_bytes();
    for (position, entry) in page.entries.iter().enumerate() {
        separate(&mut text, position);
        push_entry(&mut text, &entry.key, entry.meta, Some(&entry.value).filter(|_| !keys_only));
    }
    let (has_more, next_cursor) = (page.has_more, serde_json::Value::from(next_cursor));
    text.extend(format!("],\"has_more\":{has_more},\"next_cursor\":{next_cursor}}}").into_bytes());
    text
}

pub(super) fn batch(written: &Written) -> Vec<u8> {
    let (count, revision) = (written.changes.len(), written.revision);
    let mut text = format!("{{\"count\":{count},\"revision\":{revision},\"results\":[").into_bytes();
    for (position, change) in written.changes.iter().enumerate() {
        separate(&mut text, position);
        push_change(&mut text, change, change.value.as_ref());
    }
    text.extend(b"]}");
    text
}

/// The line that answers one write of a stream: without the value, which the client has.
pub(super) fn line(written: &Written) -> Result<Vec<u8>, Problem> {
    let change = written.changes.first().ok_or_else(|| Problem::internal("the write had an unexpected effect"))?;
    let mut text = Vec::with_capacity(ENTRY_SPARE_BYTES + change.key.len());
    push_change(&mut text, change, None);
    if written.repeated {
        text.pop();
        text.extend(b",\"repeated\":true}");
    }
    text.push(b'\n');
    Ok(text)
}

fn push_change(text: &mut Vec<u8>, Change { key, effect, .. }: &Change, value: Option<&Value>) {
    match effect {
        Effect::Put(meta) => push_entry(text, key, *meta, value),
        Effect::Deleted { existed } => {
            push_member(text, "{\"key\":", key);
            text.extend(format!(",\"deleted\":true,\"existed\":{existed}}}").into_bytes());
        }
    }
}

/// Separates an element from the one before it.
fn separate(text: &mut Vec<u8>, position: usize) {
    if position > 0 {
        text.push(b',');
    }
}

fn push_entry(text: &mut Vec<u8>, key: &str, meta: EntryMeta, value: Option<&Value>) {
    push_member(text, "{\"key\":", key);
    match value {
        None => {}
        Some(value) if value.is_json() && std::str::from_utf8(&value.bytes).is_ok() => {
            text.extend(b",\"value\":");
            text.extend_from_slice(&value.bytes);
        }
        Some(value) => {
            // Writing to a vector does not fail.
            let _ = write!(text, ",\"value_base64\":\"{}\"", Base64Display::new(&value.bytes, &BASE64));
            push_member(text, ",\"content_type\":", &value.content_type);
        }
    }
    let EntryMeta { version, revision, created_at_ms, updated_at_ms } = meta;
    push_number(text, ",\"version\":", version);
    push_number(text, ",\"revision\":", revision);
    let (created_at, updated_at) = (timestamp(created_at_ms), timestamp(updated_at_ms));
    let _ = write!(text, ",\"created_at\":\"{created_at}\",\"updated_at\":\"{updated_at}\"}}");
}

fn push_number(text: &mut Vec<u8>, name: &str, number: u64) {
    text.extend_from_slice(name.as_bytes());
    text.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn push_member(text: &mut Vec<u8>, name: &str, string: &str) {
    text.extend_from_slice(name.as_bytes());
    let _ = serde_json::to_writer(text, string);
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

    #[test]
    fn an_entry_is_shown_with_its_value_or_its_bytes() {
        let meta = EntryMeta { version: 2, revision: 9, created_at_ms: 0, updated_at_ms: 1_500 };
        let text = |key, value| String::from_utf8(one(key, meta, Some(&value))).unwrap();
        assert_eq!(
            text("a\"b", Value::json("[1]")),
            r#"{"key":"a\"b","value":[1],"version":2,"revision":9,"created_at":"1970-01-01T00:00:00.000Z","updated_at":"1970-01-01T00:00:01.500Z"}"#
        );
        let text = text("a", Value { content_type: "image/png".into(), bytes: vec![0xff, 0].into() });
        assert!(text.contains(r#""value_base64":"/wA=","content_type":"image/png""#), "{text}");
        let without = String::from_utf8(one("a", meta, None)).unwrap();
        assert!(without.starts_with(r#"{"key":"a","version":2,"#), "{without}");
    }

    #[test]
    fn times_end_with_the_year_9999() {
        assert_eq!(timestamp(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    }
}
