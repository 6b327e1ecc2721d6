//! The figures of a run, the comparison of both servers, and their output.

use std::fmt;

use serde_json::{Value, json};

use super::case::{Case, Load};

/// The figures of one run, or the medians of several.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Figures {
    /// Requests per second.
    pub(super) rate: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) errors: f64,
    /// Average number of busy cores: of all nodes, and of the loader.
    pub(super) server_cores: f64,
    pub(super) loader_cores: f64,
    /// Number of threads of the loader.
    pub(super) loader_threads: f64,
}

/// Above this share of its threads' time, the loader is the bottleneck.
const LOADER_BUSY_MAX: f64 = 0.9;

impl Figures {
    /// Reads the loader's report of a run with one kind of requests.
    pub(super) fn of(report: &Value, server_cores: f64) -> Option<Self> {
        let requests = report.get("writes").or_else(|| report.get("reads"))?;
        let number = |object: &Value, name: &str| object.get(name)?.as_f64();
        Some(Self {
            rate: number(requests, "per_second")?,
            p50_ms: number(requests, "p50_ms")?,
            p99_ms: number(requests, "p99_ms")?,
            errors: number(report, "errors")?,
            server_cores,
            loader_cores: number(report, "loader_cores")?,
            loader_threads: number(report, "loader_threads")?,
        })
    }

    /// The medians of several runs, and the highest number of errors.
    pub(super) fn median(runs: Vec<Self>) -> Self {
        let sorted = |of: fn(&Self) -> f64| {
            let mut values: Vec<f64> = runs.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let median = |of| {
            let values = sorted(of);
            values.get(values.len() / 2).copied().unwrap_or_default()
        };
        Self {
            rate: median(|run| run.rate),
            p50_ms: median(|run| run.p50_ms),
            p99_ms: median(|run| run.p99_ms),
            errors: sorted(|run| run.errors).last().copied().unwrap_or_default(),
            server_cores: median(|run| run.server_cores),
            loader_cores: median(|run| run.loader_cores),
            loader_threads: median(|run| run.loader_threads),
        }
    }

    /// The CPU time of a request in µs: of all nodes together, and of the loader.
    fn cpu_us(&self) -> (f64, f64) {
        let of = |cores: f64| 1e6 * cores / self.rate.max(1.0);
        (of(self.server_cores), of(self.loader_cores))
    }

    fn json(&self) -> Value {
        let (server_us, loader_us) = self.cpu_us();
        json!({
            "per_second": self.rate, "p50_ms": self.p50_ms, "p99_ms": self.p99_ms, "errors": self.errors,
            "server_cores": self.server_cores, "loader_cores": self.loader_cores,
            "server_cpu_us": server_us, "loader_cpu_us": loader_us,
        })
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rate, p50_ms, p99_ms, errors, .. } = self;
        let (server_us, loader_us) = self.cpu_us();
        write!(f, "{rate:.0}/s, p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms, {errors} errors, ")?;
        write!(f, "CPU of a request: nodes {server_us:.1} µs, loader {loader_us:.1} µs")
    }
}

/// A case with the medians of both servers.
pub(super) struct Compared {
    pub(super) case: Case,
    pub(super) brink: Figures,
    pub(super) etcd: Figures,
}

impl Compared {
    fn ratio(&self) -> f64 {
        self.brink.rate / self.etcd.rate.max(1.0)
    }

    /// Whether the target is reached, if there is one.
    fn is_met(&self) -> Option<bool> {
        self.case.target.map(|target| self.ratio() >= target)
    }

    /// Whether p99 must be lower than etcd's, which is so for replicated writes.
    fn p99_counts(&self) -> bool {
        self.case.load == Load::Writes
    }

    fn has_lower_p99(&self) -> bool {
        self.brink.p99_ms < self.etcd.p99_ms
    }

    /// The comparison of the ratio with its target, in words.
    fn verdict(&self) -> String {
        let mut verdict = match (self.case.target, self.is_met()) {
            (Some(target), Some(false)) => {
                format!("{target:.1}× missed by {:.0} %", 100.0 * (1.0 - self.ratio() / target))
            }
            (Some(target), _) => format!("{target:.1}× met"),
            (None, _) => "no target".to_owned(),
        };
        if self.p99_counts() {
            verdict.push_str(if self.has_lower_p99() { ", p99 lower" } else { ", p99 NOT lower" });
        }
        verdict
    }

