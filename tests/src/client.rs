//! An HTTP client of one node that returns answers unchanged.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::eventually;

/// Time to establish a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for a cluster to choose a leader, on a machine that stands still now and then.
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// One answer of a node.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as JSON, or `null` if it is not JSON.
    pub json: Value,
    /// The body's bytes.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Returns the answer. Panics if its status differs.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }

    /// The same for a write that creates its key or replaces its value.
    #[track_caller]
    pub fn expect_written(self) -> Self {
        assert!(matches!(self.status, 200 | 201), "{}: {}", self.status, String::from_utf8_lossy(&self.body));
        self
    }
}

/// A client of one node.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    /// The node's base URL.
    pub url: String,
}

impl Client {
    /// A client of the node at a base URL. Requests time out after five minutes: deployments wait for compilers, which wait for
    /// a machine that other tests keep busy.
    pub fn new(url: &str) -> Self {
        Self::with_timeout(url, Duration::from_secs(300))
    }

    /// A client with a request timeout.
    pub fn with_timeout(url: &str, timeout: Duration) -> Self {
        let builder = reqwest::Client::builder().timeout(timeout).connect_timeout(CONNECT_TIMEOUT.min(timeout));
        Self { http: builder.no_proxy().build().unwrap(), url: url.to_owned() }
    }

    /// Sends a request; `path` is appended to the base URL. Fails if the connection breaks or the request times out.
    pub async fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<Answer, reqwest::Error> {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.http.request(method, format!("{}{path}", self.url)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let status = response.status().as_u16();
        let headers = response
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap_or_default().to_owned()))
            .collect();
        let body = response.bytes().await?.to_vec();
        let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Ok(Answer { status, headers, json, body })
    }

    /// Sends a request. Panics if there is no answer.
    #[track_caller]
    pub fn send<'a>(
        &'a self,
        method: &'a str,
        path: &'a str,
        headers: &'a [(&'a str, &'a str)],
        body: impl Into<reqwest::Body> + 'a,
    ) -> impl Future<Output = Answer> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            match self.try_send(method, path, headers, body).await {
                Ok(answer) => answer,
                Err(error) => panic!("{method} {path} at {caller}: {error:?}"),
            }
        }
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    /// The members according to the node: the id of each URL.
    pub async fn member_ids(&self) -> Value {
        let list = self.get("/cluster/members/").await.expect(200).json;
        let list = list["members"].as_array().unwrap().iter();
        list.map(|member| (member["url"].as_str().unwrap().to_owned(), member["id"].clone()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// `PUT` of a JSON value under a key.
    pub async fn put(&self, key: &str, value: &Value) -> Answer {
        self.put_json(&format!("/kv/{key}/"), &json!({ "value": value })).await
    }

    /// `PUT` of a JSON value under a key, as a client makes it that wants it written: under a name, and repeated while the cluster
    /// cannot take it. However often it is sent, it is written once, and answered as the first time.
    #[track_caller]
    pub fn write<'a>(&'a self, key: &'a str, value: &'a Value) -> impl Future<Output = Answer> + 'a {
        self.send_named(
            "PUT",
            format!("/kv/{key}/"),
            "application/json",
            json!({ "value": value }).to_string().into_bytes(),
        )
    }

    /// `PUT` of bytes, as [`write`](Self::write) makes it.
    #[track_caller]
    pub fn write_bytes<'a>(&'a self, key: &'a str, value: Vec<u8>) -> impl Future<Output = Answer> + 'a {
        self.send_named("PUT", format!("/kv/{key}/"), "application/octet-stream", value)
    }

    /// `DELETE` of a key, as [`write`](Self::write) makes it.
    #[track_caller]
    pub fn erase<'a>(&'a self, key: &'a str) -> impl Future<Output = Answer> + 'a {
        self.send_named("DELETE", format!("/kv/{key}/"), "application/json", Vec::new())
    }

    #[track_caller]
    fn send_named<'a>(
        &'a self,
        method: &'a str,
        path: String,
        content_type: &'a str,
        body: Vec<u8>,
    ) -> impl Future<Output = Answer> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            static WRITES: AtomicU64 = AtomicU64::new(0);
            let name = format!("test-{}-{}", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed));
            let headers = [("content-type", content_type), ("idempotency-key", name.as_str())];
            self.repeat(method, &path, &headers, body, caller).await
        }
    }

    /// Sends a request that does the same however often it is sent, until the node answers it with a status below 500.
    #[track_caller]
    pub fn send_settled<'a>(
        &'a self,
        method: &'a str,
        path: &'a str,
        headers: &'a [(&'a str, &'a str)],
        body: &'a str,
    ) -> impl Future<Output = Answer> + 'a {
        self.repeat(method, path, headers, body.as_bytes().to_vec(), std::panic::Location::caller())
    }

    async fn repeat(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
        caller: &std::panic::Location<'_>,
    ) -> Answer {
        eventually(SETTLE_LIMIT, &format!("{method} {path} at {caller}"), || async {
            let answer = self.try_send(method, path, headers, body.clone()).await.ok()?;
            (answer.status < 500).then_some(answer)
        })
        .await
    }

    /// A `GET` that is repeated while the node cannot answer it (a status of 500 and above, or no answer).
    #[track_caller]
    pub fn settled<'a>(&'a self, path: &'a str) -> impl Future<Output = Answer> + 'a {
        self.send_settled("GET", path, &[], "")
    }

    /// `PUT` of a JSON body.
    pub async fn put_json(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], body.to_string()).await
    }

    /// `POST` of a JSON body.
    pub async fn post_json(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string()).await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], "").await
    }

    /// Uploads a plugin.
    pub async fn put_plugin(&self, name: &str, wasm: Vec<u8>) -> Answer {
        self.send("PUT", &format!("/plugins/{name}/"), &[("content-type", "application/wasm")], wasm).await
    }
}
