//! The options of `brink bench`, and the requests of the load, in brink's API and in etcd's.

use std::fmt::Display;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

use super::super::kv::Consistency;
use super::super::{Common, Failure, Method, Request, key_path};
use crate::limits::{STREAM_WRITES_MAX, VALUE_BYTES_MAX};
use crate::net::BASE_PATH;

/// Maximum number of clients.
const CLIENTS_MAX: usize = 4_096;

/// Maximum number of threads that send requests.
const THREADS_MAX: usize = 256;

/// Put load on a running cluster and report throughput and latency
///
/// Clients are spread over the nodes of --url. Writes go to random keys under --prefix, which are not deleted afterwards.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Number of clients, each with one request in flight unless --stream says otherwise
    #[arg(short, long, value_name = "N", default_value_t = 16)]
    pub(super) clients: usize,
    /// How long to measure, such as 10s or 2m
    #[arg(short, long, default_value = "10s", value_parser = humantime::parse_duration)]
    pub(super) duration: Duration,
    /// How long to run before measuring
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    pub(super) warmup: Duration,
    /// Size of a value in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    pub(super) value_bytes: usize,
    /// Number of different keys
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub(super) keys: u64,
    /// Share of reads, 0 to 1; with reads, every key is written before the load begins
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub(super) reads: f64,
    /// Consistency of reads
    #[arg(long)]
    pub(super) consistency: Option<Consistency>,
    /// Requests per second of all clients together; unlimited if absent
    #[arg(long, value_name = "N")]
    pub(super) rate: Option<u64>,
    /// Send writes as a stream: each client has up to N of them under way on its connection
    #[arg(long, value_name = "N", conflicts_with_all = ["reads", "rate"])]
    pub(super) stream: Option<usize>,
    /// Threads that send requests [default: half of the cores]
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<usize>,
    /// The API of the nodes; etcd is for comparison
    #[arg(long, default_value = "brink")]
    pub(super) api: Api,
    /// Prefix of all keys
    #[arg(long, default_value = "bench/")]
    pub(super) prefix: String,
    #[command(flatten)]
    pub(super) common: Common,
}

impl Args {
    /// Checks the bounds of the numbers.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let (bytes, bytes_max) = (self.value_bytes, VALUE_BYTES_MAX - 2);
        let threads = self.threads.unwrap_or(1);
        bounded("clients", (1..=CLIENTS_MAX).contains(&self.clients), self.clients, format!("1 to {CLIENTS_MAX}"))?;
        bounded("value-bytes", bytes <= bytes_max, bytes, format!("at most {bytes_max}"))?;
        bounded("reads", (0.0..=1.0).contains(&self.reads), self.reads, "0 to 1")?;
        bounded("keys", self.keys > 0, self.keys, "at least 1")?;
        bounded("threads", (1..=THREADS_MAX).contains(&threads), threads, format!("1 to {THREADS_MAX}"))?;
        let stream = self.stream.unwrap_or(1);
        bounded("stream", (1..=STREAM_WRITES_MAX).contains(&stream), stream, format!("1 to {STREAM_WRITES_MAX}"))?;
        bounded("stream", self.stream.is_none() || self.api == Api::Brink, stream, "absent with --api etcd")?;
        bounded("rate", self.rate != Some(0), 0, "at least 1")?;
        bounded("duration", !self.duration.is_zero(), "0s", "longer")
    }
}

fn bounded(flag: &str, is_allowed: bool, found: impl Display, allowed: impl Display) -> Result<(), Failure> {
    match is_allowed {
        true => Ok(()),
        false => Err(Failure::Usage(format!("--{flag}: {found}: it must be {allowed}"))),
    }
}

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

    pub(super) fn write(self, key: &str, value: &str) -> Request {
        match self {
            Self::Brink => {
                Request::new(Method::PUT, key_path(key)).body("application/json", format!("{{\"value\":\"{value}\"}}"))
            }
            Self::Etcd => etcd("put", format!("{{\"key\":\"{}\",\"value\":\"{}\"}}", base64(key), base64(value))),
        }
    }

    pub(super) fn read(self, key: &str, consistency: Option<Consistency>) -> Request {
        match self {
            Self::Brink => {
                let query = consistency.map_or(String::new(), |consistency| format!("?consistency={consistency}"));
                Request::get(format!("{}{query}", key_path(key)))
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
    base64::engine::general_purpose::STANDARD.encode(text)
}
