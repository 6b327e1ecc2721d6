//! `brink plugin inspect`, `run` and `bench`: what a component is, what it says to one write, and what that costs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use serde_json::{Value as Json, json};

use super::super::client::Failure;
use super::super::kv::read_file;
use super::super::output::{self, Format};
use super::cases;
use super::local::{self, Store, Target};
use crate::hooks::{self, Calls, HOOKS_VERSION, LogSink, Observer, Unobserved};
use crate::storage::command::{Action, Operation, Value};

/// Calls before those that are measured.
const WARM_UP_CALLS: usize = 20;

/// What a benchmark takes at least in calls, whatever its time.
const MEASURED_CALLS_MIN: u64 = 10;

/// Longest call a histogram holds, in nanoseconds: the longest deadline of a hook.
const CALL_NANOS_MAX: u64 = 10_000_000_000;

/// Digits of a histogram.
const DIGITS: u8 = 3;

/// Which component.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct InspectArgs {
    #[command(flatten)]
    target: Target,
    /// How the result is printed
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// One write and what there is around it.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct RunArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    write: WriteArgs,
}

/// One write, and for how long it is repeated.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct BenchArgs {
    #[command(flatten)]
    target: Target,
    /// How long to measure
    #[arg(short, long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    duration: Duration,
    #[command(flatten)]
    write: WriteArgs,
    /// How the result is printed
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// A write; of a project, its first case that passes, if nothing is said.
#[derive(Debug, clap::Args)]
struct WriteArgs {
    /// The key
    #[arg(long)]
    key: Option<String>,
    /// The value, as JSON or as @FILE
    #[arg(long, value_name = "JSON", requires = "key", group = "value")]
    json: Option<String>,
    /// The value, as text
    #[arg(long, requires = "key", group = "value")]
    text: Option<String>,
    /// A file with the value, which is neither JSON nor text
    #[arg(long, value_name = "FILE", requires = "key", group = "value")]
    bytes: Option<PathBuf>,
    /// Delete the key
    #[arg(long, requires = "key", group = "value")]
    delete: bool,
    /// The plugin's configuration, as JSON or as @FILE
    #[arg(long, value_name = "JSON")]
    config: Option<String>,
    /// What the store holds, for plugins that read other keys; may be repeated
    #[arg(long, value_name = "KEY=JSON")]
    entry: Vec<String>,
}

/// What a plugin is asked.
pub(super) struct Trial {
    pub(super) config: Json,
    pub(super) write: Operation,
    pub(super) store: Arc<Store>,
}

impl WriteArgs {
    fn trial(&self, target: &Target) -> Result<Trial, Failure> {
        let example = match &self.key {
            None => Some(cases::example(target)?),
            Some(_) => None,
        };
        let config = self.config.as_deref().map(super::config).transpose()?;
        match (example, &self.key) {
            (Some(example), _) if self.entry.is_empty() => {
                Ok(Trial { config: config.unwrap_or(example.config), ..example })
            }
            (_, None) => Err(Failure::Usage("--entry needs --key".to_owned())),
            (_, Some(key)) => {
                let write = local::write(key, self.value()?);
                let store = Arc::new(Store::new(self.entries()?));
                Ok(Trial { config: config.unwrap_or(Json::Null), write, store })
            }
        }
    }

    fn value(&self) -> Result<Option<Value>, Failure> {
        if let Some(given) = &self.json {
            return json_value("--json", given).map(Some);
        }
        if let Some(text) = &self.text {
            return Ok(Some(local::other_value(local::TEXT, text.clone())));
        }
        if let Some(file) = &self.bytes {
            return Ok(Some(local::other_value("application/octet-stream", read_file(file)?)));
        }
        match self.delete {
            true => Ok(None),
            false => Err(Failure::Usage("a write needs one of --json, --text, --bytes and --delete".to_owned())),
        }
    }

    fn entries(&self) -> Result<Vec<(String, Value)>, Failure> {
        let entry = |given: &String| {
            let (key, json) = given
                .split_once('=')
                .ok_or_else(|| Failure::Usage(format!("--entry: {given}: it must be a key, `=` and JSON")))?;
            Ok((key.to_owned(), json_value("--entry", json)?))
        };
        self.entry.iter().map(entry).collect()
    }
}

fn json_value(flag: &str, given: &str) -> Result<Value, Failure> {
    let text = match given.strip_prefix('@') {
        Some(file) => String::from_utf8_lossy(&read_file(file.as_ref())?).into_owned(),
        None => given.to_owned(),
    };
    local::json_value(&text).map_err(|error| Failure::Usage(format!("{flag}: {given}: it is not JSON ({error})")))
}

