//! One run of clients and faults on a fresh cluster, and the check of its history.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::{Value, json};

use crate::artifacts::build_dir;
use crate::client::Client;
use crate::fake_clock::right_time;
use crate::history::{self, Call};
use crate::invariants::{self, Violation};
use crate::load::entries;
use crate::nemesis::{self, Fault, Testbed};
use crate::wait::eventually;
use crate::workload::{Clients, Traffic};

/// Time from the end of the last fault until all nodes must acknowledge writes.
const WRITABLE_LIMIT: Duration = Duration::from_secs(2);

/// Time to wait for this before the measurement is given up.
const WRITABLE_TIMEOUT: Duration = Duration::from_secs(20);

/// What a node logs if its log has lost what it had made durable. Disks that lose only unsynced data are no reason for it.
const LOST: &str = "has lost what it had made durable";

/// Largest distance of a new entry's time from the right one during the call: the bound of decision 25.
const TIME_BOUND: &str = "1 second";

/// The parameters of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Number of nodes.
    pub nodes: usize,
    /// Seed of the faults and the calls.
    pub seed: u64,
    /// Time during which faults are injected.
    pub length: Duration,
    /// Log entries between snapshots.
    pub snapshot_entries: u64,
}

/// The results of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// Number of calls by outcome.
    pub tally: BTreeMap<&'static str, usize>,
    /// Number of faults by kind.
    pub faults: BTreeMap<&'static str, usize>,
    /// Recovery times after the last fault of each disruption: until the first node, and until all nodes whose process had
    /// not ended, acknowledged a write.
    pub recoveries: Vec<(Duration, Duration)>,
    /// Failover times by the kind of fault that cost a majority its leader: until the first of the other nodes, and until all
    /// of them, acknowledged a write.
    pub failovers: BTreeMap<&'static str, Vec<(Duration, Duration)>>,
    /// The violations.
    pub violations: Vec<String>,
}

/// Runs a plan, and prints its faults and recovery times.
pub async fn run(plan: &Plan) -> Report {
    println!("{} nodes, seed {}, {:?}, snapshots every {}", plan.nodes, plan.seed, plan.length, plan.snapshot_entries);
    let mut rng = Rng::with_seed(plan.seed);
    let args = vec!["--snapshot-entries".to_owned(), plan.snapshot_entries.to_string()];
    let mut testbed = Testbed::start(plan.nodes, args).await;
    let clients = Clients::start(&testbed.workload, Traffic::default(), rng.u64(..));
    let mut report = Report::default();
    let began = Instant::now();
    while began.elapsed() < plan.length && report.violations.is_empty() {
        pause(&mut rng, 300..1_500).await;
        print!("{:6.1} s ", began.elapsed().as_secs_f64());
        disrupt(&mut testbed, &mut rng, &mut report).await;
    }
    clients.stop().await;
    verify(&testbed, plan, &mut report).await;
    report
}

/// Injects one fault or two overlapping ones, reverts them and waits for recovery.
async fn disrupt(testbed: &mut Testbed, rng: &mut Rng, report: &mut Report) {
    let size = testbed.cluster.nodes.len();
    let leader = testbed.leader().await;
    print!("leader {leader}: ");
    let first = nemesis::draw(rng, size, leader, None);
    let injected = Instant::now();
    begin(testbed, &first, report).await;
    let lost = first.affected();
    if lost.contains(&leader) && lost.len() <= size / 2 && !matches!(first, Fault::Restart(_) | Fault::Move(_)) {
        let others: Vec<usize> = (0..size).filter(|node| !lost.contains(node)).collect();
        let (first_write, last) = testbed.first_and_last_write(&others, injected, WRITABLE_TIMEOUT).await;
        report.failovers.entry(first.name()).or_default().push((first_write, last));
        print!("(new leader: first write after {first_write:.1?}, on all others {last:.1?}) ");
    }
    pause(rng, 200..3_500).await;
    let mut faults = vec![first];
    if rng.u8(..4) == 0 && lost.len() < size {
        faults.push(nemesis::draw(rng, size, leader, Some(&faults[0])));
        begin(testbed, &faults[1], report).await;
        pause(rng, 200..2_000).await;
        rng.shuffle(&mut faults);
    }
    for fault in &faults {
        testbed.revert(fault).await;
    }
    recover(testbed, &faults, report).await;
}

async fn begin(testbed: &mut Testbed, fault: &Fault, report: &mut Report) {
    print!("{fault:?} ");
    *report.faults.entry(fault.name()).or_insert(0) += 1;
    testbed.inject(fault).await;
}

/// Measures the time until the nodes acknowledge writes again.
async fn recover(testbed: &Testbed, faults: &[Fault], report: &mut Report) {
    let healed = Instant::now();
    let ended: BTreeSet<usize> = faults.iter().flat_map(Fault::ended).collect();
    let size = testbed.cluster.nodes.len();
    let kept: Vec<usize> = (0..size).filter(|node| ended.len() == size || !ended.contains(node)).collect();
    let (first, last) = testbed.first_and_last_write(&kept, healed, WRITABLE_TIMEOUT).await;
    println!("→ first write after {first:.1?}, on all nodes after {last:.1?}");
    report.recoveries.push((first, last));
    if last > WRITABLE_LIMIT {
        report.violations.push(format!("after {faults:?}, a node acknowledged no write for {last:?}"));
        return;
    }
    testbed.settle().await;
}

