//! The metrics of a node. The same instruments are pushed by OTLP and pulled from `/metrics`.
//!
//! Durations are in seconds, in histograms with buckets from 50 µs. No label is ever a key.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use opentelemetry::KeyValue;
use opentelemetry::metrics::{
    AsyncInstrument, BoundHistogram, Counter, Gauge, Histogram, MeterProvider as _, UpDownCounter,
};
use opentelemetry_sdk::metrics::{MeterProviderBuilder, SdkMeterProvider};
use parking_lot::RwLock;
use prometheus::{Registry, TextEncoder};
use strum::IntoEnumIterator as _;

use super::names;

/// Upper bounds of the buckets for durations, in seconds.
const SECONDS: [f64; 20] = [
    0.000_05, 0.000_1, 0.000_2, 0.000_3, 0.000_5, 0.000_75, 0.001, 0.001_5, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1,
    0.25, 0.5, 1.0, 2.5, 10.0,
];

/// Upper bounds of the buckets for entries per sync.
const ENTRIES: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0, 1024.0];

/// Upper bounds of the buckets for the memory of plugins, in bytes.
const MEMORY: [f64; 7] = [65_536.0, 1_048_576.0, 2_097_152.0, 4_194_304.0, 8_388_608.0, 33_554_432.0, 67_108_864.0];

/// A stage of a write.
#[derive(Clone, Copy, strum::IntoStaticStr, strum::EnumIter)]
#[strum(serialize_all = "lowercase")]
pub enum Stage {
    /// Judged by its hooks.
    Hook,
    /// Waiting for a proposal round.
    Queue,
    /// Appended to this node's log and synced.
    Append,
    /// From the proposal to its outcome.
    Replicate,
    /// On the leader, from the proposal to the commit.
    Commit,
    /// Applied to this node's state.
    Apply,
    /// From the start of the write path to its end.
    Total,
}

/// The instruments of one node.
pub struct Metrics {
    registry: Registry,
    /// Ends the exports, and keeps the readers alive.
    pub(super) provider: SdkMeterProvider,
    /// One for each [`Stage`], in their order.
    write: Vec<BoundHistogram<f64>>,
    rtt: Histogram<f64>,
    lag: Gauge<u64>,
    log_entries: Gauge<u64>,
    fsync: Histogram<f64>,
    fsync_entries: Histogram<f64>,
    linearizable_read: BoundHistogram<f64>,
    local_read: BoundHistogram<f64>,
    term: Gauge<u64>,
    /// The last known leader, to count changes.
    last_leader: AtomicU64,
    leader_changes: Counter<u64>,
    pending: UpDownCounter<i64>,
    quorum: Gauge<u64>,
    clock_offset: Gauge<f64>,
    hook: Histogram<f64>,
    hook_rejections: Counter<u64>,
    hook_traps: Counter<u64>,
    hook_memory: Histogram<f64>,
    http: Histogram<f64>,
    /// [`Self::http`] with its labels, by route.
    http_bound: RwLock<HashMap<Box<str>, OfRoute, ahash::RandomState>>,
}

/// The requests of a route, by method and status.
type OfRoute = HashMap<(&'static str, StatusCode), BoundHistogram<f64>, ahash::RandomState>;

/// The instruments for the calls of one hook.
pub struct HookMetrics {
    metrics: Arc<Metrics>,
    labels: [KeyValue; 2],
    memory: BoundHistogram<f64>,
    /// The durations of accepted calls, which are most of them.
    accepted: BoundHistogram<f64>,
}

/// A write that waits for its outcome. Dropped with the request of a client that leaves.
pub(crate) struct PendingWrite<'a>(&'a UpDownCounter<i64>);

impl Drop for PendingWrite<'_> {
    fn drop(&mut self) {
        self.0.add(-1, &[]);
    }
}

