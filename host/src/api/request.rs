//! Reading requests: keys from paths, query parameters, bodies within their limits, preconditions from headers.

use std::collections::BTreeMap;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, Uri, header};
use futures::StreamExt as _;
use percent_encoding::percent_decode_str;

use super::problem::{Kind, Problem};
use crate::json;
use crate::limits::{IDEMPOTENCY_KEY_BYTES_MAX, KEY_BYTES_MAX, REFUSED_BODY_BYTES_MAX, REFUSED_BODY_DEADLINE};
use crate::storage::{AskedBy, Fact, Precondition, Space};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The key in the path of a request below the base path, `/kv/<key>/`: percent-decoded, one trailing slash meaning nothing. A key
/// that ends in a slash is written with `%2F`.
pub(super) fn key_of(uri: &Uri) -> Result<String, Problem> {
    let path = uri.path();
    let raw = path.strip_prefix("/kv/").unwrap_or_default();
    let raw = raw.strip_suffix('/').unwrap_or(raw);
    let decoded = percent_decode_str(raw).decode_utf8();
    let key = decoded.map_err(|_| Problem::new(Kind::BAD_KEY, "the key is not UTF-8"))?.into_owned();
    check_key(&key)?;
    Ok(key)
}

/// Checks the length of a key.
pub(super) fn check_key(key: &str) -> Result<(), Problem> {
    match key.len() {
        0 => Err(Problem::new(Kind::BAD_KEY, "the key is empty; a key has 1 to 1,024 bytes")),
        1..=KEY_BYTES_MAX => Ok(()),
        bytes => Err(Problem::new(
            Kind::BAD_KEY,
            format!("the key has {bytes} bytes; a key has 1 to {KEY_BYTES_MAX} bytes of UTF-8"),
        )),
    }
}

/// Query parameters, each at most once and of a known name.
pub(super) struct Parameters {
    values: BTreeMap<String, String>,
}

impl Parameters {
    /// Reads the query of a URI.
    pub(super) fn of(uri: &Uri, allowed: &[&str]) -> Result<Self, Problem> {
        let mut values = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            if !allowed.contains(&name.as_ref()) {
                let known = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
                let detail = format!("there is no parameter {name:?} here; known are: {known}");
                return Err(Problem::new(Kind::BAD_PARAMETER, detail));
            }
            if values.insert(name.clone().into_owned(), value.into_owned()).is_some() {
                return Err(Problem::new(Kind::BAD_PARAMETER, format!("the parameter {name:?} is given twice")));
            }
        }
        Ok(Self { values })
    }

    /// The value of a parameter.
    pub(super) fn get(&mut self, name: &str) -> Option<String> {
        self.values.remove(name)
    }

    /// A parameter that is `true` or `false`; absent is false.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        match self.get(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(found) => Err(wrong(name, found, "true or false")),
        }
    }

    /// How fresh a read must be.
    pub(super) fn consistency(&mut self) -> Result<Consistency, Problem> {
        match self.get("consistency").as_deref() {
            None => Ok(Consistency::Prompt),
            Some("strong") => Ok(Consistency::Strong),
            Some("local") => Ok(Consistency::Local),
            Some(found) => Err(wrong("consistency", found, "strong or local; absent: strong if possible, else local")),
        }
    }
}

