//! The HTTP client of nodes.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::Value;

use super::failure::{Failure, Refusal, root_cause};
use super::output::Format;
use super::request::Request;
use crate::limits::NAME_BYTES_MAX;
use crate::net::{self, BASE_PATH};

/// Longest time to connect to a node.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest time until a whole answer is there. The answer to a deployment comes when it is in force.
pub(super) const TIMEOUT: Duration = Duration::from_secs(90);

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

/// An answer that is a success.
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
            .map_err(|error| Failure::BadAnswer { url: self.url.clone(), reason: error.to_string() })
    }
}

/// A client of the nodes named by `--url`.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    urls: Vec<String>,
}

impl Client {
    /// Checks the URLs and builds the client. It does not connect yet.
    pub(super) fn new(common: &Common) -> Result<Self, Failure> {
        let urls = common.url.iter().map(|url| base_url("--url", url)).collect::<Result<Vec<_>, _>>()?;
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

    /// The nodes' base URLs in their normal form.
    pub(super) fn urls(&self) -> &[String] {
        &self.urls
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

    /// Sends a request to one node.
    pub(super) async fn send_to(&self, url: &str, request: &Request) -> Result<Answer, Failure> {
        let response = self.begin(url, request, TIMEOUT).await?;
        let headers = response.headers().clone();
        let body = response.bytes().await.map_err(|error| failure(url, &error))?;
        Ok(Answer { url: url.to_owned(), headers, body })
    }

    /// Sends a `GET` to one node and streams the body, which may have no end.
    pub(super) async fn stream(
        &self,
        url: &str,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, Failure>>, Failure> {
        let response = self.begin(url, &Request::new(Method::GET, path), Duration::MAX).await?;
        let url = url.to_owned();
        Ok(response.bytes_stream().map_err(move |error| failure(&url, &error)))
    }

    /// Sends a request to one node and waits for the head of the answer, which must be a success.
    async fn begin(&self, url: &str, request: &Request, timeout: Duration) -> Result<reqwest::Response, Failure> {
        let mut builder = self.http.request(request.method.clone(), format!("{url}{}", request.path));
        for (name, value) in &request.headers {
            builder = builder.header(*name, value);
        }
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
        let answer = self.send(&Request::new(Method::GET, "/cluster/members/")).await?;
        let members = answer.json()?;
        let urls = members["members"].as_array().into_iter().flatten();
        let urls: Vec<String> = urls.filter_map(|member| member["url"].as_str().map(str::to_owned)).collect();
        Ok(if urls.is_empty() { vec![answer.url] } else { urls })
    }
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
}
