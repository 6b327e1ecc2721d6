//! `brink plugin bench`: the cost of a write for its plugin, on one thread and on all cores.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::super::{Failure, Format, io};
use super::local::{self, Store, Target};
use super::run::WriteArgs;
use crate::hooks::{self, Calls, Hook, LogSink, Observer};
use crate::storage::command::{Action, Operation};
use crate::text;

/// Calls before those that are measured.
const WARM_UP_CALLS: usize = 20;

/// Minimum number of measured calls, even if they take longer than the duration.
const MEASURED_CALLS_MIN: u64 = 10;

/// Longest call in a histogram, in nanoseconds: the longest deadline of a hook.
const CALL_NANOS_MAX: u64 = 10_000_000_000;

/// Significant digits of a histogram.
const DIGITS: u8 = 3;

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
    let failed =
        |failure| hooks::Error::Failed { hook: String::new(), plugin: hook.plugin().name().to_owned(), failure };
    hook.pre_initialize(&local.component, &local::compile_options()).map_err(failed)?;
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
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let instance = measure(|| || drop(hook.provide_instance(hook.limits)), args.duration / 3, 1)?;
    let alone = measure(call, args.duration, 1)?;
    let together = measure(call, args.duration, cores)?;
    let figures = json!({
        "verdict": verdict, "compile_ms": millis(compiled), "bind_ms": millis(bound),
        "specialise_ms": millis(pre_initialized), "starts_configured": matches!(hook.pre_initialized(), Some(Ok(()))),
        "is_put_back": matches!(hook.waiting(), Ok(1..)), "calls": alone.nanos.len(),
        "p50_us": alone.micros(0.5), "p99_us": alone.micros(0.99), "per_second": alone.per_second, "threads": cores,
        "per_second_on_all": together.per_second, "memory_bytes": peak.0.load(Ordering::Relaxed),
        "start_us": local.plugin.start_time().as_micros() as u64, "instance_p50_us": instance.micros(0.5),
    });
    match args.output {
        Format::Json => io::json(&figures.to_string()),
        Format::Table => print(&figures, &hook),
    }
}

fn print(figures: &Value, hook: &Hook) -> Result<(), Failure> {
    let figure = |name: &str| figures[name].as_f64().unwrap_or_default();
    io::line(&format!("compile    {:.0} ms", figure("compile_ms")))?;
    let (bound, pre_initialized) = (figure("bind_ms"), figure("specialise_ms"));
    io::line(&match hook.pre_initialized() {
        Some(Err(reason)) => format!("configure  {bound:.2} ms, before each write: {}", text::safe(reason)),
        _ => format!("configure  {bound:.2} ms, once: the plugin was pre-initialized in {pre_initialized:.0} ms"),
    })?;
    let (p50, p99, calls, verdict) =
        (figure("p50_us"), figure("p99_us"), &figures["calls"], io::text(&figures["verdict"]));
    io::line(&format!(
        "write      {p50:.1} µs at the median, {p99:.1} µs at the 99th percentile ({calls} calls, each in an instance as \
         `configure` left it; {verdict})"
    ))?;
    let how = match hook.waiting() {
        Ok(1..) => "to reset one",
        Ok(0) => {
            "to start and end one; it cannot be reset, because its memory grows, or it writes to more than 4 MiB of it, or is \
             given handles of WASI"
        }
        Err(why) => &format!("to start and end one; it cannot be reset: {}", text::safe(why)),
    };
    io::line(&format!("instance   {:.1} µs of that, without the call: {how}", figure("instance_p50_us")))?;
    let (one, all, cores) = (figure("per_second"), figure("per_second_on_all"), &figures["threads"]);
    io::line(&format!("rate       {one:.0} a second on one thread, {all:.0} on {cores} ({:.2} times)", all / one))?;
    io::line(&format!("memory     {:.1} MiB", figure("memory_bytes") / io::MEBIBYTE))
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

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
    let work = || {
        let mut nanos = Histogram::new_with_max(CALL_NANOS_MAX, DIGITS).map_err(std::io::Error::other)?;
        let mut call = prepare();
        for _ in 0..WARM_UP_CALLS {
            call();
        }
        let began = Instant::now();
        while began.elapsed() < duration || nanos.len() < MEASURED_CALLS_MIN {
            let call_began = Instant::now();
            call();
            nanos.saturating_record(u64::try_from(call_began.elapsed().as_nanos()).unwrap_or(u64::MAX));
        }
        let per_second = nanos.len() as f64 / began.elapsed().as_secs_f64();
        Ok(Measured { nanos, per_second })
    };
    let each: Vec<Result<Measured, Failure>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).collect()
    });
    let together = each.into_iter().reduce(|total, one| {
        let (mut total, one) = (total?, one?);
        total.nanos.add(&one.nanos).map_err(std::io::Error::other)?;
        total.per_second += one.per_second;
        Ok(total)
    });
    together.unwrap_or_else(|| Err(Failure::Failed("every thread panicked".to_owned())))
}
