//! `brink plugin bench`: the cost of a write for its plugin, on one thread and on all cores.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use serde_json::json;

use super::super::failure::Failure;
use super::super::output::{self, Format, mebibytes, micros, millis};
use super::local::{self, Store, Target};
use super::trial::WriteArgs;
use crate::hooks::{self, Calls, Hook, LogSink, Observer};
use crate::storage::command::{Action, Operation};

/// Calls before those that are measured.
const WARM_UP_CALLS: usize = 20;

/// Minimum number of measured calls, even if they take longer than the duration.
const MEASURED_CALLS_MIN: u64 = 10;

/// Longest call in a histogram, in nanoseconds: the longest deadline of a hook.
const CALL_NANOS_MAX: u64 = 10_000_000_000;

/// Significant digits of a histogram.
const DIGITS: u8 = 3;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    target: Target,
    /// How long to measure
    #[arg(short, long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    duration: Duration,
    #[command(flatten)]
    write: WriteArgs,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// Observes the peak memory of all calls.
#[derive(Default, Clone)]
struct Peak(Arc<AtomicUsize>);

impl LogSink for Peak {}

impl Observer for Peak {
    fn calls_of(&self, _: &str, _: &str) -> Calls {
        let Self(peak) = self.clone();
        Box::new(move |_, _, memory_bytes| {
            // Loading first keeps the cache line shared between threads; the maximum hardly ever changes.
            if memory_bytes > peak.load(Ordering::Relaxed) {
                peak.fetch_max(memory_bytes, Ordering::Relaxed);
            }
        })
    }
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let trial = args.write.trial(&args.target)?;
    let peak = Peak::default();
    let began = Instant::now();
    let local = args.target.load(Arc::new(peak.clone()))?;
    let compiled = began.elapsed();
    let began = Instant::now();
    let hook = local.bind(&trial.config)?;
    let bound = began.elapsed();
    let began = Instant::now();
    local.pre_initialize(&hook);
    let pre_initialized = began.elapsed();
    let verdict = match local::judge(&local::set(&hook), trial.write.clone(), &trial.store) {
        Ok(_) => "accepted",
        // A rejection is a valid verdict to measure; a failure is not.
        Err(hooks::Error::Rejected(_)) => "rejected",
        Err(error) => return Err(error.into()),
    };
    // Each thread has its own data, as each request does; otherwise contention on shared data would be measured.
    let call = || {
        let (set, write, store) = (local::set(&hook), copy(&trial.write), Arc::new(Store::clone(&trial.store)));
        move || drop(local::judge(&set, write.clone(), &store))
    };
    let instance = measure(|| || drop(hook.provide_instance(hook.limits)), args.duration / 3, 1)?;
    let alone = measure(call, args.duration, 1)?;
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let together = measure(call, args.duration, cores)?;
    let memory_bytes = peak.0.load(Ordering::Relaxed);
    let start = local.plugin.start_time();
    let report = Report {
        verdict,
        compiled,
        bound,
        pre_initialized,
        start,
        hook,
        instance,
        alone,
        together,
        cores,
        memory_bytes,
    };
    match args.output {
        Format::Json => report.print_json(),
        Format::Table => report.print(),
    }
}

/// The figures of a run.
struct Report {
    verdict: &'static str,
    compiled: Duration,
    bound: Duration,
    pre_initialized: Duration,
    /// The time to start an instance.
    start: Duration,
    hook: Hook,
    /// Taking and returning an instance without a call.
    instance: Measured,
    /// Calls on one thread.
    alone: Measured,
    /// Calls on all cores.
    together: Measured,
    cores: usize,
    memory_bytes: usize,
}