/// Says what a component is.
pub(super) fn inspect(args: &InspectArgs) -> Result<(), Failure> {
    let local = args.target.load(Arc::new(Unobserved))?;
    let plugin = &local.plugin;
    let reads = plugin.imports().iter().any(|import| import.starts_with("store."));
    if args.output == Format::Json {
        let text = json!({
            "name": plugin.name(), "roles": plugin.roles(), "can_change_values": plugin.is_transformer(),
            "can_read_other_keys": reads, "interface": format!("brink:hooks@{HOOKS_VERSION}"),
            "imports": plugin.imports(), "size_bytes": local.component.len(), "digest": plugin.digest(),
            "memory_bytes": plugin.start_memory_bytes(), "start_us": micros(plugin.start_time()),
        });
        return output::line(&text.to_string());
    }
    let values = if plugin.is_transformer() { "can change values" } else { "cannot change values" };
    let keys = if reads { "can read other keys" } else { "cannot read other keys" };
    let imports = if plugin.imports().is_empty() { "none".to_owned() } else { plugin.imports().join(", ") };
    let start =
        format!("{:.1} MiB of memory, {} µs", mebibytes(plugin.start_memory_bytes()), micros(plugin.start_time()));
    let lines = [
        ("plugin", plugin.name().to_owned()),
        ("role", format!("{}: it {values}", plugin.roles().join(" and "))),
        ("interface", format!("brink:hooks@{HOOKS_VERSION}")),
        ("imports", format!("{imports}: it {keys}")),
        ("size", format!("{} bytes", local.component.len())),
        ("start", start),
        ("digest", plugin.digest().to_owned()),
    ];
    lines.iter().try_for_each(|(title, text)| output::line(&format!("{title:<10} {text}")))
}

/// Has the plugin judge one write. A refusal is a failure of the command.
pub(super) fn run(args: &RunArgs) -> Result<(), Failure> {
    local::show_lines();
    let trial = args.write.trial(&args.target)?;
    let local = args.target.load(Arc::new(Unobserved))?;
    let hook = local.bind(&trial.config)?;
    let judged = local::judge(&hook, trial.write.clone(), &trial.store)?;
    match judged.operations.first().map(|operation| &operation.action) {
        Some(Action::Put(value)) if judged.operations.first() != Some(&trial.write) => {
            output::line("accepted, with another value:")?;
            output::bytes(&value.bytes)?;
            output::line("")
        }
        _ => output::line("accepted"),
    }
}

/// The most memory that any call had.
#[derive(Default, Clone)]
struct Peak(Arc<AtomicUsize>);

impl LogSink for Peak {}

impl Observer for Peak {
    fn calls_of(&self, _: &str, _: &str) -> Arc<dyn Calls> {
        Arc::new(self.clone())
    }
}

impl Calls for Peak {
    fn ended(&self, _: Duration, _: &'static str, memory_bytes: usize) {
        // It hardly ever changes, and what is only read does not go from thread to thread.
        if memory_bytes > self.0.load(Ordering::Relaxed) {
            self.0.fetch_max(memory_bytes, Ordering::Relaxed);
        }
    }
}

/// Measures what a write costs, on one thread and on all cores.
pub(super) fn bench(args: &BenchArgs) -> Result<(), Failure> {
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
    let verdict = match local::judge(&hook, trial.write.clone(), &trial.store) {
        Ok(_) => "accepted",
        // A refusal is a result like any other; a failure is not.
        Err(hooks::Error::Rejected(_)) => "rejected",
        Err(error) => return Err(error.into()),
    };
    // Threads ask with data of their own, as requests do: else what they share would be measured.
    let call = || {
        let (set, write, store) = (local::set(&hook), own(&trial.write), Arc::new(Store::clone(&trial.store)));
        move || drop(local::ask(&set, write.clone(), &store))
    };
    let instance = measure(|| || drop(hook.provide_instance()), args.duration / 3, 1)?;
    let alone = measure(call, args.duration, 1)?;
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let together = measure(call, args.duration, cores)?;
    let speedup = together.per_second / alone.per_second;
    let memory_bytes = peak.0.load(Ordering::Relaxed);
    if args.output == Format::Json {
        let text = json!({
            "verdict": verdict, "compile_ms": millis(compiled), "bind_ms": millis(bound),
            "specialise_ms": millis(pre_initialized), "starts_configured": matches!(hook.pre_initialized(), Some(Ok(()))),
            "is_put_back": matches!(hook.waiting(), Ok(1..)), "calls": alone.nanos.len(),
            "p50_us": alone.micros(0.5), "p99_us": alone.micros(0.99), "per_second": alone.per_second, "threads": cores,
            "per_second_on_all": together.per_second, "memory_bytes": memory_bytes,
            "start_us": micros(local.plugin.start_time()), "instance_p50_us": instance.micros(0.5),
        });
        return output::line(&text.to_string());
    }
    output::line(&format!("compile    {:.0} ms", millis(compiled)))?;
    output::line(&match hook.pre_initialized() {
        Some(Err(reason)) => format!("configure  {:.2} ms, before each write: {reason}", millis(bound)),
        _ => format!(
            "configure  {:.2} ms, once: the plugin was pre-initialized in {:.0} ms",
            millis(bound),
            millis(pre_initialized)
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
    output::line(&format!("instance   {:.1} µs of that, without the call: {how}", instance.micros(0.5)))?;
    output::line(&format!(
        "rate       {:.0} a second on one thread, {:.0} on {cores} ({speedup:.2} times)",
        alone.per_second, together.per_second
    ))?;
    output::line(&format!("memory     {:.1} MiB", mebibytes(memory_bytes)))
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

/// A write that shares nothing with the one it is made of.
fn own(write: &Operation) -> Operation {
    let mut own = write.clone();
    if let Action::Put(value) = &mut own.action {
        value.bytes = Bytes::copy_from_slice(&value.bytes);
    }
    own
}

/// Has each of some threads prepare a call and repeat it. What it comes to has been looked at before.
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

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
