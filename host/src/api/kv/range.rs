//! Many keys: `GET <base>/kv/` with a range, in pages.

use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

use super::entry;
use super::read::{Freshness, read};
use crate::api::problem::Problem;
use crate::api::request::{Call, Consistency, Parameters, Values, not_allowed};
use crate::api::{answer, browser};
use crate::limits::{PAGE_BYTES_MAX, PAGE_ENTRIES_DEFAULT, PAGE_ENTRIES_MAX};
use crate::storage::{RangeQuery, Space};

/// The format of cursors, their first byte.
const CURSOR_FORMAT: u8 = 1;

/// The parameters of a range: `start`, `end` and so on, see `README.md`.
pub(crate) struct Range {
    consistency: Consistency,
    query: RangeQuery,
}

pub(crate) async fn list(Call { app, grant, parameters, .. }: Call<Range>) -> Result<Response, Problem> {
    let Range { consistency, query } = parameters;
    grant.check_range(&query)?;
    let freshness = Freshness::establish(&app, consistency).await?;
    let (text, revision) = read(&app, move |data| {
        let page = data.scan(&query)?;
        let last = page.entries.last().filter(|_| page.has_more);
        let next_cursor = last.map(|last| cursor_after(&last.key, query.reverse));
        Ok((entry::page(&page, query.keys_only, next_cursor), page.revision))
    })
    .await?;
    freshness.count(&app);
    let mut response = answer::json(StatusCode::OK, text);
    browser::contain(&mut response);
    freshness.describe(revision, &mut response);
    Ok(response)
}

impl Parameters for Range {
    const NAMES: &'static [&'static str] =
        &["start", "end", "prefix", "limit", "cursor", "reverse", "keys_only", "consistency"];

    fn from_values(values: &mut Values<'_>) -> Result<Self, Problem> {
        let consistency = Consistency::from_values(values)?;
        let reverse = values.flag("reverse")?;
        let limit = match values.text("limit") {
            None => PAGE_ENTRIES_DEFAULT,
            Some(found) => match found.parse() {
                Ok(limit @ 1..=PAGE_ENTRIES_MAX) => limit,
                _ => return Err(not_allowed("limit", &found, &format!("1 to {PAGE_ENTRIES_MAX}"))),
            },
        };
        let allowed = "the next_cursor of an earlier page, in the same direction";
        let after =
            |cursor: String| read_cursor(&cursor, reverse).ok_or_else(|| not_allowed("cursor", &cursor, allowed));
        let query = RangeQuery {
            space: Space::Kv,
            start: values.text("start"),
            end: values.text("end").filter(|end| !end.is_empty()),
            prefix: values.text("prefix"),
            after: values.text("cursor").map(after).transpose()?,
            reverse,
            keys_only: values.flag("keys_only")?,
            limit: Some(limit),
            bytes_max: Some(PAGE_BYTES_MAX),
        };
        Ok(Self { consistency, query })
    }
}

/// A cursor: the format, the direction, and the last key of the page.
fn cursor_after(key: &str, reverse: bool) -> String {
    BASE64.encode([&[CURSOR_FORMAT, u8::from(reverse)][..], key.as_bytes()].concat())
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
