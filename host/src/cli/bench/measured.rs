//! What the clients measured: latencies and errors.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::super::failure::Failure;

/// The largest latency of a histogram, in microseconds; longer ones count as this.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Significant digits of latencies.
const DIGITS: u8 = 3;

/// Kinds of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Write,
    Read,
}

/// The measurements of one client, or of several.
#[derive(Default)]
pub(super) struct Measured {
    /// In microseconds, without those of errors.
    pub(super) latencies: BTreeMap<Kind, Histogram<u64>>,
    /// The number of errors by their text.
    pub(super) errors: BTreeMap<String, u64>,
}

impl Measured {
    /// Adds the result of a request.
    pub(super) fn note(&mut self, kind: Kind, latency: Duration, failure: Option<Failure>) {
        match failure {
            Some(Failure::Refused(refusal)) => {
                let name = format!("{} {}", refusal.status.as_u16(), refusal.slug());
                *self.errors.entry(name).or_default() += 1;
            }
            Some(failure) => *self.errors.entry(failure.to_string()).or_default() += 1,
            None => {
                let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_US_MAX);
                if let Some(histogram) = self.histogram(kind) {
                    histogram.saturating_record(us.clamp(1, LATENCY_US_MAX));
                }
            }
        }
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
    }

    fn histogram(&mut self, kind: Kind) -> Option<&mut Histogram<u64>> {
        match self.latencies.entry(kind) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(entry) => Some(entry.insert(Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).ok()?)),
        }
    }
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
