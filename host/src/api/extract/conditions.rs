//! Conditional requests (RFC 9110, section 13): `If-Match`, `If-None-Match`, and the entity tags they name.
//!
//! The entity tag of an entry is its revision.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::api::problem::{Kind, Problem};
use crate::storage::{AskedBy, Fact, Precondition, Space};

/// The entity tag of a revision.
pub(crate) fn etag(revision: u64) -> String {
    format!("\"{revision}\"")
}

/// The conditions of a write: `If-Match`, and `If-None-Match: *`.
pub(crate) struct Preconditions {
    if_match: Option<IfMatch>,
    must_be_absent: bool,
}

enum IfMatch {
    AnyRevision,
    Revision(u64),
}

/// The entity tags that a reader has already: `If-None-Match`.
pub(crate) struct IfNoneMatch(Option<HeaderValue>);

impl<S: Sync> FromRequestParts<S> for Preconditions {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::parse(&parts.headers)
    }
}

impl Preconditions {
    fn parse(headers: &HeaderMap) -> Result<Self, Problem> {
        let if_match = match text(headers, &header::IF_MATCH)? {
            None => None,
            Some("*") => Some(IfMatch::AnyRevision),
            Some(etag) => Some(IfMatch::Revision(revision_of(etag)?)),
        };
        let must_be_absent = match text(headers, &header::IF_NONE_MATCH)? {
            None => false,
            Some("*") => true,
            Some(found) => {
                let detail = format!("If-None-Match is {found}; on a write it may only be *");
                return Err(Problem::new(Kind::BAD_HEADER, detail));
            }
        };
        Ok(Self { if_match, must_be_absent })
    }

    /// The conditions as preconditions on a key.
    pub(crate) fn on(self, key: &str) -> Vec<Precondition> {
        let matching = self.if_match.map(|condition| match condition {
            IfMatch::AnyRevision => Fact::Exists { key: key.to_owned() },
            IfMatch::Revision(revision) => Fact::Revision { key: key.to_owned(), revision: Some(revision) },
        });
        let absent = self.must_be_absent.then(|| Fact::Revision { key: key.to_owned(), revision: None });
        let facts = matching.into_iter().chain(absent);
        facts.map(|fact| Precondition { asked_by: AskedBy::Client, space: Space::Kv, fact }).collect()
    }
}

impl<S: Sync> FromRequestParts<S> for IfNoneMatch {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(parts.headers.get(header::IF_NONE_MATCH).cloned()))
    }
}

impl IfNoneMatch {
    /// Whether the reader has this revision (RFC 9110, section 13.1.2).
    pub(crate) fn includes(&self, revision: u64) -> bool {
        let Some(listed) = self.0.as_ref().and_then(|value| value.to_str().ok()) else { return false };
        let etag = etag(revision);
        listed.split(',').map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == etag)
    }
}

fn revision_of(etag: &str) -> Result<u64, Problem> {
    let digits = etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"'));
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| {
        let detail = format!("If-Match is {etag}; it must be * or one ETag as this node gave it, such as \"42\"");
        Problem::new(Kind::BAD_HEADER, detail)
    })
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    match value.to_str() {
        Ok(text) => Ok(Some(text.trim())),
        Err(_) => Err(Problem::new(Kind::BAD_HEADER, format!("{name} is not text"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn entity_tags_are_revisions() {
        let if_match = Preconditions::parse(&headers(header::IF_MATCH, "\"7\"")).unwrap().on("k");
        assert_eq!(if_match[0].fact, Fact::Revision { key: "k".into(), revision: Some(7) });
        assert!(Preconditions::parse(&headers(header::IF_MATCH, "7")).is_err());
        assert!(Preconditions::parse(&headers(header::IF_NONE_MATCH, "\"7\"")).is_err());
    }

    #[test]
    fn a_star_asks_for_an_entry_or_for_none() {
        let facts = |name| Preconditions::parse(&headers(name, "*")).unwrap().on("k").remove(0).fact;
        assert_eq!(facts(header::IF_MATCH), Fact::Exists { key: "k".into() });
        assert_eq!(facts(header::IF_NONE_MATCH), Fact::Revision { key: "k".into(), revision: None });
        assert!(Preconditions::parse(&HeaderMap::new()).unwrap().on("k").is_empty());
    }

    #[test]
    fn a_reader_may_list_several_entity_tags() {
        let has = |value| IfNoneMatch(Some(HeaderValue::from_static(value))).includes(7);
        assert!(has("\"6\", W/\"7\""));
        assert!(has("*"));
        assert!(!has("\"6\""));
        assert!(!IfNoneMatch(None).includes(7));
    }
}
