//! One run of clients and faults on a fresh cluster, and the verdict on its history.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::history::{self, Call};
use crate::hosts::Hosts;
use crate::invariants::{self, Violation};
use crate::nemesis::{self, Fault, Field};
use crate::workload::{Clients, Desk, Pace};
use crate::{Cluster, Options, build_dir, entries, eventually};

/// Within which a cluster takes writes again once its last fault is over.
const WRITABLE_LIMIT: Duration = Duration::from_secs(2);

/// How long it is waited for that before the run is given up.
const WRITABLE_PATIENCE: Duration = Duration::from_secs(20);

/// What one run is.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many nodes.
    pub nodes: usize,
    /// Whence faults and calls are drawn.
    pub seed: u64,
    /// How long faults go on.
    pub length: Duration,
    /// Log entries between snapshots.
    pub snapshot_entries: u64,
}

/// What became of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// Calls, by what came of them.
    pub tally: BTreeMap<&'static str, usize>,
    /// Faults, by their kind.
    pub faults: BTreeMap<&'static str, usize>,
    /// After each fault that was the last for a while: until the first node took a write, and until all that had not
    /// been ended did.
    pub recoveries: Vec<(Duration, Duration)>,
    /// After each loss of a leader that left a majority, by the kind of fault: until the first of the other nodes took a
    /// write, and until all did.
    pub failovers: BTreeMap<&'static str, Vec<(Duration, Duration)>>,
    /// What is wrong.
    pub violations: Vec<String>,
}

/// Runs a plan. Prints what happens.
pub async fn run(plan: &Plan) -> Report {
    println!("{} nodes, seed {}, {:?}, snapshots every {}", plan.nodes, plan.seed, plan.length, plan.snapshot_entries);
    let mut rng = Rng::with_seed(plan.seed);
    let hosts = Hosts::new(plan.nodes);
    let args = vec!["--snapshot-entries".to_owned(), plan.snapshot_entries.to_string()];
    let mut cluster = Cluster::prepare_at(hosts.places(), Options { args, ..Options::default() });
    cluster.nodes.iter_mut().for_each(crate::Node::start);
    cluster.ready().await;
    let desk = Desk::new(&cluster);
    let mut field = Field { cluster, hosts, desk };

    let clients = Clients::start(&field.desk, Pace::default(), rng.u64(..));
    let mut report = Report::default();
    let began = Instant::now();
    while began.elapsed() < plan.length {
        pause(&mut rng, 300..1_500).await;
        print!("{:6.1} s ", began.elapsed().as_secs_f64());
        trouble(&mut field, &mut rng, &mut report).await;
    }
    clients.stop().await;
    verify(&field, plan, &mut report).await;
    report
}

/// One fault, or two at once, until the cluster is whole again.
async fn trouble(field: &mut Field, rng: &mut Rng, report: &mut Report) {
    let size = field.cluster.nodes.len();
    let leader = field.leader().await;
    print!("leader {leader}: ");
    let first = nemesis::draw(rng, size, leader, &BTreeSet::new());
    let inflicted = Instant::now();
    begin(field, &first, report).await;
    let lost = first.affected();
    if lost.contains(&leader) && lost.len() <= size / 2 && !matches!(first, Fault::Restart(_)) {
        let others: Vec<usize> = (0..size).filter(|node| !lost.contains(node)).collect();
        let (first_write, last) = field.first_and_last_write(&others, inflicted, WRITABLE_PATIENCE).await;
        report.failovers.entry(first.name()).or_default().push((first_write, last));
        print!("(succeeded after {first_write:.1?}, on all others {last:.1?}) ");
    }
    pause(rng, 200..3_500).await;
    let mut faults = vec![first];
    let spared: BTreeSet<usize> = faults[0].affected().into_iter().collect();
    if rng.u8(..4) == 0 && spared.len() < size {
        faults.push(nemesis::draw(rng, size, leader, &spared));
        begin(field, &faults[1], report).await;
        pause(rng, 200..2_000).await;
        rng.shuffle(&mut faults);
    }
    for fault in &faults {
        field.relieve(fault).await;
    }
    recover(field, &faults, report).await;
}

async fn begin(field: &mut Field, fault: &Fault, report: &mut Report) {
    print!("{fault:?} ");
    *report.faults.entry(fault.name()).or_insert(0) += 1;
    field.inflict(fault).await;
}

