//! What the clients measured, and the report of it, as a table or as JSON.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::json;

use super::super::{Failure, Format, io};
use super::args::Args;
use crate::text;

/// The largest latency of a histogram, in microseconds; longer ones count as this.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Significant digits of latencies.
const DIGITS: u8 = 3;

/// CPU use per thread above which the loader may limit what it measures.
const LOADER_BUSY_MAX: f64 = 0.9;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Write,
    Read,
}

/// The measurements of one client, or of several.
#[derive(Default)]
pub(super) struct Measured {
    /// In microseconds, without those of errors.
    latencies: BTreeMap<Kind, Histogram<u64>>,
    /// The number of errors by their text.
    errors: BTreeMap<String, u64>,
    /// The number of requests that were due before the end, but not sent.
    pub(super) unsent: u64,
}

impl Measured {
    /// Adds the result of a request.
    pub(super) fn note(&mut self, kind: Kind, latency: Duration, failure: Option<Failure>) {
        let error = match failure {
            None => {
                let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_US_MAX);
                if let Some(histogram) = self.histogram(kind) {
                    histogram.saturating_record(us.clamp(1, LATENCY_US_MAX));
                }
                return;
            }
            Some(Failure::Refused(refusal)) => format!("{} {}", refusal.status.as_u16(), refusal.slug()),
            Some(failure) => failure.to_string(),
        };
        *self.errors.entry(error).or_default() += 1;
    }

    /// Adds the measurements of other clients.
    pub(super) fn add(&mut self, other: Self) {
        for (kind, latencies) in other.latencies {
            if let Some(histogram) = self.histogram(kind) {
                // Cannot fail: both histograms have the same bounds.
                let _ = histogram.add(latencies);
            }
        }
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
        self.unsent += other.unsent;
    }

    fn histogram(&mut self, kind: Kind) -> Option<&mut Histogram<u64>> {
        match self.latencies.entry(kind) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(entry) => Some(entry.insert(Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).ok()?)),
        }
    }
}

/// Prints the report of a load of `seconds`. `loader_cores` is the CPU seconds per second of this process.
pub(super) fn print(
    measured: &Measured,
    args: &Args,
    seconds: f64,
    loader_threads: usize,
    loader_cores: f64,
) -> Result<(), Failure> {
    let mut summary = json!({
        "clients": args.clients, "seconds": round(seconds), "value_bytes": args.value_bytes,
        "errors": measured.errors.values().sum::<u64>(), "errors_by_kind": measured.errors,
        "loader_threads": loader_threads, "loader_cores": round(loader_cores),
    });
    if let Some(rate) = args.rate {
        summary["rate"] = json!(rate);
        summary["unsent"] = json!(measured.unsent);
    }
    let mut rows = Vec::new();
    for (kind, raw) in &measured.latencies {
        let name = if *kind == Kind::Write { "writes" } else { "reads" };
        // With a schedule, latencies are measured from the scheduled times and need no correction.
        let latencies = if args.rate.is_some() { raw.clone() } else { raw.clone_correct(raw.mean() as u64) };
        let ms = |us: u64| round(us as f64 / 1_000.0);
        let quantile = |quantile| ms(latencies.value_at_quantile(quantile));
        let figures @ [p50, p90, p99, p99_9, max] =
            [quantile(0.5), quantile(0.9), quantile(0.99), quantile(0.999), ms(raw.max())];
        let (count, per_second) = (raw.len(), round(raw.len() as f64 / seconds.max(0.001)));
        summary[name] = json!({
            "count": count, "per_second": per_second, "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "p99_9_ms": p99_9,
            "max_ms": max,
        });
        let [p50, p90, p99, p99_9, max] = figures.map(|ms| format!("{ms:.2}"));
        rows.push([name.to_owned(), count.to_string(), format!("{per_second:.0}"), p50, p90, p99, p99_9, max]);
    }
    if args.common.output == Format::Json {
        return io::json(&summary.to_string());
    }
    io::line(&format!("{} clients, {seconds:.1} s, values of {} bytes", args.clients, args.value_bytes))?;
    io::table(["", "COUNT", "PER SECOND", "P50 MS", "P90 MS", "P99 MS", "P99.9 MS", "MAX MS"], rows)?;
    for (error, count) in &measured.errors {
        io::line(&format!("{count} errors: {}", text::safe(error)))?;
    }
    if measured.unsent > 0 {
        io::line(&format!(
            "{} requests were due but not sent: the nodes were too slow for this rate",
            measured.unsent
        ))?;
    }
    if loader_cores > LOADER_BUSY_MAX * loader_threads as f64 {
        io::line(
            "the loader was busy all the time: with more --threads, or fewer others on this machine, there may be more",
        )?;
    }
    Ok(())
}

/// Rounds to two decimal places.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_shows_in_the_corrected_quantiles() {
        let mut measured = Measured::default();
        for _ in 0..999 {
            measured.note(Kind::Write, Duration::from_millis(1), None);
        }
        measured.note(Kind::Write, Duration::from_secs(1), None);
        let raw = measured.histogram(Kind::Write).unwrap().clone();
        let corrected = raw.clone_correct(raw.mean() as u64);
        assert!(raw.value_at_quantile(0.99) < 1_100);
        // Half of the second's requests were never sent; they are counted with what they would have waited.
        assert!(corrected.value_at_quantile(0.99) > 900_000, "{}", corrected.value_at_quantile(0.99));
    }

    #[test]
    fn errors_are_counted_by_kind_and_not_as_latency() {
        let mut measured = Measured::default();
        measured.note(Kind::Read, Duration::ZERO, Some(Failure::Usage("x".to_owned())));
        let mut total = Measured::default();
        total.add(measured);
        assert_eq!((total.errors.get("x"), total.latencies.len()), (Some(&1), 0));
    }
}
