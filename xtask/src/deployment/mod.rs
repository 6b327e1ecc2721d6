//! `cargo xtask deployment`: what deploying a large plugin costs the writes of a busy cluster.
//!
//! Three nodes run on this machine, with 64 writers, which share it. One half of the writers write keys that no hook judges, the
//! other half keys that a small hook judges. Then a component of 6 MB is uploaded, and bound to the keys of the second half. Each
//! half's rate in each second is compared with its rate before; ten seconds are shown, too.
//!
//! ```text
//! mod → {load, component}
//! ```

mod component;
mod load;

use std::path::PathBuf;
use std::thread::{sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde_json::json;

use self::load::{Counts, Half, Load};
use crate::build;
use crate::http::Client;
use crate::interrupt::Interrupt;
use crate::node::{self, BASE_PATH, Cluster, Settings};

/// The plugin of the small hook, and that which is enlarged.
const PLUGINS: [&str; 2] = ["normalize", "json-schema"];

/// Size of the component that is deployed, in bytes.
const COMPONENT_BYTES: usize = 6_000_000;

/// Number of nodes.
const NODES: usize = 3;

/// Interval at which Ctrl-C is noticed.
const POLL: Duration = Duration::from_millis(100);

/// Time for the load to become steady.
const WARMUP: Duration = Duration::from_secs(5);

/// Seconds over which a rate is shown beside that of single seconds, which differ by a quarter without any deployment.
const WINDOW_S: usize = 10;

/// The options of `deployment`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Duration of the measurements before and after the deployment, in seconds
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Number of writers
    #[arg(long, default_value_t = 64)]
    writers: usize,
    /// Measure this binary instead of building one
    #[arg(long, value_name = "FILE")]
    brink: Option<PathBuf>,
    /// Deploy this component instead of an enlarged `json-schema`; --config is its configuration
    #[arg(long, value_name = "FILE", requires = "config")]
    component: Option<PathBuf>,
    /// The configuration of that component, as JSON
    #[arg(long, value_name = "JSON", requires = "component")]
    config: Option<String>,
}

/// Starts the cluster, deploys the plugin under load, and prints what that costs.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    build::plugins_only(&PLUGINS)?;
    let brink = build::given_or_release(options.brink.as_deref())?;
    let (bytes, config) = match (&options.component, &options.config) {
        (Some(file), Some(config)) => (std::fs::read(file)?, serde_json::from_str(config)?),
        _ => {
            let schema = std::fs::read(build::plugin_file("json-schema")?)?;
            (component::enlarged(schema, COMPONENT_BYTES), component::schema_config())
        }
    };
    let deployment =
        Deployment { bytes, config, writers: options.writers, steady: Duration::from_secs(options.seconds) };
    let interrupt = Interrupt::catch()?;
    let dir = build::target_dir()?.join("deployment");
    let mut cluster = Cluster::start(&brink, node::free_ports(NODES)?, &dir, Settings::Defaults)?;
    let ports = cluster.wait_ready(&interrupt)?;
    let measured = spawn(move || deployment.measure(&ports));
    while !measured.is_finished() && !interrupt.is_set() {
        sleep(POLL);
    }
    // Requests that are under way then fail.
    drop(cluster);
    let measured = measured.join().map_err(|_| anyhow!("the measurement panicked"))?;
    interrupt.check()?;
    let (counts, times) = measured?;
    report(&counts, &times)
}

/// What is deployed, and beside which load.
struct Deployment {
    bytes: Vec<u8>,
    config: serde_json::Value,
    writers: usize,
    /// Time of the load before the deployment, and after it.
    steady: Duration,
}

