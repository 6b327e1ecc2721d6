//! Requests: their parameters, key and headers, decoded and checked. [`super::body`] reads their bodies.
//!
//! Every handler of a client's request takes a [`Call`], and asks the functions below for the parts that it needs. The first
//! mistake decides the answer. A client that is cut off while it sends a large body does not see the answer, so handlers
//! read such a body before they check the last headers.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::access::Grant;
use super::problem::{Kind, Problem};
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
const BRINK_USER: HeaderName = HeaderName::from_static("brink-user");

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
}

/// A request whose right, query parameters and media type are checked, and the node that serves it.
pub(crate) struct Call<P = ()> {
    pub(super) app: Arc<App>,
    /// What its sender may do. It may be limited to some keys: the handler checks those that the request names.
    pub(super) grant: Grant,
    pub(super) parameters: P,
    uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
}

/// The state of the router. Only [`Call`] opens it, so that no handler forgets to check its parameters, or goes without a grant.
#[derive(Clone)]
pub(crate) struct Sealed(Arc<App>);

pub(super) fn seal(app: Arc<App>) -> Sealed {
    Sealed(app)
}

impl<P: Parameters> FromRequest<Sealed> for Call<P> {
    type Rejection = Problem;

    async fn from_request(mut request: Request, Sealed(app): &Sealed) -> Result<Self, Problem> {
        let grant = request.extensions_mut().remove();
        let grant = grant.ok_or_else(|| Problem::internal("a handler is mounted without a right"))?;
        Self::new(app, request, grant).await
    }
}

impl<P: Parameters> Call<P> {
    /// Fails if a parameter, or the type of the body, is not allowed.
    pub(super) async fn new(app: &Arc<App>, request: Request, grant: Grant) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let parameters = parameters(parts.uri.query().unwrap_or_default())?;
        check_body_type(&parts)?;
        Ok(Self { app: app.clone(), grant, parameters, uri: parts.uri, headers: parts.headers, body })
    }

    /// The key in the path, which the sender may use.
    pub(super) fn key(&self) -> Result<String, Problem> {
        key_for(&self.grant, &self.uri)
    }
}

