//! The report of a load, as a table or as JSON.

use serde_json::json;

use super::super::failure::Failure;
use super::super::output::{self, Format};
use super::args::Args;
use super::measured::{Kind, Measured};

/// CPU use per thread above which the loader may limit what it measures.
const LOADER_BUSY_MAX: f64 = 0.9;

/// The load as it was run.
pub(super) struct Run<'a> {
    pub(super) args: &'a Args,
    /// The time that was measured.
    pub(super) seconds: f64,
    pub(super) loader_threads: usize,
    /// CPU seconds per second of this process.
    pub(super) loader_cores: f64,
}

/// Prints the report.
pub(super) fn print(run: &Run<'_>, measured: &Measured) -> Result<(), Failure> {
    let &Run { args, seconds, loader_threads, loader_cores } = run;
    let quantiles = [("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("p99_9_ms", 0.999)];
    let mut summary = json!({
        "clients": args.clients, "seconds": round(seconds), "value_bytes": args.value_bytes,
        "errors": measured.errors.values().sum::<u64>(), "errors_by_kind": measured.errors,
        "loader_threads": loader_threads, "loader_cores": round(loader_cores),
    });
    let mut rows = Vec::new();
    for (kind, raw) in &measured.latencies {
        let name = if *kind == Kind::Write { "writes" } else { "reads" };
        // With a schedule, latencies are measured from the scheduled times and need no correction.
        let latencies = if args.rate.is_some() { raw.clone() } else { raw.clone_correct(raw.mean() as u64) };
        let ms = |us: u64| round(us as f64 / 1_000.0);
        let per_second = round(raw.len() as f64 / seconds.max(0.001));
        let mut figures = json!({"count": raw.len(), "per_second": per_second});
        let mut row = vec![name.to_owned(), raw.len().to_string(), format!("{per_second:.0}")];
        for (title, quantile) in quantiles {
            let value = ms(latencies.value_at_quantile(quantile));
            figures[title] = json!(value);
            row.push(format!("{value:.2}"));
        }
        figures["max_ms"] = json!(ms(raw.max()));
        row.push(format!("{:.2}", ms(raw.max())));
        summary[name] = figures;
        rows.push(row);
    }
    if args.common.output == Format::Json {
        return output::line(&summary.to_string());
    }
    output::line(&format!("{} clients, {seconds:.1} s, values of {} bytes", args.clients, args.value_bytes))?;
    output::table(&["", "COUNT", "PER SECOND", "P50 MS", "P90 MS", "P99 MS", "P99.9 MS", "MAX MS"], &rows)?;
    for (error, count) in &measured.errors {
        output::line(&format!("{count} errors: {error}"))?;
    }
    if loader_cores > LOADER_BUSY_MAX * loader_threads as f64 {
        output::line(
            "the loader was busy all the time: with more --threads, or fewer others on this machine, there may be more",
        )?;
    }
    Ok(())
}

/// Rounds to two decimal places.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