/// Measures how long the cluster takes until it takes writes again.
async fn recover(field: &Field, faults: &[Fault], report: &mut Report) {
    let healed = Instant::now();
    let ended: BTreeSet<usize> = faults.iter().flat_map(Fault::ended).collect();
    let size = field.cluster.nodes.len();
    let kept: Vec<usize> = (0..size).filter(|node| ended.len() == size || !ended.contains(node)).collect();
    let (first, last) = field.first_and_last_write(&kept, healed, WRITABLE_PATIENCE).await;
    println!("→ writable after {first:.1?}, on all after {last:.1?}");
    report.recoveries.push((first, last));
    if last > WRITABLE_LIMIT {
        report.violations.push(format!("after {faults:?} a node took no write for {last:?}"));
    }
    field.settle().await;
}

/// Reads everything once more, and checks the whole history.
async fn verify(field: &Field, plan: &Plan, report: &mut Report) {
    for node in 0..field.cluster.nodes.len() {
        field.desk.read_everything(node).await;
    }
    let first = entries(field.cluster.client(0), "", "strong").await;
    for node in &field.cluster.nodes {
        eventually(WRITABLE_PATIENCE, "all nodes come to the same state", || async {
            (entries(&node.client, "", "local").await == first).then_some(())
        })
        .await;
    }
    let calls = field.desk.history.calls();
    report.tally = history::tally(&calls);
    let began = Instant::now();
    let (violations, calls) = check(calls).await;
    println!("{} calls, checked in {:.1?}", calls.len(), began.elapsed());
    if !violations.is_empty() {
        let dir = keep(&violations, &calls, field, plan);
        report.violations.push(format!("the whole history and the nodes' logs are in {}", dir.display()));
    }
    report.violations.extend(violations.iter().map(ToString::to_string));
}

/// Checks a history, away from the async threads.
pub async fn check(calls: Vec<Arc<Call>>) -> (Vec<Violation>, Vec<Arc<Call>>) {
    tokio::task::spawn_blocking(move || (invariants::check(&calls), calls)).await.unwrap()
}

/// Keeps what is needed to understand a violation.
fn keep(violations: &[Violation], calls: &[Arc<Call>], field: &Field, plan: &Plan) -> PathBuf {
    let dir = build_dir().parent().map_or_else(|| Path::new("target").to_path_buf(), Path::to_path_buf);
    let dir = dir.join("faults").join(plan.seed.to_string());
    std::fs::create_dir_all(&dir).unwrap();
    history::save(calls, &dir.join("history.jsonl"));
    invariants::draw_all(violations, calls, &dir);
    for (number, node) in field.cluster.nodes.iter().enumerate() {
        std::fs::write(dir.join(format!("node{number}.txt")), node.log()).unwrap();
    }
    dir
}

async fn pause(rng: &mut Rng, milliseconds: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(rng.u64(milliseconds))).await;
}

impl Report {
    /// Adds another run.
    pub fn add(&mut self, other: Self) {
        for (name, count) in other.tally {
            *self.tally.entry(name).or_insert(0) += count;
        }
        for (name, count) in other.faults {
            *self.faults.entry(name).or_insert(0) += count;
        }
        self.recoveries.extend(other.recoveries);
        for (name, times) in other.failovers {
            self.failovers.entry(name).or_default().extend(times);
        }
        self.violations.extend(other.violations);
    }

    /// Prints the report.
    pub fn print(&self) {
        println!("faults: {:?}", self.faults);
        println!("calls: {:?}", self.tally);
        println!("after the last fault, writable: {}", spread(&self.recoveries));
        for (name, times) in &self.failovers {
            println!("after the leader was lost by {name}, writable: {}", spread(times));
        }
        match self.violations.len() {
            0 => println!("verdict: no violation"),
            count => println!("verdict: {count} VIOLATIONS\n{}", self.violations.join("\n")),
        }
    }
}

fn spread(times: &[(Duration, Duration)]) -> String {
    let of = |mut times: Vec<Duration>| {
        times.sort();
        match (times.get(times.len() / 2), times.last()) {
            (Some(median), Some(last)) => format!("median {median:.1?}, most {last:.1?}"),
            _ => "never".to_owned(),
        }
    };
    let (first, last) = times.iter().copied().unzip();
    format!("{}; on all nodes that were left alone {}; {} times", of(first), of(last), times.len())
}
