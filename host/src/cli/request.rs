//! Requests to nodes, and the paths they go to.

use bytes::Bytes;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use reqwest::Method;
use serde_json::Value;

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

    /// Appends the request to `out` as HTTP/1.1 sends it.
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
}
