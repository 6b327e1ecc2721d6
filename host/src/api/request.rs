//! Requests: their parameters, key and headers, decoded and checked. [`super::body`] reads their bodies.
//!
//! Every handler of a client's request takes a [`Call`], and asks the functions below for the parts that it needs. The first
//! mistake decides the answer. A client that is cut off while it sends a large body does not see the answer, so handlers
//! read such a body before they check the last headers.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, Method, Uri, header};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::browser::Browsers;
use super::problem::{Kind, Problem};
use super::refusal::refuse;
use crate::hooks::Record;
use crate::limits::{ByteBudget, IDEMPOTENCY_KEY_BYTES_MAX, KEY_BYTES_MAX, NAME_BYTES_MAX};
use crate::net::BASE_PATH;
use crate::registry::{Author, Registry};
use crate::replication;
use crate::storage::{AskedBy, Data, Fact, Precondition, Space, Value};
use crate::telemetry::Telemetry;
use crate::write_path::WritePath;

// Constants, since a name that is given as text is parsed for each request.
const PREFER: HeaderName = HeaderName::from_static("prefer");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The media type of lines of JSON.
pub(super) const JSON_LINES: &str = "application/x-ndjson";

/// What the ETags of raw values end with.
const RAW: &str = "-raw";

/// The parts of a node that handlers work with.
pub(crate) struct App {
    pub write_path: WritePath,
    pub replication: replication::Handle,
    pub registry: Registry,
    /// Lines and figures of the plugins on this node.
    pub plugin_record: Record,
    /// Room for the bodies of requests.
    pub bodies: ByteBudget,
    /// Cancelled once the node stops: it accepts no more connections, and endless responses end.
    pub draining: CancellationToken,
    pub data: Data,
    pub telemetry: Telemetry,
    /// What pages may make a browser send.
    pub browsers: Arc<Browsers>,
}

/// A request whose query parameters and media type are checked, and the node that serves it.
pub(crate) struct Call<P = ()> {
    pub(super) app: Arc<App>,
    pub(super) parameters: P,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

/// The state of the router. Only [`Call`] opens it, so that no handler forgets to check its parameters.
#[derive(Clone)]
pub(crate) struct Sealed(Arc<App>);

pub(super) fn seal(app: Arc<App>) -> Sealed {
    Sealed(app)
}

impl<P: Parameters> FromRequest<Sealed> for Call<P> {
    type Rejection = Problem;

    async fn from_request(request: Request, Sealed(app): &Sealed) -> Result<Self, Problem> {
        Self::new(app, request).await
    }
}

impl<P: Parameters> Call<P> {
    /// Fails if a parameter, or the type of the body, is not allowed.
    pub(super) async fn new(app: &Arc<App>, request: Request) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let parameters = parameters(parts.uri.query().unwrap_or_default())?;
        if let Err(problem) = check_body_type(&parts) {
            return Err(Box::pin(refuse(&parts.headers, body, problem)).await);
        }
        Ok(Self { app: app.clone(), parameters, uri: parts.uri, headers: parts.headers, body })
    }
}

/// Whether a body is of a type that its handler reads. A `POST` must say that it is JSON, even without a body: a browser sends forms
/// and plain text for any page without asking the node first. What a `PUT` takes is its handler's to say.
fn check_body_type(Parts { method, uri, headers, .. }: &Parts) -> Result<(), Problem> {
    if matches!(*method, Method::GET | Method::HEAD | Method::DELETE) {
        return Ok(());
    }
    let unsupported = |detail| Err(Problem::new(Kind::UNSUPPORTED_MEDIA_TYPE, detail));
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    if let Some(encoding) = encodings.find(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return unsupported(format!("the body has the Content-Encoding {encoding:?}; send it without one"));
    }
    if *method != Method::POST {
        return Ok(());
    }
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let takes_lines = raw_key(uri).is_some_and(|path| path.strip_suffix('/').unwrap_or(path) == "stream");
    let taken: &[&str] = if takes_lines { &[JSON_LINES, Value::JSON] } else { &[Value::JSON] };
    match taken.iter().any(|taken| essence(content_type).eq_ignore_ascii_case(taken)) {
        true => Ok(()),
        false => unsupported(format!("this POST needs Content-Type: {}", taken.join(" or "))),
    }
}

