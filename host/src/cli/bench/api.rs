//! The requests of the load, in brink's API and in etcd's.

use reqwest::Method;
use serde_json::{Value, json};

use super::super::kv::Consistency;
use super::super::request::{Request, key_path};
use crate::net::BASE_PATH;

/// The API of the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Api {
    /// brink
    Brink,
    /// The v3 JSON gateway of etcd
    Etcd,
}

impl Api {
    /// A path that every node answers.
    pub(super) fn probe_path(self) -> &'static str {
        match self {
            Self::Brink => "/health/",
            Self::Etcd => "/version",
        }
    }

    /// The base URL of a node. `url` has the path of brink's API.
    pub(super) fn base_url(self, url: &str) -> &str {
        match self {
            Self::Brink => url,
            Self::Etcd => url.strip_suffix(BASE_PATH).unwrap_or(url),
        }
    }

    /// Writes a key.
    pub(super) fn write(self, key: &str, value: &str) -> Request {
        match self {
            Self::Brink => {
                Request::new(Method::PUT, key_path(key)).body("application/json", format!("{{\"value\":\"{value}\"}}"))
            }
            Self::Etcd => etcd("put", format!("{{\"key\":\"{}\",\"value\":\"{}\"}}", base64(key), base64(value))),
        }
    }

    /// Reads a key.
    pub(super) fn read(self, key: &str, consistency: Option<Consistency>) -> Request {
        match self {
            Self::Brink => {
                let query = consistency.map_or(String::new(), |word| format!("?consistency={}", word.word()));
                Request::new(Method::GET, format!("{}{query}", key_path(key)))
            }
            Self::Etcd => {
                let local = matches!(consistency, Some(Consistency::Local));
                etcd("range", format!("{{\"key\":\"{}\",\"serializable\":{local}}}", base64(key)))
            }
        }
    }

    /// Writes several keys in one batch.
    pub(super) fn write_all(self, keys: impl Iterator<Item = String>, value: &str) -> Request {
        match self {
            Self::Brink => {
                let items: Vec<Value> = keys.map(|key| json!({"key": key, "value": value})).collect();
                Request::new(Method::POST, "/kv/batch/").json(&json!({ "items": items }))
            }
            Self::Etcd => {
                let put = |key: String| json!({"requestPut": {"key": base64(&key), "value": base64(value)}});
                etcd("txn", json!({"success": keys.map(put).collect::<Vec<_>>()}).to_string())
            }
        }
    }
}

fn etcd(call: &str, body: String) -> Request {
    Request::new(Method::POST, format!("/v3/kv/{call}")).body("application/json", body)
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