impl Metrics {
    /// Builds the provider, with a reader for `/metrics` beside those that `builder` has, and the instruments.
    pub(super) fn start(
        builder: MeterProviderBuilder,
        dropped_lines: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Arc<Self> {
        let registry = Registry::new();
        let provider = match opentelemetry_prometheus::exporter().with_registry(registry.clone()).build() {
            Ok(exporter) => builder.with_reader(exporter).build(),
            // Not expected: the registry is new, so no name can collide.
            Err(error) => {
                tracing::error!(%error, "/metrics stays empty");
                builder.build()
            }
        };
        let meter = provider.meter("brink");
        let histogram = |name: &'static str, bounds: &[f64]| meter.f64_histogram(name).with_boundaries(bounds.to_vec());
        let seconds = |name: &'static str| histogram(name, &SECONDS).with_unit("s").build();
        let dropped_lines = move |counter: &dyn AsyncInstrument<u64>| counter.observe(dropped_lines(), &[]);
        meter.u64_observable_counter(names::LINES_DROPPED).with_callback(dropped_lines).build();
        let (write, read) = (seconds(names::WRITE_DURATION), seconds(names::READ_DURATION));
        let of_stage = |stage: Stage| write.bind(&[KeyValue::new(names::STAGE, <&'static str>::from(stage))]);
        let read = |consistency: &'static str| read.bind(&[KeyValue::new(names::CONSISTENCY, consistency)]);
        Arc::new(Self {
            write: Stage::iter().map(of_stage).collect(),
            rtt: seconds(names::REPLICATION_RTT),
            lag: meter.u64_gauge(names::REPLICATION_LAG).build(),
            log_entries: meter.u64_gauge(names::LOG_ENTRIES).build(),
            fsync: seconds(names::LOG_FSYNC_DURATION),
            fsync_entries: histogram(names::LOG_FSYNC_ENTRIES, &ENTRIES).build(),
            linearizable_read: read("linearizable"),
            local_read: read("local"),
            term: meter.u64_gauge(names::RAFT_TERM).build(),
            last_leader: AtomicU64::new(0),
            leader_changes: meter.u64_counter(names::RAFT_LEADER_CHANGES).build(),
            pending: meter.i64_up_down_counter(names::RAFT_PENDING).build(),
            quorum: meter.u64_gauge(names::QUORUM_HEALTHY).build(),
            clock_offset: meter.f64_gauge(names::CLOCK_OFFSET).with_unit("s").build(),
            hook: seconds(names::HOOK_DURATION),
            hook_rejections: meter.u64_counter(names::HOOK_REJECTIONS).build(),
            hook_traps: meter.u64_counter(names::HOOK_TRAPS).build(),
            hook_memory: histogram(names::HOOK_MEMORY, &MEMORY).with_unit("By").build(),
            http: seconds(names::HTTP_DURATION),
            http_bound: RwLock::default(),
            registry,
            provider,
        })
    }

    pub(crate) fn write_stage(&self, stage: Stage, took: Duration) {
        if let Some(histogram) = self.write.get(stage as usize) {
            histogram.record(took.as_secs_f64());
        }
    }

    /// Records the answer of a follower to an append.
    pub(crate) fn replication_rtt(&self, peer: &str, took: Duration) {
        self.rtt.record(took.as_secs_f64(), &[KeyValue::new(names::PEER, peer.to_owned())]);
    }

    pub(crate) fn set_log_entries(&self, entries: u64) {
        self.log_entries.record(entries, &[]);
    }

    /// Sets the number of log entries that a peer is behind.
    pub(crate) fn set_replication_lag(&self, peer: &str, entries: u64) {
        self.lag.record(entries, &[KeyValue::new(names::PEER, peer.to_owned())]);
    }

    pub(crate) fn fsync(&self, took: Duration, entries: usize) {
        self.fsync.record(took.as_secs_f64(), &[]);
        self.fsync_entries.record(f64::from(u32::try_from(entries).unwrap_or(u32::MAX)), &[]);
    }

    pub(crate) fn read(&self, is_linearizable: bool, took: Duration) {
        let histogram = if is_linearizable { &self.linearizable_read } else { &self.local_read };
        histogram.record(took.as_secs_f64());
    }

    /// Sets Raft's term, the leader, and whether this node reaches a leader and a majority.
    pub(crate) fn set_cluster(&self, term: u64, leader: Option<u64>, healthy: bool) {
        self.term.record(term, &[]);
        self.quorum.record(u64::from(healthy), &[]);
        if let Some(leader) = leader {
            let before = self.last_leader.swap(leader, Ordering::Relaxed);
            self.leader_changes.add(u64::from(before != leader), &[]);
        }
    }

    /// Sets the milliseconds that this node's clock is ahead of the others'.
    pub(crate) fn set_clock_offset(&self, offset_ms: i64) {
        // Exact for more milliseconds than clocks can be apart.
        self.clock_offset.record(offset_ms as f64 / 1e3, &[]);
    }

    /// Counts a write that waits for its outcome, until the guard is dropped.
    pub(crate) fn pending(&self) -> PendingWrite<'_> {
        self.pending.add(1, &[]);
        PendingWrite(&self.pending)
    }

    pub(crate) fn of_hook(self: &Arc<Self>, hook: &str, plugin: &str) -> HookMetrics {
        let shared = |name, value: &str| KeyValue::new(name, Arc::<str>::from(value));
        let labels = [shared(names::HOOK, hook), shared(names::PLUGIN, plugin)];
        let memory = self.hook_memory.bind(&labels);
        let accepted = self.hook.bind(&with(&labels, names::RESULT, names::ACCEPTED));
        HookMetrics { metrics: self.clone(), labels, memory, accepted }
    }

    pub(crate) fn http(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        let (took, key) = (took.as_secs_f64(), (method_label(method), status));
        if let Some(histogram) = self.http_bound.read().get(route).and_then(|of_route| of_route.get(&key)) {
            return histogram.record(took);
        }
        let histogram = self.http.bind(&[
            KeyValue::new(names::HTTP_METHOD, key.0),
            KeyValue::new(names::HTTP_ROUTE, route.to_owned()),
            KeyValue::new(names::HTTP_STATUS, i64::from(status.as_u16())),
        ]);
        histogram.record(took);
        self.http_bound.write().entry(route.into()).or_default().insert(key, histogram);
    }

    /// All metrics in Prometheus' text format, version 0.0.4.
    pub(crate) fn render_prometheus(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_else(|error| {
            tracing::error!(%error, "metrics cannot be rendered");
            String::new()
        })
    }
}

impl HookMetrics {
    /// Records a call of the plugin. `result` is `accepted`, `rejected`, or the way in which it failed.
    pub(crate) fn call(&self, took: Duration, result: &'static str, memory_bytes: usize) {
        let metrics = &self.metrics;
        let (took, memory) = (took.as_secs_f64(), f64::from(u32::try_from(memory_bytes).unwrap_or(u32::MAX)));
        self.memory.record(memory);
        if result == names::ACCEPTED {
            return self.accepted.record(took);
        }
        metrics.hook.record(took, &with(&self.labels, names::RESULT, result));
        match result {
            names::REJECTED => metrics.hook_rejections.add(1, &self.labels),
            reason => metrics.hook_traps.add(1, &with(&self.labels, names::REASON, reason)),
        }
    }
}

/// The label of a method. All but the common ones share one, so that clients cannot create labels.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::PUT => "PUT",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => "_OTHER",
    }
}

fn with([hook, plugin]: &[KeyValue; 2], name: &'static str, value: &'static str) -> [KeyValue; 3] {
    [hook.clone(), plugin.clone(), KeyValue::new(name, value)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_rendered_in_seconds_with_fine_buckets() {
        let [metrics, other] = [(), ()].map(|()| Metrics::start(SdkMeterProvider::builder(), || 0));
        metrics.write_stage(Stage::Append, Duration::from_micros(70));
        metrics.replication_rtt("http://b", Duration::from_millis(1));
        metrics.set_replication_lag("http://b", 3);
        metrics.set_log_entries(5);
        metrics.fsync(Duration::from_millis(1), 4);
        metrics.read(false, Duration::from_millis(1));
        metrics.set_cluster(2, Some(7), true);
        drop(metrics.pending());
        metrics.set_clock_offset(-1_500);
        for result in ["accepted", "rejected", "trapped"] {
            metrics.of_hook("h", "p").call(Duration::from_micros(20), result, 65_536);
        }
        metrics.http(&Method::GET, "/kv", StatusCode::OK, Duration::from_millis(1));
        let text = metrics.render_prometheus();
        for name in names::METRICS {
            assert!(text.contains(&name.replace('.', "_")), "{name} is missing:\n{text}");
        }
        assert!(text.contains(r#"le="0.0001""#) && text.contains(r#"stage="append""#), "{text}");
        assert!(
            text.lines().any(|line| line.starts_with("brink_clock_offset_seconds") && line.ends_with(" -1.5")),
            "{text}"
        );
        let other = other.render_prometheus();
        let counts = other.lines().filter(|line| line.starts_with("brink_write_duration_seconds_count"));
        let zeros = counts.filter(|line| line.ends_with(" 0")).count();
        assert_eq!(zeros, Stage::iter().count(), "{other}");
    }

    #[test]
    fn a_write_is_pending_until_its_request_is_dropped() {
        let metrics = Metrics::start(SdkMeterProvider::builder(), || 0);
        let is_pending = |count: &str| {
            let text = metrics.render_prometheus();
            let line = text.lines().find(|line| line.starts_with("brink_raft_pending{")).unwrap();
            assert!(line.ends_with(count), "{line}");
        };
        let writes = [metrics.pending(), metrics.pending()];
        is_pending(" 2");
        drop(writes);
        is_pending(" 0");
    }
}