/// The query parameters that a route takes; any other is refused.
pub(crate) trait Parameters: Sized + Send {
    const NAMES: &'static [&'static str];

    fn from_values(values: &mut Values<'_>) -> Result<Self, Problem>;
}

/// The values of a query by their names.
pub(crate) struct Values<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl Values<'_> {
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        let position = self.0.iter().position(|(found, _)| found == name)?;
        Some(self.0.swap_remove(position).1.into_owned())
    }

    /// Takes a parameter that is `true` or `false`. Absent means false; without a value it means true.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Problem> {
        match self.text(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true" | "") => Ok(true),
            Some(found) => Err(not_allowed(name, found, "true or false")),
        }
    }
}

impl Parameters for () {
    const NAMES: &'static [&'static str] = &[];

    fn from_values(_: &mut Values<'_>) -> Result<Self, Problem> {
        Ok(())
    }
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consistency {
    /// Linearizable if that is possible promptly, else local.
    Prompt,
    /// Linearizable or an error.
    Strong,
    /// This node's committed state.
    Local,
}

impl Parameters for Consistency {
    const NAMES: &'static [&'static str] = &["consistency"];

    fn from_values(values: &mut Values<'_>) -> Result<Self, Problem> {
        match values.text("consistency").as_deref() {
            None => Ok(Self::Prompt),
            Some("strong") => Ok(Self::Strong),
            Some("local") => Ok(Self::Local),
            Some(found) => {
                Err(not_allowed("consistency", found, "strong or local; absent: strong if possible, else local"))
            }
        }
    }
}

fn parameters<P: Parameters>(query: &str) -> Result<P, Problem> {
    let bad = |detail| Err(Problem::new(Kind::BAD_PARAMETER, detail));
    let mut values = Values(Vec::new());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if !P::NAMES.contains(&name.as_ref()) {
            let known = if P::NAMES.is_empty() { "none".to_owned() } else { P::NAMES.join(", ") };
            return bad(format!("there is no parameter {name:?} here; known are: {known}"));
        }
        if values.0.iter().any(|(earlier, _)| *earlier == name) {
            return bad(format!("the parameter {name:?} is given twice"));
        }
        values.0.push((name, value));
    }
    P::from_values(&mut values)
}

pub(super) fn not_allowed(name: &str, found: &str, allowed: &str) -> Problem {
    Problem::new(Kind::BAD_PARAMETER, format!("{name} is {found:?}; allowed: {allowed}"))
}

/// What follows `<base>/kv/` in a path, as it was sent; none in any other path.
pub(super) fn raw_key(uri: &Uri) -> Option<&str> {
    uri.path().strip_prefix(BASE_PATH)?.strip_prefix("/kv/")
}

/// The key in the path `<base>/kv/<key>/`: percent-decoded, without one trailing slash. `%2F` writes a slash at its end.
pub(super) fn key(uri: &Uri) -> Result<String, Problem> {
    let raw = raw_key(uri).unwrap_or_default();
    let decoded = percent_decode_str(raw.strip_suffix('/').unwrap_or(raw)).decode_utf8();
    let key = decoded.map_err(|_| Problem::new(Kind::BAD_KEY, "the key is not UTF-8"))?.into_owned();
    check_key(&key)?;
    Ok(key)
}

pub(super) fn check_key(key: &str) -> Result<(), Problem> {
    let detail = match key.len() {
        0 => "the key is empty; a key has 1 to 1,024 bytes".to_owned(),
        1..=KEY_BYTES_MAX => return Ok(()),
        bytes => format!("the key has {bytes} bytes; a key has 1 to {KEY_BYTES_MAX} bytes of UTF-8"),
    };
    Err(Problem::new(Kind::BAD_KEY, detail))
}