/// Checks the state of the cluster and the whole history.
async fn verify(testbed: &Testbed, plan: &Plan, report: &mut Report) {
    // A cluster that has not recovered might not answer, and what is known of it is to be saved.
    if report.violations.is_empty() {
        verify_state(testbed, report).await;
    }
    for (number, node) in testbed.cluster.nodes.iter().enumerate() {
        if node.log().contains(LOST) {
            report.violations.push(format!("node {number} has lost data on an honest disk"));
        }
    }
    let calls = testbed.workload.history.calls();
    report.tally = history::tally(&calls);
    let began = Instant::now();
    let (violations, calls) = check(calls).await;
    println!("{} calls, checked in {:.1?}", calls.len(), began.elapsed());
    report.violations.extend(violations.iter().map(ToString::to_string));
    if !report.violations.is_empty() {
        let dir = save(&violations, &calls, testbed, plan);
        report.violations.push(format!("the history and the nodes' logs are in {}", dir.display()));
    }
}

/// Reads all objects once more from every node, and checks that all nodes reach the same state, and have their addresses in it.
async fn verify_state(testbed: &Testbed, report: &mut Report) {
    for node in 0..testbed.cluster.nodes.len() {
        testbed.workload.read_everything(node).await;
    }
    let first = entries(testbed.cluster.client(0), "", "strong").await;
    for node in &testbed.cluster.nodes {
        eventually(WRITABLE_TIMEOUT, "all nodes reach the same state", || async {
            (entries(&node.client, "", "local").await == first).then_some(())
        })
        .await;
    }
    let urls: BTreeSet<String> = testbed.cluster.nodes.iter().map(|node| format!("{:?}", node.url)).collect();
    eventually(WRITABLE_TIMEOUT, "the members have the addresses of the nodes", || async {
        let members = testbed.cluster.member_ids(0).await.into_iter();
        (members.map(|(url, _)| url).collect::<BTreeSet<_>>() == urls).then_some(())
    })
    .await;
    verify_times(testbed.cluster.client(0), report).await;
}

/// Checks that the cluster's time has never gone back, and that wrong clocks have not moved it.
async fn verify_times(client: &Client, report: &mut Report) {
    let mut page = client.settled("/kv/?limit=10000&consistency=strong").await.expect(200).json;
    let entries = page["results"].as_array_mut().unwrap();
    entries.sort_by_key(|entry| entry["revision"].as_u64());
    let updated_at = |entry: &Value| entry["updated_at"].as_str().unwrap().to_owned();
    for pair in entries.windows(2).filter(|pair| updated_at(&pair[0]) > updated_at(&pair[1])) {
        report.violations.push(format!("time has gone back: {} after {}", pair[1], pair[0]));
    }
    let earliest = right_time(&format!("-{TIME_BOUND}"));
    let newest = client.write("time", &json!(1)).await.json;
    let (newest, latest) = (updated_at(&newest), right_time(TIME_BOUND));
    if newest < earliest || newest > latest {
        report.violations.push(format!("the cluster's time is {newest}, and not from {earliest} to {latest}"));
    }
}

/// Checks a history on a blocking thread.
pub async fn check(calls: Vec<Arc<Call>>) -> (Vec<Violation>, Vec<Arc<Call>>) {
    tokio::task::spawn_blocking(move || (invariants::check(&calls), calls)).await.unwrap()
}

/// Saves the history, its drawings and the nodes' logs.
fn save(violations: &[Violation], calls: &[Arc<Call>], testbed: &Testbed, plan: &Plan) -> PathBuf {
    let dir = build_dir().parent().map_or_else(|| Path::new("target").to_path_buf(), Path::to_path_buf);
    let dir = dir.join("faults").join(plan.seed.to_string());
    std::fs::create_dir_all(&dir).unwrap();
    history::save(calls, &dir.join("history.jsonl"));
    invariants::draw_all(violations, calls, &dir);
    for (number, node) in testbed.cluster.nodes.iter().enumerate() {
        std::fs::write(dir.join(format!("node{number}.txt")), node.log()).unwrap();
    }
    dir
}

async fn pause(rng: &mut Rng, milliseconds: std::ops::Range<u64>) {
    tokio::time::sleep(Duration::from_millis(rng.u64(milliseconds))).await;
}

impl Report {
    /// Adds the results of another run.
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
        println!("recovery after the last fault: {}", spread(&self.recoveries));
        for (name, times) in &self.failovers {
            println!("failover after {name}: {}", spread(times));
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
            (Some(median), Some(last)) => format!("median {median:.1?}, max {last:.1?}"),
            _ => "never".to_owned(),
        }
    };
    let (first, last) = times.iter().copied().unzip();
    format!("first write: {}; all nodes: {}; {} measurements", of(first), of(last), times.len())
}
