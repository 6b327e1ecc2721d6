//! The options of `brink bench`.

use std::fmt::Display;
use std::time::Duration;

use super::super::kv::Consistency;
use super::super::{Common, Failure};
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
    /// The keys are there, from an earlier run with reads and the same --keys and --prefix
    #[arg(long)]
    pub(super) prepared: bool,
    /// Consistency of reads
    #[arg(long)]
    pub(super) consistency: Option<Consistency>,
    /// Requests per second of all clients together, each due at a fixed time; without it, clients send as fast as they are
    /// answered
    ///
    /// The latency of a request counts from the time when it was due, not from when it was sent: a slow answer delays the requests
    /// after it, and that shows. Requests that were due but not sent at the end are reported; then the nodes are slower than that.
    #[arg(long, value_name = "PER_SECOND")]
    pub(super) rate: Option<u64>,
    /// Send writes as a stream: each client has up to N of them under way on its connection
    #[arg(long, value_name = "N", conflicts_with_all = ["reads", "rate"])]
    pub(super) stream: Option<usize>,
    /// Threads that send requests [default: half of the cores]
    #[arg(long, value_name = "N")]
    pub(super) threads: Option<usize>,
    /// The API of the nodes; those of other stores are for comparison
    #[arg(long, default_value = "brink")]
    pub(super) api: Api,
    /// Replicas that must have a write before it counts; with --api redis, which asks for it with WAIT
    #[arg(long, value_name = "N")]
    pub(super) wait_replicas: Option<u32>,
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
        bounded("stream", self.stream.is_none() || self.api == Api::Brink, stream, "absent unless --api is brink")?;
        let replicas = self.wait_replicas.unwrap_or(0);
        let allows_wait = self.wait_replicas.is_none() || self.api == Api::Redis;
        bounded("wait-replicas", allows_wait, replicas, "absent unless --api is redis")?;
        let allows_prefix = self.api != Api::Nats || is_nats_prefix(&self.prefix);
        bounded("prefix", allows_prefix, &self.prefix, "letters, digits and -/_=. with --api nats")?;
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
    /// The v3 gRPC API of etcd
    EtcdGrpc,
    /// Redis; each node is read from as it is, so --consistency means nothing
    Redis,
    /// The key-value bucket `bench` of NATS JetStream; reads that are not local are answered by its leader
    Nats,
}

impl Api {
    /// The base URL of a node. `url` has the path of brink's API.
    pub(super) fn base_url(self, url: &str) -> &str {
        if self == Self::Brink { url } else { url.strip_suffix(BASE_PATH).unwrap_or(url) }
    }
}

/// Whether a prefix and a number make a key of a NATS bucket: a subject without empty parts and wildcards (ADR-8).
fn is_nats_prefix(prefix: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-/_=.".contains(c);
    prefix.chars().all(is_allowed) && !prefix.starts_with('.') && !prefix.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nats_prefix_has_no_wildcards_and_no_empty_parts() {
        for prefix in ["bench/", "", "a.b.", "A-b_c=1"] {
            assert!(is_nats_prefix(prefix), "{prefix:?}");
        }
        for prefix in [".a", "a..b", "a b", "a*", ">", "é"] {
            assert!(!is_nats_prefix(prefix), "{prefix:?}");
        }
    }
}
