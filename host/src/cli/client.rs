//! The HTTP client of nodes: requests, the paths they go to, and the answers.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::Response;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::Value;

pub(super) use reqwest::Method;

use super::failure::{Failure, Refusal, root_cause};
use super::io::{self, Format};
use crate::limits::NAME_BYTES_MAX;
use crate::net::{self, BASE_PATH};

/// Longest time to connect to a node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest time until a whole answer is there, unless a request says otherwise.
pub(super) const TIMEOUT: Duration = Duration::from_secs(90);

/// Characters that are escaped in a path. The slashes of a key are not, unless they would be lost: see [`key_path`].
const ESCAPED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'?').add(b'`').add(b'{').add(b'}').add(b'%');

/// The options of all commands that talk to nodes.
#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    /// Base URLs of nodes, separated by commas; the first that can be reached is used
    #[arg(
        long,
        env = "BRINK_URL",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:8000/kv-store/v1"
    )]
    url: Vec<String>,

    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub(super) output: Format,
}

/// A client of the nodes named by `--url`.
pub(super) struct Client {
    http: reqwest::Client,
    /// The nodes' base URLs in their normal form.
    pub(super) urls: Vec<String>,
}

impl Client {
    /// Checks the URLs and builds the client. It does not connect yet.
    pub(super) fn new(common: &Common) -> Result<Self, Failure> {
        let urls = common.url.iter().map(|url| base_url("--url", url)).collect::<Result<_, _>>()?;
        let mut headers = HeaderMap::new();
        let user = ["BRINK_USER", "USER"].iter().find_map(|name| std::env::var(name).ok());
        let user = user.filter(|user| (1..=NAME_BYTES_MAX).contains(&user.len()));
        if let Some(user) = user.and_then(|user| HeaderValue::from_str(&user).ok()) {
            headers.insert("brink-user", user);
        }
        let http = net::http_client(CONNECT_TIMEOUT)
            .default_headers(headers)
            .build()
            .map_err(|error| Failure::Usage(format!("the HTTP client cannot be built: {error}")))?;
        Ok(Self { http, urls })
    }

    /// Sends a request to the first node that can be reached. A request that may have arrived is not sent again.
    pub(super) async fn send(&self, request: &Request) -> Result<Answer, Failure> {
        let mut failure = Failure::Usage("--url names no node".to_owned());
        for url in &self.urls {
            failure = match self.send_to(url, request).await {
                Err(failure @ Failure::Unreachable { .. }) => failure,
                result => return result,
            };
        }
        Err(failure)
    }

    pub(super) async fn send_to(&self, url: &str, request: &Request) -> Result<Answer, Failure> {
        let response = self.begin(url, request, request.timeout).await?;
        let headers = response.headers().clone();
        let body = response.bytes().await.map_err(|error| failure(url, &error))?;
        Ok(Answer { url: url.to_owned(), headers, body })
    }

    /// Sends a request to one node and waits for the head of the answer, which must be a success.
    pub(super) async fn begin(&self, url: &str, request: &Request, timeout: Duration) -> Result<Response, Failure> {
        let builder = self.http.request(request.method.clone(), format!("{url}{}", request.path));
        let builder = request.headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, value));
        let response = builder.timeout(timeout).body(request.body.clone()).send().await;
        let response = response.map_err(|error| failure(url, &error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.map_err(|error| failure(url, &error))?;
        Err(Failure::Refused(Refusal::parse(status, &body)))
    }

    /// The URLs of all members. Some requests must be sent to each of them, since a node answers only for itself.
    pub(super) async fn members(&self) -> Result<Vec<String>, Failure> {
        let answer = self.send(&Request::get("/cluster/members/")).await?;
        let members = answer.json()?;
        let urls = io::items(&members["members"]).filter_map(|member| member["url"].as_str());
        let urls: Vec<String> = urls.map(str::to_owned).collect();
        Ok(if urls.is_empty() { vec![answer.url] } else { urls })
    }
}

/// An answer that is a success.
pub(super) struct Answer {
    pub(super) url: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json(&self) -> Result<Value, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Failure::BadAnswer { url: self.url.clone(), reason: error.to_string() })
    }
}