impl Deployment {
    /// Returns what the writers have counted, and the seconds at which the phases began and ended.
    fn measure(&self, ports: &[u16]) -> anyhow::Result<(Counts, Vec<usize>)> {
        let mut client = Client::connect(*ports.first().context("no node runs")?)?;
        let small = std::fs::read(build::plugin_file("normalize")?)?;
        deploy(&mut client, "small", &small)?;
        bind(&mut client, "small", &json!({"trim": ["/name"]}))?;

        let load = Load::start(ports, self.writers)?;
        sleep(WARMUP);
        let mut times = vec![load.second()];
        sleep(self.steady);
        times.push(load.second());
        let began = Instant::now();
        deploy(&mut client, "large", &self.bytes)?;
        let deployed = began.elapsed();
        times.push(load.second());
        bind(&mut client, "large", &self.config)?;
        let bound = began.elapsed() - deployed;
        times.push(load.second());
        sleep(self.steady);
        times.push(load.second());
        let (bytes, deployed, bound) = (self.bytes.len(), deployed.as_secs_f64(), bound.as_secs_f64());
        println!("{bytes} bytes uploaded in {deployed:.1} s, bound in {bound:.1} s");
        Ok((load.stop(), times))
    }
}

fn deploy(client: &mut Client, plugin: &str, component: &[u8]) -> anyhow::Result<()> {
    client.put(&format!("{BASE_PATH}/plugins/{plugin}/"), "application/wasm", component)
}

fn bind(client: &mut Client, plugin: &str, config: &serde_json::Value) -> anyhow::Result<()> {
    let hook = json!({"plugin": plugin, "prefix": Half::Judged.prefix(), "config": config}).to_string();
    client.put(&format!("{BASE_PATH}/hooks/{plugin}/"), "application/json", hook.as_bytes())
}

/// Prints the rates of both halves. Fails if one missed its goal.
fn report(counts: &Counts, times: &[usize]) -> anyhow::Result<()> {
    let &[warm, upload, bind, after, end] = times else { bail!("a phase is missing") };
    println!(
        "\n{:<10} {:>9} {:>9} {:>9} {:>9} {:>13} {:>13} {:>13} {:>13}  goal",
        "writes/s", "before", "upload", "bind", "after", "worst before", "worst since", "ten s before", "ten s since"
    );
    let mut missed = Vec::new();
    for half in [Half::Unjudged, Half::Judged] {
        let rates = counts.rates(half);
        let part = |from: usize, to: usize| rates.get(from..to.max(from + 1)).unwrap_or_default();
        let before = mean(part(warm, upload));
        // The last second is not complete.
        let (worst_before, worst) = (least(part(warm, upload), 1) / before, least(part(upload, end), 1) / before);
        let ten_before = least(part(warm, upload), WINDOW_S) / before;
        let ten_since = least(part(upload, end), WINDOW_S) / before;
        let [during, binding, since] = [part(upload, bind), part(bind, after), part(after, end)].map(mean);
        let (goal, verdict) = (half.goal(), if worst >= half.goal() { "reached" } else { "missed" });
        println!(
            "{:<10} {before:>9.0} {during:>9.0} {binding:>9.0} {since:>9.0} {:>12.0}% {:>12.0}% {:>12.0}% {:>12.0}%  {:.0} %: {verdict}",
            half.prefix(),
            worst_before * 100.0,
            worst * 100.0,
            ten_before * 100.0,
            ten_since * 100.0,
            goal * 100.0
        );
        missed.extend((worst < goal).then(|| half.prefix()));
        for (second, rate) in rates.iter().enumerate().take(end).skip(warm) {
            eprintln!("{second:>4} {} {rate}", half.prefix());
        }
    }
    let failures = counts.failures();
    println!("{failures} writes failed");
    if failures > 0 || !missed.is_empty() {
        bail!("goals were missed: {}", missed.join(", "));
    }
    Ok(())
}

fn mean(rates: &[u64]) -> f64 {
    rates.iter().sum::<u64>() as f64 / rates.len().max(1) as f64
}

/// The least rate over so many seconds.
fn least(rates: &[u64], seconds: usize) -> f64 {
    rates.windows(seconds.clamp(1, rates.len().max(1))).map(mean).min_by(f64::total_cmp).unwrap_or(0.0)
}
