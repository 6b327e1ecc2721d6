//! Many keys: `GET <base>/kv/` with a range, in pages.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

use super::kv::{Freshness, json, read};
use super::problem::Problem;
use super::request::{Parameters, wrong};
use super::{App, value};
use crate::limits::{PAGE_BYTES_MAX, PAGE_ENTRIES_DEFAULT, PAGE_ENTRIES_MAX};
use crate::storage::{Page, RangeQuery, Space};

const PARAMETERS: [&str; 8] = ["start", "end", "prefix", "limit", "cursor", "reverse", "keys_only", "consistency"];

/// The format of cursors, their first byte.
const CURSOR_FORMAT: u8 = 1;

/// `GET`: a page of a range.
pub(super) async fn list(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri, &PARAMETERS)?;
    let consistency = parameters.consistency()?;
    let query = query_of(&mut parameters)?;
    let freshness = Freshness::establish(&app, consistency).await?;
    let (text, revision) = read(&app, move |data| {
        let page = data.scan(&query)?;
        Ok((page_json(&page, &query), page.revision))
    })
    .await?;
    freshness.count(&app);
    let mut response = json(StatusCode::OK, text);
    freshness.describe(revision, &mut response);
    Ok(response)
}

fn query_of(parameters: &mut Parameters) -> Result<RangeQuery, Problem> {
    let reverse = parameters.flag("reverse")?;
    let limit = match parameters.get("limit") {
        None => PAGE_ENTRIES_DEFAULT,
        Some(found) => match found.parse() {
            Ok(limit @ 1..=PAGE_ENTRIES_MAX) => limit,
            _ => return Err(wrong("limit", &found, &format!("1 to {PAGE_ENTRIES_MAX}"))),
        },
    };
    let after = match parameters.get("cursor") {
        None => None,
        Some(cursor) => {
            let allowed = "the next_cursor of an earlier page, in the same direction";
            Some(read_cursor(&cursor, reverse).ok_or_else(|| wrong("cursor", &cursor, allowed))?)
        }
    };
    Ok(RangeQuery {
        space: Space::Kv,
        start: parameters.get("start"),
        end: parameters.get("end").filter(|end| !end.is_empty()),
        prefix: parameters.get("prefix"),
        after,
        reverse,
        keys_only: parameters.flag("keys_only")?,
        limit,
        bytes_max: PAGE_BYTES_MAX,
    })
}

fn page_json(page: &Page, query: &RangeQuery) -> String {
    let mut text = format!("{{\"count\":{},\"results\":[", page.entries.len());
    for (position, entry) in page.entries.iter().enumerate() {
        if position > 0 {
            text.push(',');
        }
        let value = if query.keys_only { None } else { Some(&entry.value) };
        value::push_entry(&mut text, &entry.key, entry.meta, value);
    }
    let next = page.entries.last().filter(|_| page.has_more).map(|last| cursor_after(&last.key, query.reverse));
    text.push_str(&format!("],\"has_more\":{},\"next_cursor\":", page.has_more));
    match next {
        Some(cursor) => value::push_string(&mut text, &cursor),
        None => text.push_str("null"),
    }
    text.push('}');
    text
}

/// A cursor: the format, the direction, and the last key of the page.
fn cursor_after(key: &str, reverse: bool) -> String {
    let mut cursor = vec![CURSOR_FORMAT, u8::from(reverse)];
    cursor.extend_from_slice(key.as_bytes());
    BASE64.encode(cursor)
}

fn read_cursor(cursor: &str, reverse: bool) -> Option<String> {
    let bytes = BASE64.decode(cursor).ok()?;
    match bytes.split_first_chunk::<2>()? {
        ([CURSOR_FORMAT, direction], key) if *direction == u8::from(reverse) => String::from_utf8(key.to_vec()).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_only_in_its_direction() {
        let cursor = cursor_after("a/é", false);
        assert_eq!(read_cursor(&cursor, false).unwrap(), "a/é");
        assert_eq!(read_cursor(&cursor, true), None);
        for wrong in ["", "AA", "%%%", &BASE64.encode([9, 0, b'a']), &BASE64.encode([1, 0, 0xff])] {
            assert_eq!(read_cursor(wrong, false), None, "{wrong}");
        }
    }
}
