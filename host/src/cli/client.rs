//! An HTTP client of nodes, and what can go wrong for one.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::Common;
use crate::api::BASE_PATH;
use crate::hooks;
use crate::limits::NAME_BYTES_MAX;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long an answer may take. Deployments of plugins wait until they are in force.
pub(super) const TIMEOUT: Duration = Duration::from_secs(90);

/// What is escaped in a key or a name within a path. A slash within a key is not, except where it would be lost.
const ESCAPED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'?').add(b'`').add(b'{').add(b'}').add(b'%');

/// Why a command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// A flag or an argument is wrong.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No node answered.
    #[error("{url} could not be reached: {reason}")]
    Unreachable {
        /// The node asked last.
        url: String,
        /// What went wrong.
        reason: String,
    },
    /// A node answered with an error.
    #[error("{}", .0.describe())]
    Refused(Refusal),
    /// The answer is not what a node of this version answers.
    #[error("the answer of {url} is not that of a brink node: {reason}")]
    Strange {
        /// The node asked.
        url: String,
        /// How it differs.
        reason: String,
    },
    /// A record of an import was refused.
    #[error("{place}: {refusal}")]
    Record {
        /// Which record.
        place: String,
        /// Why.
        refusal: String,
        /// How the process ends.
        code: u8,
    },
    /// A plugin that runs here cannot be used, fails, or refuses.
    #[error("{}", judged(.0))]
    Plugin(#[from] hooks::Error),
    /// Cases of a plugin's test failed.
    #[error("{failed} of its cases failed")]
    Cases {
        /// How many.
        failed: usize,
    },
    /// A tool that was called failed, or is missing.
    #[error("`{command}` failed: {reason}")]
    Tool {
        /// How it was called.
        command: String,
        /// How it ended.
        reason: String,
    },
    /// Standard output cannot be written.
    #[error("the output cannot be written: {0}")]
    Output(#[from] std::io::Error),
}

impl Failure {
    /// The exit code that goes with it; the table is at the top of [`super`].
    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    /// The exit code as a number.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::File { .. } => 2,
            Self::Unreachable { .. } | Self::Strange { .. } | Self::Output(_) => 1,
            Self::Tool { .. } | Self::Cases { .. } | Self::Plugin(hooks::Error::Engine(_)) => 1,
            Self::Plugin(_) => 4,
            Self::Refused(refusal) if refusal.status == StatusCode::NOT_FOUND => 3,
            Self::Refused(refusal) if refusal.status.is_client_error() => 4,
            // A plugin that fails refuses the write, too.
            Self::Refused(refusal) if refusal.slug().starts_with("plugin-") => 4,
            Self::Refused(_) => 1,
            Self::Record { code, .. } => *code,
        }
    }
}

/// What a plugin said, and one more line for each violation.
fn judged(error: &hooks::Error) -> String {
    let violations = match error {
        hooks::Error::Rejected(rejection) => rejection.violations.as_slice(),
        _ => &[],
    };
    let lines = violations.iter().map(|violation| violated(&violation.path, &violation.message));
    std::iter::once(error.to_string()).chain(lines).collect::<Vec<_>>().join("\n")
}

/// A broken rule in a line.
fn violated(path: &str, message: &str) -> String {
    format!("  {}: {message}", if path.is_empty() { "the value" } else { path })
}

/// An error that a node answered with.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// The problem object (RFC 9457); null if there was none.
    pub(super) problem: Value,
}

impl Refusal {
    /// The last part of the problem's type.
    pub(super) fn slug(&self) -> &str {
        self.problem["type"].as_str().and_then(|kind| kind.rsplit(':').next()).unwrap_or_default()
    }

    /// The problem in a line, and one more for each violation.
    fn describe(&self) -> String {
        let detail = self.problem["detail"].as_str().map_or_else(|| self.status.to_string(), str::to_owned);
        let mut text = match self.slug() {
            "" => detail,
            slug => format!("{detail} ({slug}, {})", self.status.as_u16()),
        };
        for violation in self.violations() {
            let [path, message] = ["path", "message"].map(|field| violation[field].as_str().unwrap_or_default());
            text.push('\n');
            text.push_str(&violated(path, message));
        }
        if self.problem["outcome"] == "unknown" {
            text.push_str("\n  the outcome is unknown: the write may have happened, or may yet appear");
        }
        text
    }