impl Report {
    fn print_json(&self) -> Result<(), Failure> {
        let Self { verdict, hook, alone, cores, memory_bytes, .. } = self;
        let text = json!({
            "verdict": verdict, "compile_ms": millis(self.compiled), "bind_ms": millis(self.bound),
            "specialise_ms": millis(self.pre_initialized), "starts_configured": matches!(hook.pre_initialized(), Some(Ok(()))),
            "is_put_back": matches!(hook.waiting(), Ok(1..)), "calls": alone.nanos.len(),
            "p50_us": alone.micros(0.5), "p99_us": alone.micros(0.99), "per_second": alone.per_second, "threads": cores,
            "per_second_on_all": self.together.per_second, "memory_bytes": memory_bytes,
            "start_us": micros(self.start), "instance_p50_us": self.instance.micros(0.5),
        });
        output::line(&text.to_string())
    }

    fn print(&self) -> Result<(), Failure> {
        let Self { verdict, hook, alone, cores, .. } = self;
        output::line(&format!("compile    {:.0} ms", millis(self.compiled)))?;
        output::line(&match hook.pre_initialized() {
            Some(Err(reason)) => format!("configure  {:.2} ms, before each write: {reason}", millis(self.bound)),
            _ => format!(
                "configure  {:.2} ms, once: the plugin was pre-initialized in {:.0} ms",
                millis(self.bound),
                millis(self.pre_initialized)
            ),
        })?;
        output::line(&format!(
            "write      {:.1} µs at the median, {:.1} µs at the 99th percentile ({} calls, each in an instance as `configure` left it; {verdict})",
            alone.micros(0.5),
            alone.micros(0.99),
            alone.nanos.len()
        ))?;
        let how = match hook.waiting() {
            Ok(1..) => "to reset one",
            Ok(0) => {
                "to start and end one; it cannot be reset, because its memory grows, or it writes to more than 4 MiB of it, or is \
                 given handles of WASI"
            }
            Err(why) => &format!("to start and end one; it cannot be reset: {why}"),
        };
        output::line(&format!("instance   {:.1} µs of that, without the call: {how}", self.instance.micros(0.5)))?;
        output::line(&format!(
            "rate       {:.0} a second on one thread, {:.0} on {cores} ({:.2} times)",
            alone.per_second,
            self.together.per_second,
            self.together.per_second / alone.per_second
        ))?;
        output::line(&format!("memory     {:.1} MiB", mebibytes(self.memory_bytes)))
    }
}

/// The time of calls.
struct Measured {
    nanos: Histogram<u64>,
    per_second: f64,
}

impl Measured {
    fn micros(&self, quantile: f64) -> f64 {
        self.nanos.value_at_quantile(quantile) as f64 / 1_000.0
    }
}

/// A deep copy: the clone of a write shares the bytes of its value.
fn copy(write: &Operation) -> Operation {
    let mut copy = write.clone();
    if let Action::Put(value) = &mut copy.action {
        value.bytes = Bytes::copy_from_slice(&value.bytes);
    }
    copy
}

/// Repeats a call on some threads, each of which prepares its own. Results are ignored: the caller has checked one.
fn measure<C: FnMut()>(
    prepare: impl Fn() -> C + Sync,
    duration: Duration,
    threads: usize,
) -> Result<Measured, Failure> {
    let work = |nanos: &mut Histogram<u64>| {
        let mut call = prepare();
        let mut call = || {
            let began = Instant::now();
            call();
            u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
        };
        for _ in 0..WARM_UP_CALLS {
            call();
        }
        let began = Instant::now();
        while began.elapsed() < duration || nanos.len() < MEASURED_CALLS_MIN {
            nanos.saturating_record(call());
        }
        nanos.len() as f64 / began.elapsed().as_secs_f64()
    };
    let histogram = || Histogram::new_with_max(CALL_NANOS_MAX, DIGITS).map_err(std::io::Error::other);
    let mut each = (0..threads).map(|_| histogram()).collect::<Result<Vec<Histogram<u64>>, _>>()?;
    let per_second = thread::scope(|scope| {
        let workers: Vec<_> = each.iter_mut().map(|nanos| scope.spawn(|| work(nanos))).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).sum()
    });
    let mut nanos = histogram()?;
    for one in &each {
        nanos.add(one).map_err(std::io::Error::other)?;
    }
    Ok(Measured { nanos, per_second })
}