/// How a response shows an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    /// The bytes of its value.
    Raw,
}

/// The entity tag of an entry: its revision. Each form has one of its own, since the bytes differ (RFC 9110, section 8.8.3).
pub(super) fn etag(revision: u64, form: Form) -> String {
    let form = if form == Form::Raw { RAW } else { "" };
    ["\"", itoa::Buffer::new().format(revision), form, "\""].concat()
}

/// The preconditions of a write on a key: `If-Match`, and `If-None-Match: *` (RFC 9110, section 13).
pub(super) fn preconditions(headers: &HeaderMap, key: &str) -> Result<Vec<Precondition>, Problem> {
    let key = || key.to_owned();
    let matching = match header_text(headers, &header::IF_MATCH)? {
        None => None,
        Some("*") => Some(Fact::Exists { key: key() }),
        Some(etag) => {
            let tag = etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"'));
            // Whichever form the client has seen, it is of this revision.
            let digits = tag.map(|tag| tag.strip_suffix(RAW).unwrap_or(tag));
            let revision = digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| {
                let allowed = "* or one ETag as this node gave it, such as \"42\"";
                Problem::new(Kind::BAD_HEADER, format!("If-Match is {etag}; it must be {allowed}"))
            })?;
            Some(Fact::Revision { key: key(), revision: Some(revision) })
        }
    };
    let absent = match header_text(headers, &header::IF_NONE_MATCH)? {
        None => None,
        Some("*") => Some(Fact::Revision { key: key(), revision: None }),
        Some(found) => {
            let detail = format!("If-None-Match is {found}; on a write it may only be *");
            return Err(Problem::new(Kind::BAD_HEADER, detail));
        }
    };
    let facts = matching.into_iter().chain(absent);
    Ok(facts.map(|fact| Precondition { asked_by: AskedBy::Client, space: Space::Kv, fact }).collect())
}

fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let text = headers.get(name).map(|value| value.to_str()).transpose();
    let text = text.map_err(|_| Problem::new(Kind::BAD_HEADER, format!("{name} is not text")))?;
    Ok(text.map(str::trim))
}

/// Whether a reader has this form of this revision already: `If-None-Match` (RFC 9110, section 13.1.2).
pub(super) fn has_already(headers: &HeaderMap, revision: u64, form: Form) -> bool {
    let mut named = elements(headers, header::IF_NONE_MATCH);
    named.any(|one| one == "*" || one.trim_start_matches("W/") == etag(revision, form))
}

/// Whether a response without a body is enough: `Prefer: return=minimal` (RFC 7240).
pub(super) fn prefers_minimal(headers: &HeaderMap) -> bool {
    elements(headers, PREFER).any(|one| one.eq_ignore_ascii_case("return=minimal"))
}

/// The form that the client wants: the bytes of the value and not its entry, if it accepts `application/octet-stream` or the
/// value's own type.
pub(super) fn accepted(headers: &HeaderMap, value: &Value) -> Form {
    let own = Some(essence(&value.content_type)).filter(|_| !value.is_json());
    let accepts_raw = elements(headers, header::ACCEPT).map(essence).any(|accepted| {
        accepted.eq_ignore_ascii_case("application/octet-stream")
            || own.is_some_and(|own| accepted.eq_ignore_ascii_case(own))
    });
    if accepts_raw { Form::Raw } else { Form::Json }
}

/// A media type without its parameters.
pub(super) fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

/// The elements of a header that is a list.
fn elements(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let list = headers.get(name).and_then(|value| value.to_str().ok());
    list.into_iter().flat_map(|list| list.split(',')).map(str::trim)
}