    /// The rules that a plugin found broken.
    pub(super) fn violations(&self) -> impl Iterator<Item = &Value> {
        self.problem["violations"].as_array().into_iter().flatten()
    }

    /// Whether the same request may be sent again without doing anything twice.
    pub(super) fn is_retryable(&self) -> bool {
        self.status.is_server_error() && self.problem["outcome"] == "not_written" && !self.slug().starts_with("plugin-")
    }
}

/// An answer that is not an error.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) url: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// The body as JSON.
    pub(super) fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Failure::Strange { url: self.url.clone(), reason: error.to_string() })
    }
}

/// A request that has not been sent.
#[derive(Debug, Clone)]
pub(super) struct Request {
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

impl Request {
    /// A request without a body; `path` follows the base URL.
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: Bytes::new() }
    }

    /// With a header.
    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With a body.
    pub(super) fn body(mut self, content_type: &str, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header("content-type", content_type)
    }

    /// Writes it as it goes over an HTTP/1.1 connection to `host`.
    pub(super) fn write_http1(&self, base_path: &str, host: &str, out: &mut Vec<u8>) {
        let Self { method, path, headers, body } = self;
        for part in [method.as_str(), " ", base_path, path, " HTTP/1.1\r\nhost: ", host, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        for (name, value) in headers {
            for part in [*name, ": ", value, "\r\n"] {
                out.extend_from_slice(part.as_bytes());
            }
        }
        if !body.is_empty() {
            out.extend_from_slice(b"content-length: ");
            out.extend_from_slice(body.len().to_string().as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(body);
    }

    /// With a JSON body.
    pub(super) fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }
}

/// A client of nodes.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    urls: Vec<String>,
}

