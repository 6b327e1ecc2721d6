//! Requests to nodes, and the paths they go to.

use bytes::Bytes;
use http_body_util::Full;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::Method;
use serde_json::Value;

use crate::net;

/// Characters that are escaped in a path. The slashes of a key are not, unless they would be lost: see [`key_path`].
const ESCAPED: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'?').add(b'`').add(b'{').add(b'}').add(b'%');

/// A request to a node.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    /// The path and query, below the node's base URL.
    pub(super) path: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
}

impl Request {
    /// A request without a body.
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: Bytes::new() }
    }

    /// Adds a header.
    pub(super) fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Sets the body.
    pub(super) fn body(mut self, content_type: &str, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self.header("content-type", content_type)
    }

    /// Sets a JSON body.
    pub(super) fn json(self, body: &Value) -> Self {
        self.body("application/json", body.to_string())
    }

    /// The request as hyper sends it to the node at a base URL.
    pub(super) fn into_http(self, base_url: &str) -> http::Result<http::Request<Full<Bytes>>> {
        let (authority, base_path) = net::authority_and_path(base_url);
        let uri = format!("{base_path}{}", self.path);
        let mut request = http::Request::builder().method(self.method).uri(uri).header(http::header::HOST, authority);
        for (name, value) in self.headers {
            request = request.header(name, value);
        }
        request.body(Full::new(self.body))
    }
}

/// The path of a key.
pub(super) fn key_path(key: &str) -> String {
    // HTTP clients and nodes drop empty segments, dot segments and a slash at the end; escaped they are kept.
    let is_plain = !key.split('/').any(|segment| matches!(segment, "" | "." | ".."));
    let escaped = utf8_percent_encode(key, ESCAPED).to_string();
    let escaped = if is_plain { escaped } else { escaped.replace('/', "%2F").replace('.', "%2E") };
    format!("/kv/{escaped}/")
}

/// The path of one item of a collection: a plugin, a hook, a member.
pub(super) fn name_path(collection: &str, name: &str) -> String {
    format!("/{collection}/{}/", utf8_percent_encode(name, ESCAPED).to_string().replace('/', "%2F"))
}

/// A query string of the parameters that have a value.
pub(super) fn query(parameters: &[(&str, Option<String>)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in parameters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    query.finish()
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
    fn a_request_names_its_host_and_has_the_path_below_the_base_url() {
        let request = Request::new(Method::PUT, "/kv/a/?x=1").body("text/plain", "hello");
        let request = request.into_http("http://h:1/base").unwrap();
        assert_eq!((request.method(), request.uri().to_string()), (&Method::PUT, "/base/kv/a/?x=1".to_owned()));
        assert_eq!(request.headers()["host"], "h:1");
        assert_eq!(request.headers()["content-type"], "text/plain");
    }
}