pub(super) struct Request {
    method: Method,
    /// The path and query, below the node's base URL.
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
    timeout: Duration,
}

impl Request {
    /// A request without a body.
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: Bytes::new(), timeout: TIMEOUT }
    }

    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn body(mut self, content_type: &str, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header("content-type", content_type)
    }

    pub(super) fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    /// Sets the timeout of the answer.
    pub(super) fn wait(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The request as hyper sends it to the node at a base URL.
    pub(super) fn into_http(self, base_url: &str) -> http::Result<http::Request<Full<Bytes>>> {
        let (authority, base_path) = net::authority_and_path(base_url);
        let uri = format!("{base_path}{}", self.path);
        let builder = http::Request::builder().method(self.method).uri(uri).header(http::header::HOST, authority);
        let builder = self.headers.into_iter().fold(builder, |builder, (name, value)| builder.header(name, value));
        builder.body(Full::new(self.body))
    }
}

pub(super) fn key_path(key: &str) -> String {
    // HTTP clients and nodes drop empty segments, dot segments and a final slash; escaped, they are kept.
    let is_plain = !key.split('/').any(|segment| matches!(segment, "" | "." | ".."));
    let escaped = utf8_percent_encode(key, ESCAPED).to_string();
    let escaped = if is_plain { escaped } else { escaped.replace('/', "%2F").replace('.', "%2E") };
    format!("/kv/{escaped}/")
}

/// The path of one item of a collection: a plugin, a hook, a member.
pub(super) fn name_path(collection: &str, name: &str) -> String {
    format!("/{collection}/{}/", utf8_percent_encode(name, ESCAPED).to_string().replace('/', "%2F"))
}

/// The query string of the parameters that have a value.
pub(super) fn query(parameters: &[(&str, Option<String>)]) -> String {
    let given = parameters.iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
    form_urlencoded::Serializer::new(String::new()).extend_pairs(given).finish()
}

/// Checks a node's base URL and adds the API's path if it has none. `flag` is the flag or argument that gave it.
pub(super) fn base_url(flag: &str, found: &str) -> Result<String, Failure> {
    net::base_url(found, net::Path::Optional).map_err(|reason| {
        Failure::Usage(format!("{flag}: {found:?}: {reason}; a node's URL looks like http://127.0.0.1:8000{BASE_PATH}"))
    })
}

fn failure(url: &str, error: &reqwest::Error) -> Failure {
    let reason = if error.is_timeout() { "it did not answer in time".to_owned() } else { root_cause(error) };
    let url = url.to_owned();
    if error.is_connect() { Failure::Unreachable { url, reason } } else { Failure::BadAnswer { url, reason } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_may_leave_out_the_path() {
        assert_eq!(base_url("--url", "http://h:1").unwrap(), "http://h:1/kv-store/v1");
        assert_eq!(base_url("--url", "http://h:1/kv-store/v1/").unwrap(), "http://h:1/kv-store/v1");
        for wrong in ["h:1", "https://h:1", "http://h:1/v2", ""] {
            assert!(base_url("--url", wrong).unwrap_err().to_string().contains("looks like http://"), "{wrong}");
        }
    }

    #[test]
    fn every_key_has_a_path_that_leads_to_it() {
        assert_eq!(key_path("users/ann"), "/kv/users/ann/");
        assert_eq!(key_path("a b?c#d%e"), "/kv/a%20b%3Fc%23d%25e/");
        assert_eq!(key_path("dir/"), "/kv/dir%2F/");
        assert_eq!(key_path("a/../b"), "/kv/a%2F%2E%2E%2Fb/");
        assert_eq!(key_path("é"), "/kv/%C3%A9/");
    }

    #[test]
    fn a_request_names_its_host_and_has_the_path_below_the_base_url() {
        let request = Request::new(Method::PUT, "/kv/a/?x=1").body("text/plain", "hello");
        let request = request.into_http("http://h:1/base").unwrap();
        assert_eq!((request.method(), request.uri().to_string()), (&Method::PUT, "/base/kv/a/?x=1".to_owned()));
        assert_eq!(request.headers()["host"], "h:1");
        assert_eq!(request.headers()["content-type"], "text/plain");
    }
}