/// The client's name for a write: `Idempotency-Key`, taken as it is.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().unwrap_or_default();
    let checked = if values.next().is_some() { Err("is there twice".to_owned()) } else { check_idempotency_key(key) };
    checked.map_err(|wrong| Problem::new(Kind::BAD_HEADER, format!("Idempotency-Key {wrong}")))?;
    Ok(Some(key.to_owned()))
}

/// What is wrong with a name for a write.
pub(super) fn check_idempotency_key(key: &str) -> Result<(), String> {
    let has_length = (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len());
    match has_length && key.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => {
            Err(format!("is {key:?}; it must be one of 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters"))
        }
    }
}

/// The person who changes the registry, as the client says in `Brink-User`.
pub(super) fn author(headers: &HeaderMap) -> Result<Author, Problem> {
    let Some(by) = headers.get("brink-user") else { return Ok(Author::default()) };
    match by.to_str() {
        Ok(by) if (1..=NAME_BYTES_MAX).contains(&by.len()) => {
            Ok(Author { by: Some(by.to_owned()), ..Author::default() })
        }
        _ => {
            let allowed = format!("1 to {NAME_BYTES_MAX} visible characters of ASCII");
            Err(not_allowed("Brink-User", &format!("{by:?}"), &allowed))
        }
    }
}