/// Whether a body is of a type that its handler reads. A `POST` must say that it is JSON, even without a body: a browser sends forms
/// and plain text for any page without asking the node first. What a `PUT` takes is its handler's to say.
fn check_body_type(Parts { method, uri, headers, .. }: &Parts) -> Result<(), Problem> {
    if matches!(*method, Method::GET | Method::HEAD | Method::DELETE) {
        return Ok(());
    }
    let unsupported = |detail| Err(Problem::new(Kind::UNSUPPORTED_MEDIA_TYPE, detail));
    let encodings = headers.contains_key(header::CONTENT_ENCODING).then(|| headers.get_all(header::CONTENT_ENCODING));
    if let Some(encoding) =
        encodings.into_iter().flatten().find(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
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

/// The variable part of a route's path, decoded.
pub(crate) struct Segment(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        // axum would keep a malformed escape, and answers one that is not UTF-8 by itself.
        let wrong = |wrong| Problem::new(Kind::BAD_PATH, format!("the path {wrong}"));
        decoded(parts.uri.path()).map_err(wrong)?;
        let Path(segment) = Path::from_request_parts(parts, state).await.map_err(Problem::internal)?;
        Ok(Self(segment))
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
    let bad = |detail| Problem::new(Kind::BAD_PARAMETER, detail);
    let mut values = Values(Vec::new());
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (raw_name, raw_value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let name =
            form_decoded(raw_name).map_err(|wrong| bad(format!("the name of the parameter {raw_name:?} {wrong}")))?;
        if !P::NAMES.contains(&name.as_ref()) {
            let known = if P::NAMES.is_empty() { "none".to_owned() } else { P::NAMES.join(", ") };
            return Err(bad(format!("there is no parameter {name:?} here; known are: {known}")));
        }
        if values.0.iter().any(|(earlier, _)| *earlier == name) {
            return Err(bad(format!("the parameter {name:?} is given twice")));
        }
        let value = form_decoded(raw_value).map_err(|wrong| bad(format!("the parameter {name:?} {wrong}")))?;
        values.0.push((name, value));
    }
    P::from_values(&mut values)
}

/// A name or a value of a query, as HTML forms encode it: `+` is a space.
fn form_decoded(raw: &str) -> Result<Cow<'_, str>, &'static str> {
    if !raw.contains('+') {
        return decoded(raw);
    }
    decoded(&raw.replace('+', " ")).map(|text| Cow::Owned(text.into_owned()))
}

/// Percent-encoded text (RFC 3986, section 2.1). An error says what is wrong with it: text that is not UTF-8, or has a malformed
/// escape, would otherwise be taken for other text.
fn decoded(raw: &str) -> Result<Cow<'_, str>, &'static str> {
    let is_escape = |rest: &str| rest.len() >= 2 && rest.bytes().take(2).all(|digit| digit.is_ascii_hexdigit());
    if !raw.split('%').skip(1).all(is_escape) {
        return Err("has a % that is not followed by two hexadecimal digits; %25 writes it");
    }
    percent_decode_str(raw).decode_utf8().map_err(|_| "is not UTF-8")
}

pub(super) fn not_allowed(name: &str, found: &str, allowed: &str) -> Problem {
    Problem::new(Kind::BAD_PARAMETER, format!("{name} is {found:?}; allowed: {allowed}"))
}

/// What follows `<base>/kv/` in a path, as it was sent; none in any other path.
pub(super) fn raw_key(uri: &Uri) -> Option<&str> {
    uri.path().strip_prefix(BASE_PATH)?.strip_prefix("/kv/")
}

/// The key in a path, if a grant covers it.
fn key_for(grant: &Grant, uri: &Uri) -> Result<String, Problem> {
    let key = key(uri)?;
    grant.check_key(&key)?;
    Ok(key)
}

/// The key in the path `<base>/kv/<key>/`: percent-decoded, without one trailing slash. `%2F` writes a slash at its end.
fn key(uri: &Uri) -> Result<String, Problem> {
    let raw = raw_key(uri).unwrap_or_default();
    let key = decoded(raw.strip_suffix('/').unwrap_or(raw));
    let key = key.map_err(|wrong| Problem::new(Kind::BAD_KEY, format!("the key {wrong}")))?.into_owned();
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
    let text = single(headers, name)?.map(|value| value.to_str()).transpose();
    let text = text.map_err(|_| Problem::new(Kind::BAD_HEADER, format!("{name} is not text")))?;
    Ok(text.map(str::trim))
}

/// A header that is no list, so that a second one would contradict the first.
pub(super) fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Problem> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(Problem::new(Kind::BAD_HEADER, format!("{name} is there twice"))),
    }
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

/// The elements of a header that is a list, which may be on several lines (RFC 9110, section 5.3).
fn elements(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|list| list.split(',')).map(str::trim)
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
    let Some(by) = single(headers, &BRINK_USER)? else { return Ok(Author::default()) };
    match by.to_str() {
        Ok(by) if (1..=NAME_BYTES_MAX).contains(&by.len()) && is_printable(by) => {
            Ok(Author { by: Some(by.to_owned()), ..Author::default() })
        }
        _ => {
            let allowed = format!("1 to {NAME_BYTES_MAX} visible characters of ASCII");
            Err(not_allowed("Brink-User", &format!("{by:?}"), &allowed))
        }
    }
}

/// Whether a text is of printable ASCII, spaces included.
pub(super) fn is_printable(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Reads a JSON object that a handler takes; `shape` shows it to people. All such objects refuse unknown members and take
/// known ones once, which makes them as strict as [`crate::json`].
pub(super) fn json<'a, T: Deserialize<'a>>(body: &'a [u8], shape: &str) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::new(Kind::BAD_BODY, format!("the body must be {shape}: {error}")))
}

#[cfg(test)]
mod tests;