impl Client {
    /// A client of the nodes that the command names.
    pub(super) fn new(common: &Common) -> Result<Self, Failure> {
        let urls = common.url.iter().map(|url| base_url("--url", url)).collect::<Result<Vec<_>, _>>()?;
        let mut headers = HeaderMap::new();
        let user = ["BRINK_USER", "USER"].iter().find_map(|name| std::env::var(name).ok());
        let user = user.filter(|user| (1..=NAME_BYTES_MAX).contains(&user.len()));
        if let Some(user) = user.and_then(|user| HeaderValue::from_str(&user).ok()) {
            headers.insert("brink-user", user);
        }
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(TIMEOUT)
            .tcp_nodelay(true)
            .user_agent(concat!("brink/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| Failure::Usage(format!("the HTTP client cannot be built: {error}")))?;
        Ok(Self { http, urls })
    }

    /// The base URLs, in their normal form.
    pub(super) fn urls(&self) -> &[String] {
        &self.urls
    }

    /// Sends a request to the first node that can be reached. A request that may have arrived is not sent again.
    pub(super) async fn send(&self, request: &Request) -> Result<Answer, Failure> {
        let mut failure = Failure::Usage("--url names no node".to_owned());
        for url in &self.urls {
            failure = match self.send_to(url, request).await {
                Err(Failure::Unreachable { url, reason }) => Failure::Unreachable { url, reason },
                result => return result,
            };
        }
        Err(failure)
    }

    /// Sends a request to one node.
    pub(super) async fn send_to(&self, url: &str, request: &Request) -> Result<Answer, Failure> {
        let mut builder = self.http.request(request.method.clone(), format!("{url}{}", request.path));
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
        let response = builder.body(request.body.clone()).send().await.map_err(|error| {
            let (url, reason) = (url.to_owned(), innermost(&error));
            if error.is_connect() { Failure::Unreachable { url, reason } } else { Failure::Strange { url, reason } }
        })?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response
            .bytes()
            .await
            .map_err(|error| Failure::Strange { url: url.to_owned(), reason: innermost(&error) })?;
        if status.is_success() {
            return Ok(Answer { url: url.to_owned(), headers, body });
        }
        let problem = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Err(Failure::Refused(Refusal { status, problem }))
    }
}

impl Client {
    /// Opens an answer that may have no end.
    pub(super) async fn open(
        &self,
        url: &str,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, Failure>>, Failure> {
        let strange =
            |url: &str, error: &reqwest::Error| Failure::Strange { url: url.to_owned(), reason: innermost(error) };
        let response = self.http.get(format!("{url}{path}")).timeout(Duration::MAX).send().await.map_err(|error| {
            let reason = innermost(&error);
            if error.is_connect() { Failure::Unreachable { url: url.to_owned(), reason } } else { strange(url, &error) }
        })?;
        let status = response.status();
        if !status.is_success() {
            let body = response.bytes().await.map_err(|error| strange(url, &error))?;
            let problem = serde_json::from_slice(&body).unwrap_or(Value::Null);
            return Err(Failure::Refused(Refusal { status, problem }));
        }
        let url = url.to_owned();
        Ok(response.bytes_stream().map_err(move |error| strange(&url, &error)))
    }
}

/// The path of a key.
pub(super) fn key_path(key: &str) -> String {
    // Empty segments and those of dots would be lost on the way, and so would a slash at the end.
    let is_plain = !key.split('/').any(|segment| matches!(segment, "" | "." | ".."));
    let escaped = utf8_percent_encode(key, ESCAPED).to_string();
    let escaped = if is_plain { escaped } else { escaped.replace('/', "%2F").replace('.', "%2E") };
    format!("/kv/{escaped}/")
}

/// The path of a plugin or a hook.
pub(super) fn name_path(what: &str, name: &str) -> String {
    format!("/{what}/{}/", utf8_percent_encode(name, ESCAPED).to_string().replace('/', "%2F"))
}

/// The query of a path: its parameters, percent-encoded.
pub(super) fn query(parameters: &[(&str, Option<String>)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in parameters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    query.finish()
}

/// Checks a base URL; one without a path gets the API's. `given_as` is the flag or argument it was given as.
pub(super) fn base_url(given_as: &str, found: &str) -> Result<String, Failure> {
    let wrong = |reason: &str| {
        Failure::Usage(format!(
            "{given_as}: {found:?}: {reason}; a node's URL looks like http://127.0.0.1:8000{BASE_PATH}"
        ))
    };
    let url = reqwest::Url::parse(found.trim()).map_err(|error| wrong(&format!("it is not a URL ({error})")))?;
    if url.scheme() != "http" {
        return Err(wrong("only http:// is supported"));
    }
    match url.path().trim_end_matches('/') {
        "" => Ok(format!("{}{BASE_PATH}", url.as_str().trim_end_matches('/'))),
        BASE_PATH => Ok(url.as_str().trim_end_matches('/').to_owned()),
        _ => Err(wrong(&format!("its path must be {BASE_PATH}"))),
    }
}

/// The cause of an error that says most: the last of its chain.
fn innermost(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_path_that_leads_to_it() {
        assert_eq!(key_path("users/ann"), "/kv/users/ann/");
        assert_eq!(key_path("a b?c#d%e"), "/kv/a%20b%3Fc%23d%25e/");
        assert_eq!(key_path("dir/"), "/kv/dir%2F/");
        assert_eq!(key_path("a/../b"), "/kv/a%2F%2E%2E%2Fb/");
        assert_eq!(key_path("é"), "/kv/%C3%A9/");
    }

    #[test]
    fn a_request_is_written_with_its_length() {
        let mut out = Vec::new();
        Request::new(Method::PUT, "/kv/a/").body("text/plain", "hello").write_http1("/base", "h:1", &mut out);
        let expected =
            "PUT /base/kv/a/ HTTP/1.1\r\nhost: h:1\r\ncontent-type: text/plain\r\ncontent-length: 5\r\n\r\nhello";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let mut out = Vec::new();
        Request::new(Method::GET, "/kv/a/").write_http1("", "h:1", &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "GET /kv/a/ HTTP/1.1\r\nhost: h:1\r\n\r\n");
    }

    #[test]
    fn a_base_url_may_leave_out_the_path() {
        assert_eq!(base_url("--url", "http://h:1").unwrap(), "http://h:1/kv-store/v1");
        assert_eq!(base_url("--url", "http://h:1/kv-store/v1/").unwrap(), "http://h:1/kv-store/v1");
        for wrong in ["h:1", "https://h:1", "http://h:1/v2", ""] {
            assert!(base_url("--url", wrong).unwrap_err().to_string().contains("looks like http://"), "{wrong}");
        }
    }
}
