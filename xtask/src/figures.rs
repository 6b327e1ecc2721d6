//! The figures of a run of the load generator, and their medians.

use std::fmt;

use serde_json::{Value, json};

/// The figures of one run, or the medians of several.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figures {
    /// Requests per second.
    pub(crate) rate: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) errors: f64,
    /// Requests that were due but not sent, at a given rate.
    pub(crate) unsent: f64,
    /// Average number of busy cores: of all nodes, and of the loader.
    pub(crate) server_cores: f64,
    pub(crate) loader_cores: f64,
    /// Number of threads of the loader.
    pub(crate) loader_threads: f64,
}

/// Above this share of its threads' time, the loader is the bottleneck.
const LOADER_BUSY_MAX: f64 = 0.9;

impl Figures {
    /// Reads the loader's report of a run with one kind of requests.
    pub(crate) fn of(report: &Value, server_cores: f64) -> Option<Self> {
        let requests = report.get("writes").or_else(|| report.get("reads"))?;
        let number = |object: &Value, name: &str| object.get(name)?.as_f64();
        Some(Self {
            rate: number(requests, "per_second")?,
            p50_ms: number(requests, "p50_ms")?,
            p99_ms: number(requests, "p99_ms")?,
            errors: number(report, "errors")?,
            unsent: number(report, "unsent").unwrap_or_default(),
            server_cores,
            loader_cores: number(report, "loader_cores")?,
            loader_threads: number(report, "loader_threads")?,
        })
    }

    /// The medians of several runs, and the highest numbers of errors and of unsent requests.
    pub(crate) fn median(runs: Vec<Self>) -> Self {
        let sorted = |of: fn(&Self) -> f64| {
            let mut values: Vec<f64> = runs.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let median = |of| {
            let values = sorted(of);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        let most = |of| sorted(of).last().copied().unwrap_or_default();
        Self {
            rate: median(|run| run.rate),
            p50_ms: median(|run| run.p50_ms),
            p99_ms: median(|run| run.p99_ms),
            errors: most(|run| run.errors),
            unsent: most(|run| run.unsent),
            server_cores: median(|run| run.server_cores),
            loader_cores: median(|run| run.loader_cores),
            loader_threads: median(|run| run.loader_threads),
        }
    }

    /// The CPU time of a request over all nodes, in µs.
    pub(crate) fn server_us(&self) -> f64 {
        self.us(self.server_cores)
    }

    /// The CPU time that a request costs the loader, in µs.
    pub(crate) fn loader_us(&self) -> f64 {
        self.us(self.loader_cores)
    }

    fn us(&self, cores: f64) -> f64 {
        1e6 * cores / self.rate.max(1.0)
    }

    /// How far the slowest hundredth is from the middle: p99 divided by p50.
    pub(crate) fn p99_ratio(&self) -> f64 {
        self.p99_ms / self.p50_ms.max(0.001)
    }

    /// This rate divided by a peer's.
    pub(crate) fn rate_ratio(&self, peer: &Self) -> f64 {
        self.rate / peer.rate.max(1.0)
    }

    /// A peer's CPU time of a request divided by this one.
    pub(crate) fn cpu_ratio(&self, peer: &Self) -> f64 {
        peer.server_us() / self.server_us().max(0.1)
    }

    /// Whether the loader may have limited the rate.
    pub(crate) fn is_loader_busy(&self) -> bool {
        self.loader_cores > LOADER_BUSY_MAX * self.loader_threads
    }

    pub(crate) fn json(&self) -> Value {
        json!({
            "per_second": self.rate, "p50_ms": self.p50_ms, "p99_ms": self.p99_ms, "errors": self.errors,
            "unsent": self.unsent,
            "server_cores": self.server_cores, "loader_cores": self.loader_cores,
            "server_cpu_us": self.server_us(), "loader_cpu_us": self.loader_us(),
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, p50_ms, p99_ms, errors, .. } = self;
        let (server_us, loader_us) = (self.server_us(), self.loader_us());
        write!(f, "{rate:.0}/s, p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms, {errors} errors, ")?;
        write!(f, "CPU of a request: nodes {server_us:.1} µs, loader {loader_us:.1} µs")
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The figures of a run of writes.
    pub(crate) fn run(rate: f64, p99_ms: f64) -> Figures {
        let report = json!({"errors": 0, "loader_cores": 0.5, "loader_threads": 1,
            "writes": {"per_second": rate, "p50_ms": 1.0, "p99_ms": p99_ms}});
        Figures::of(&report, 1.0).unwrap()
    }

    #[test]
    fn the_medians_are_those_of_each_figure() {
        let median = Figures::median(vec![run(300.0, 1.0), run(100.0, 2.0), run(200.0, 9.0)]);
        assert_eq!((median.rate, median.p99_ms), (200.0, 2.0));
        assert_eq!((median.server_us(), median.loader_us()), (5_000.0, 2_500.0));
    }
}