/// The problem of a parameter with a value that is not allowed.
pub(super) fn wrong(name: &str, found: &str, allowed: &str) -> Problem {
    Problem::new(Kind::BAD_PARAMETER, format!("{name} is {found:?}; allowed: {allowed}"))
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consistency {
    /// Linearizable if that can be had promptly, else local.
    Prompt,
    /// Linearizable or an error.
    Strong,
    /// This node's committed state.
    Local,
}

/// Reads a body of at most `limit` bytes; a longer one is refused before it is read, if it says so itself.
pub(super) async fn body(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, Problem> {
    let too_large = || Problem::new(Kind::TOO_LARGE, format!("the body has more than {limit} bytes"));
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(refuse(headers, body, too_large()).await);
    }
    axum::body::to_bytes(body, limit).await.map_err(|error| {
        let is_limit =
            std::error::Error::source(&error).is_some_and(|source| source.to_string().contains("length limit"));
        if is_limit { too_large() } else { Problem::new(Kind::BAD_BODY, "the body ended early") }
    })
}

/// Refuses a request whose body has not been read.
pub(super) async fn refuse(headers: &HeaderMap, body: Body, problem: Problem) -> Problem {
    // A client that asks before it sends (RFC 9110, section 10.1.1) has sent nothing yet.
    if !headers.contains_key(header::EXPECT) {
        discard(body).await;
    }
    problem
}

/// Reads a body and forgets it, within limits: a client that is cut off while it sends does not see the answer.
async fn discard(body: Body) {
    let mut body = body.into_data_stream();
    let mut left = REFUSED_BODY_BYTES_MAX;
    let all = async {
        while let Some(Ok(bytes)) = body.next().await {
            left = left.saturating_sub(bytes.len());
            if left == 0 {
                return;
            }
        }
    };
    // A slow client has had its chance.
    let _ = tokio::time::timeout(REFUSED_BODY_DEADLINE, all).await;
}

/// A JSON value in the form in which it is stored.
pub(super) fn compact(json: Bytes) -> Result<Bytes, Problem> {
    json::compact(json).map_err(|error| {
        Problem::new(Kind::BAD_BODY, format!("the value is not JSON as brink takes it: {error} of the value"))
    })
}

/// What `If-Match` and `If-None-Match` demand of a write to `key`.
pub(super) fn preconditions(headers: &HeaderMap, key: &str) -> Result<Vec<Precondition>, Problem> {
    let mut facts = Vec::new();
    if let Some(value) = header_text(headers, &header::IF_MATCH)? {
        facts.push(match value {
            "*" => Fact::Exists { key: key.to_owned() },
            etag => Fact::Revision { key: key.to_owned(), revision: Some(revision_of("If-Match", etag)?) },
        });
    }
    match header_text(headers, &header::IF_NONE_MATCH)? {
        None => {}
        Some("*") => facts.push(Fact::Revision { key: key.to_owned(), revision: None }),
        Some(found) => {
            let detail = format!("If-None-Match is {found}; on a write it may only be *");
            return Err(Problem::new(Kind::BAD_HEADER, detail));
        }
    }
    Ok(facts.into_iter().map(|fact| Precondition { asked_by: AskedBy::Client, space: Space::Kv, fact }).collect())
}

/// The client's name for a write: `Idempotency-Key`, taken as it is.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let bad = |found: &str| {
        let allowed = format!("one of 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters");
        Problem::new(Kind::BAD_HEADER, format!("Idempotency-Key is {found:?}; it must be {allowed}"))
    };
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().map_err(|_| bad("not ASCII"))?;
    let is_allowed = (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic());
    if values.next().is_some() || !is_allowed {
        return Err(bad(key));
    }
    Ok(Some(key.to_owned()))
}

/// Whether `If-None-Match` says that the client has this revision already (RFC 9110, section 13.1.2).
pub(super) fn has_already(headers: &HeaderMap, revision: u64) -> bool {
    let etag = etag(revision);
    let listed =
        |value: &str| value.split(',').map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == etag);
    headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()).is_some_and(listed)
}

/// The entity tag of an entry: its revision.
pub(super) fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

fn revision_of(name: &str, etag: &str) -> Result<u64, Problem> {
    let digits = etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"'));
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| {
        let detail = format!("{name} is {etag}; it must be * or one ETag as this node gave it, such as \"42\"");
        Problem::new(Kind::BAD_HEADER, detail)
    })
}

fn header_text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Result<Option<&'a str>, Problem> {
    let text = |value: &'a header::HeaderValue| {
        value.to_str().map_err(|_| Problem::new(Kind::BAD_HEADER, format!("{name} is not text")))
    };
    headers.get(name).map(text).transpose().map(|value| value.map(str::trim))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(path: &str) -> Result<String, Problem> {
        key_of(&format!("/kv/{path}").parse().unwrap())
    }

    #[test]
    fn a_key_is_what_the_path_says_without_one_trailing_slash() {
        assert_eq!(key("a/").unwrap(), "a");
        assert_eq!(key("a/b").unwrap(), "a/b");
        assert_eq!(key("a%2Fb%20c%2F/").unwrap(), "a/b c/");
        assert_eq!(key("%C3%A9").unwrap(), "é");
        assert!(key("%FF").is_err());
        assert!(key("/").is_err());
        assert!(key(&"k".repeat(1024)).is_ok());
        assert!(key(&"k".repeat(1025)).is_err());
    }

    #[test]
    fn unknown_and_repeated_parameters_are_refused() {
        let query = |query: &str| Parameters::of(&format!("/?{query}").parse().unwrap(), &["limit", "reverse"]);
        assert!(query("limt=1").is_err());
        assert!(query("limit=1&limit=2").is_err());
        let mut parameters = query("limit=1&reverse").unwrap();
        assert_eq!(parameters.get("limit").unwrap(), "1");
        assert!(parameters.flag("reverse").unwrap());
    }

    #[test]
    fn entity_tags_are_revisions() {
        let headers = |name: &'static str, value: &'static str| {
            HeaderMap::from_iter([(header::HeaderName::from_static(name), header::HeaderValue::from_static(value))])
        };
        let facts = preconditions(&headers("if-match", "\"7\""), "k").unwrap();
        assert_eq!(facts[0].fact, Fact::Revision { key: "k".into(), revision: Some(7) });
        assert!(preconditions(&headers("if-match", "7"), "k").is_err());
        assert!(preconditions(&headers("if-none-match", "\"7\""), "k").is_err());
        assert!(has_already(&headers("if-none-match", "\"6\", W/\"7\""), 7));
        assert!(!has_already(&headers("if-none-match", "\"6\""), 7));
    }
}