/// Reads a JSON object that a handler takes; `shape` shows it to people.
pub(super) fn json<'a, T: Deserialize<'a>>(body: &'a [u8], shape: &str) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::new(Kind::BAD_BODY, format!("the body must be {shape}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_repeated_parameters_are_refused() {
        assert!(parameters::<Consistency>("consistensy=local").is_err());
        assert!(parameters::<Consistency>("consistency=local&consistency=local").is_err());
        assert!(parameters::<()>("").is_ok());
        assert!(parameters::<()>("consistency=local").is_err());
        let mut values = Values(vec![("limit".into(), "1".into()), ("reverse".into(), "".into())]);
        assert_eq!(values.text("limit").unwrap(), "1");
        assert!(values.flag("reverse").unwrap());
    }

    #[test]
    fn consistency_is_strong_or_local_or_absent() {
        assert_eq!(parameters::<Consistency>("").unwrap(), Consistency::Prompt);
        assert_eq!(parameters::<Consistency>("consistency=strong").unwrap(), Consistency::Strong);
        assert_eq!(parameters::<Consistency>("consistency=local").unwrap(), Consistency::Local);
        assert!(parameters::<Consistency>("consistency=eventual").is_err());
    }

    #[test]
    fn a_key_is_what_the_path_says_without_one_trailing_slash() {
        let key = |path: &str| key(&format!("{BASE_PATH}/kv/{path}").parse().unwrap());
        for (path, expected) in [("a/", "a"), ("a/b", "a/b"), ("a%2Fb%20c%2F/", "a/b c/"), ("%C3%A9", "é")] {
            assert_eq!(key(path).unwrap(), expected);
        }
        assert!(key("%FF").is_err());
        assert!(key("/").is_err());
        assert!(key(&"k".repeat(1024)).is_ok());
        assert!(key(&"k".repeat(1025)).is_err());
    }

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), value.parse().unwrap())])
    }

    #[test]
    fn entity_tags_are_revisions() {
        let fact = |name, value| preconditions(&headers(name, value), "k").map(|mut all| all.remove(0).fact);
        let revision = |revision| Fact::Revision { key: "k".into(), revision };
        assert_eq!(fact("if-match", "\"7\"").unwrap(), revision(Some(7)));
        assert_eq!(fact("if-match", "*").unwrap(), Fact::Exists { key: "k".into() });
        assert_eq!(fact("if-none-match", "*").unwrap(), revision(None));
        assert_eq!(fact("if-match", "\"7-raw\"").unwrap(), revision(Some(7)));
        assert!(fact("if-match", "7").is_err());
        assert!(fact("if-match", "\"7-row\"").is_err());
        assert!(fact("if-match", "\"-raw\"").is_err());
        assert!(fact("if-none-match", "\"7\"").is_err());
        assert!(preconditions(&HeaderMap::new(), "k").unwrap().is_empty());
        assert!(has_already(&headers("if-none-match", "\"6\", W/\"7\""), 7, Form::Json));
        assert!(has_already(&headers("if-none-match", "*"), 7, Form::Json));
        assert!(!has_already(&headers("if-none-match", "\"6\""), 7, Form::Json));
        assert!(!has_already(&HeaderMap::new(), 7, Form::Json));
    }

    #[test]
    fn the_forms_of_an_entry_have_different_entity_tags() {
        assert_eq!((&*etag(7, Form::Json), &*etag(7, Form::Raw)), ("\"7\"", "\"7-raw\""));
        for (named, json, raw) in [
            ("\"7\"", true, false),
            ("\"7-raw\"", false, true),
            ("W/\"7-raw\", \"7\"", true, true),
            ("*", true, true),
            ("\"6-raw\", \"6\"", false, false),
        ] {
            let headers = headers("if-none-match", named);
            let has = (has_already(&headers, 7, Form::Json), has_already(&headers, 7, Form::Raw));
            assert_eq!(has, (json, raw), "{named}");
        }
        let accepted = |accept| accepted(&headers("accept", accept), &Value::of_type("image/png", vec![0].into()));
        for raw in ["application/octet-stream", "text/html, Image/PNG; q=0.5"] {
            assert_eq!(accepted(raw), Form::Raw, "{raw}");
        }
        for json in ["application/json", "*/*", "image/*", ""] {
            assert_eq!(accepted(json), Form::Json, "{json}");
        }
    }

    #[test]
    fn a_post_says_that_it_is_json_and_no_body_is_compressed() {
        let is_taken = |method: &str, path: &str, headers: &[(&str, &str)]| {
            let builder = Request::builder().method(method).uri(format!("{BASE_PATH}{path}"));
            let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
            check_body_type(&builder.body(()).unwrap().into_parts().0).is_ok()
        };
        let lines = "application/x-ndjson";
        for (path, content_type, taken) in [
            ("/kv/batch/", "application/json", true),
            ("/kv/batch", "Application/JSON; charset=utf-8", true),
            ("/kv/batch/", lines, false),
            ("/hooks/stream/rollback/", lines, false),
            ("/kv/stream", "application/json", true),
            ("/kv/stream/", lines, true),
            ("/kv/stream/", "", false),
            ("/cluster/members/", "text/plain", false),
            ("/cluster/members/", "text/plain; application/json", false),
            ("/cluster/members/", "application/x-www-form-urlencoded", false),
            ("/cluster/members/", "multipart/form-data; boundary=a", false),
        ] {
            assert_eq!(is_taken("POST", path, &[("content-type", content_type)]), taken, "{path} {content_type}");
        }
        assert!(!is_taken("POST", "/hooks/a/rollback/", &[]));
        for method in ["GET", "HEAD", "PUT", "DELETE"] {
            assert!(is_taken(method, "/kv/a/", &[]), "{method}");
        }
        let json = ("content-type", "application/json");
        for (encodings, taken) in [
            (&[("content-encoding", "identity")][..], true),
            (&[("content-encoding", "Identity")], true),
            (&[("content-encoding", "gzip")], false),
            (&[("content-encoding", "")], false),
            (&[("content-encoding", "identity"), ("content-encoding", "br")], false),
        ] {
            for method in ["PUT", "POST"] {
                assert_eq!(is_taken(method, "/kv/batch/", &[encodings, &[json]].concat()), taken, "{encodings:?}");
            }
        }
    }

    #[test]
    fn a_malformed_object_is_refused_with_its_shape() {
        let refused = json::<Vec<u8>>(b"[", "[<numbers>]").unwrap_err();
        assert!(format!("{refused:?}").contains("the body must be [<numbers>]: EOF"), "{refused:?}");
    }
}