    fn json(&self) -> Value {
        json!({
            "load": title(self.case.load), "clients": self.case.clients, "brink": self.brink.json(),
            "etcd": self.etcd.json(), "ratio": self.ratio(), "target": self.case.target, "met": self.is_met(),
            "p99_lower": self.has_lower_p99(),
        })
    }
}

fn title(load: Load) -> &'static str {
    match load {
        Load::Writes => "Writes, three nodes",
        Load::StrongReads => "Linearizable reads from the leader, three nodes",
        Load::LocalReads => "Local (etcd: serializable) reads from a follower, three nodes",
        Load::SingleWrites => "Writes, a single node",
    }
}

/// All cases as a JSON list.
pub(super) fn json(compared: &[Compared]) -> Value {
    compared.iter().map(Compared::json).collect()
}

/// Prints a table for each load, and a summary.
pub(super) fn print(compared: &[Compared]) {
    for load in [Load::Writes, Load::StrongReads, Load::LocalReads, Load::SingleWrites] {
        let cases: Vec<&Compared> = compared.iter().filter(|compared| compared.case.load == load).collect();
        if !cases.is_empty() {
            println!("\n{}\n{}", title(load), table(&cases));
        }
    }
    let missed = compared.iter().filter(|compared| compared.is_met() == Some(false)).count();
    let slow = compared.iter().filter(|compared| compared.p99_counts() && !compared.has_lower_p99()).count();
    let targets = compared.iter().filter(|compared| compared.is_met().is_some()).count();
    println!(
        "\n{missed} of {targets} targets missed; p99 is not lower than etcd's in {slow} cases of replicated writes"
    );
}

fn table(cases: &[&Compared]) -> String {
    let mut lines = vec![format!(
        "{:>7}  {:>9} {:>8} {:>8}  {:>9} {:>8} {:>8}  {:>6}  {:<28} {}",
        "CLIENTS",
        "ETCD/S",
        "P50 MS",
        "P99 MS",
        "BRINK/S",
        "P50 MS",
        "P99 MS",
        "RATIO",
        "TARGET",
        "CPU µs OF A REQUEST: NODES+LOADER, ETCD | BRINK"
    )];
    for compared in cases {
        let Compared { case, brink, etcd } = compared;
        let ((etcd_us, etcd_loader_us), (brink_us, brink_loader_us)) = (etcd.cpu_us(), brink.cpu_us());
        lines.push(format!(
            "{:>7}  {:>9.0} {:>8.2} {:>8.2}  {:>9.0} {:>8.2} {:>8.2}  {:>5.2}×  {:<28} {:.1}+{:.1} | {:.1}+{:.1}",
            case.clients,
            etcd.rate,
            etcd.p50_ms,
            etcd.p99_ms,
            brink.rate,
            brink.p50_ms,
            brink.p99_ms,
            compared.ratio(),
            compared.verdict(),
            etcd_us,
            etcd_loader_us,
            brink_us,
            brink_loader_us
        ));
        for (name, figures) in [("etcd", etcd), ("brink", brink)] {
            if figures.errors > 0.0 {
                lines.push(format!("{:>7}  {name} answered {} requests of a run with errors", "", figures.errors));
            }
            if figures.loader_cores > LOADER_BUSY_MAX * figures.loader_threads {
                lines.push(format!("{:>7}  the loader was the bottleneck; {name} may be faster", ""));
            }
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(rate: f64, p99_ms: f64) -> Figures {
        let report = json!({"errors": 0, "loader_cores": 0.5, "loader_threads": 1,
            "writes": {"per_second": rate, "p50_ms": 1.0, "p99_ms": p99_ms}});
        Figures::of(&report, 1.0).unwrap()
    }

    #[test]
    fn the_medians_are_those_of_each_figure() {
        let median = Figures::median(vec![run(300.0, 1.0), run(100.0, 2.0), run(200.0, 9.0)]);
        assert_eq!((median.rate, median.p99_ms), (200.0, 2.0));
        assert_eq!(median.cpu_us(), (5_000.0, 2_500.0));
    }

    #[test]
    fn a_missed_target_says_by_how_much() {
        let case = Case { load: Load::Writes, clients: 1, target: Some(1.6) };
        let missed = Compared { case, brink: run(120.0, 2.0), etcd: run(100.0, 3.0) };
        assert_eq!(missed.verdict(), "1.6× missed by 25 %, p99 lower");
        let met = Compared { case, brink: run(160.0, 3.0), etcd: run(100.0, 3.0) };
        assert_eq!(met.verdict(), "1.6× met, p99 NOT lower");
    }
}
