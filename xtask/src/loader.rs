//! The load generator, `brink bench`, as tasks run it.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::figures::Figures;
use crate::interrupt::Interrupt;

/// Duration of the load before a measurement.
const WARMUP: &str = "1s";

/// Maximum time that a run may take beyond its duration, to prepare the keys for example. Longer than the loader waits for an answer.
const RUN_MARGIN: Duration = Duration::from_secs(120);

/// Time between two checks of a running loader.
const POLL: Duration = Duration::from_millis(50);

/// What a load asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Requests<'a> {
    /// Writes; Redis is asked to have each on some replicas.
    Writes { wait_replicas: Option<&'a str> },
    /// Reads of a consistency, of keys that are there.
    Reads { consistency: &'a str },
    /// Write every key once and end.
    Prepare,
}

/// A load of one kind of requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load<'a> {
    /// The value of `--api`.
    pub(crate) api: &'a str,
    /// Base URLs, separated by commas.
    pub(crate) urls: &'a str,
    pub(crate) requests: Requests<'a>,
    pub(crate) clients: u32,
    pub(crate) seconds: u64,
    pub(crate) keys: u64,
    pub(crate) value_bytes: u64,
    /// Requests per second; as fast as they are answered, if absent.
    pub(crate) rate: Option<u64>,
}

impl<'a> Load<'a> {
    /// Writes to nodes of brink, as fast as they are answered.
    pub(crate) fn writes(urls: &'a str, clients: u32, seconds: u64, keys: u64, value_bytes: u64) -> Self {
        let requests = Requests::Writes { wait_replicas: None };
        Self { api: "brink", urls, requests, clients, seconds, keys, value_bytes, rate: None }
    }

    fn args(&self) -> Vec<String> {
        let args = [
            ("--output", "json".to_owned()),
            ("--api", self.api.to_owned()),
            ("--url", self.urls.to_owned()),
            ("--value-bytes", self.value_bytes.to_string()),
            ("--keys", self.keys.to_string()),
        ];
        let is_preparing = self.requests == Requests::Prepare;
        let load = match is_preparing {
            true => [("--clients", "1".to_owned()), ("--warmup", "0s".to_owned()), ("--duration", "1ms".to_owned())],
            false => [
                ("--clients", self.clients.to_string()),
                ("--warmup", WARMUP.to_owned()),
                ("--duration", format!("{}s", self.seconds)),
            ],
        };
        let named = args.into_iter().chain(load).chain(self.rate.map(|rate| ("--rate", rate.to_string())));
        let named = named.flat_map(|(name, value)| [name.to_owned(), value]);
        let requests = match self.requests {
            Requests::Writes { wait_replicas: None } => vec![],
            Requests::Writes { wait_replicas: Some(replicas) } => vec!["--wait-replicas", replicas],
            Requests::Reads { consistency } => vec!["--reads", "1", "--prepared", "--consistency", consistency],
            Requests::Prepare => vec!["--reads", "1"],
        };
        std::iter::once("bench".to_owned()).chain(named).chain(requests.into_iter().map(str::to_owned)).collect()
    }
}

/// Runs loads, one at a time.
pub(crate) struct Loader {
    /// The binary whose `bench` loads the nodes.
    pub(crate) brink: PathBuf,
    pub(crate) interrupt: Interrupt,
}

impl Loader {
    /// Runs a load to its end. `cpu_seconds` returns the CPU time that the nodes have used so far.
    pub(crate) fn measure(&self, load: &Load<'_>, cpu_seconds: impl Fn() -> f64) -> anyhow::Result<Figures> {
        let (began, cpu_before) = (Instant::now(), cpu_seconds());
        let report = self.run(load)?;
        if let Some(errors) = report.get("errors_by_kind").filter(|errors| **errors != json!({})) {
            eprintln!("--- failed requests: {errors}");
        }
        let server_cores = (cpu_seconds() - cpu_before) / began.elapsed().as_secs_f64();
        Figures::of(&report, server_cores).context("the loader reports no figures")
    }

    /// Runs a load to its end, and returns the loader's report.
    pub(crate) fn run(&self, load: &Load<'_>) -> anyhow::Result<Value> {
        let mut command = Command::new(&self.brink);
        command.args(load.args()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut loader = command.spawn().context("the loader cannot be started")?;
        let deadline = Instant::now() + Duration::from_secs(load.seconds) + RUN_MARGIN;
        // The report is shorter than a pipe's buffer, so it can be read at the end.
        let status = loop {
            if let Some(status) = loader.try_wait()? {
                break status;
            }
            if self.interrupt.is_set() || Instant::now() > deadline {
                loader.kill()?;
                loader.wait()?;
                self.interrupt.check()?;
                bail!("the loader does not end");
            }
            std::thread::sleep(POLL);
        };
        self.interrupt.check()?;
        ensure!(status.success(), "the loader failed: {status}");
        let report = loader.stdout.take().context("the loader's report")?;
        serde_json::from_reader(report).context("the loader's report is not JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_those_of_the_requests() {
        let requests = Requests::Reads { consistency: "strong" };
        let load = Load {
            api: "brink",
            urls: "http://a,http://b",
            requests,
            clients: 16,
            seconds: 3,
            keys: 10,
            value_bytes: 5,
            rate: Some(70),
        };
        let args = load.args().join(" ");
        assert!(args.starts_with("bench --output json --api brink --url http://a,http://b --value-bytes 5 --keys 10 "));
        assert!(
            args.ends_with(
                "--clients 16 --warmup 1s --duration 3s --rate 70 --reads 1 --prepared --consistency strong"
            )
        );
        let writes =
            Load { requests: Requests::Writes { wait_replicas: Some("1") }, rate: None, ..load }.args().join(" ");
        assert!(writes.ends_with("--duration 3s --wait-replicas 1"), "{writes}");
    }
}
