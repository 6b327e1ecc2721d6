//! The options of `brink bench`.

use std::time::Duration;

use super::super::client::Common;
use super::super::failure::Failure;
use super::super::kv::Consistency;
use super::api::Api;
use crate::limits::VALUE_BYTES_MAX;

/// Maximum number of clients.
const CLIENTS_MAX: usize = 4_096;

/// Maximum number of threads that send requests.
const THREADS_MAX: usize = 256;

/// Put load on a running cluster and report throughput and latency
///
/// Clients are spread over the nodes of --url. Writes go to random keys under --prefix, which are not deleted afterwards.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Number of clients, each with one request in flight
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
        let wrong = |flag: &str, found: &dyn std::fmt::Display, allowed: String| {
            Err(Failure::Usage(format!("--{flag}: {found}: it must be {allowed}")))
        };
        if !(1..=CLIENTS_MAX).contains(&self.clients) {
            return wrong("clients", &self.clients, format!("1 to {CLIENTS_MAX}"));
        }
        if self.value_bytes > VALUE_BYTES_MAX - 2 {
            return wrong("value-bytes", &self.value_bytes, format!("at most {}", VALUE_BYTES_MAX - 2));
        }
        if !(0.0..=1.0).contains(&self.reads) {
            return wrong("reads", &self.reads, "0 to 1".to_owned());
        }
        if self.keys == 0 {
            return wrong("keys", &self.keys, "at least 1".to_owned());
        }
        if let Some(threads) = self.threads.filter(|threads| !(1..=THREADS_MAX).contains(threads)) {
            return wrong("threads", &threads, format!("1 to {THREADS_MAX}"));
        }
        if self.rate == Some(0) {
            return wrong("rate", &0, "at least 1".to_owned());
        }
        if self.duration.is_zero() {
            return wrong("duration", &"0s", "longer".to_owned());
        }
        Ok(())
    }
}
