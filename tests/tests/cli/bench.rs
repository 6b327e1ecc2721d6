//! `brink bench` drives a running cluster and reports rates and latencies.

use std::thread::JoinHandle;
use std::time::Duration;

use brink_tests::{Cluster, Run, Watch, brink, eventually};
use serde_json::Value;

/// Runs on a machine that is fit for figures: others keep it busy at times.
const RUNS: usize = 3;

/// Time for a run to begin. Only a guard.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the load until its report is as it must be.
fn run_until(url: &str, args: &[&str], is_right: impl Fn(&Value) -> bool) -> Value {
    let mut reports = Vec::new();
    for _ in 0..RUNS {
        let machine = Watch::start();
        let report: Value = serde_json::from_str(&brink(url, args).expect(0).out).unwrap();
        if is_right(&report) {
            return report;
        }
        reports.push(report);
        assert!(machine.has_stood_still(), "{args:?}: {reports:?}");
    }
    panic!("{args:?}: {reports:?}");
}

/// Starts a load on the first node that lasts for longer than `args` say. Returns once it writes.
async fn run_longer<const N: usize>(cluster: &Cluster, mut args: [&'static str; N]) -> JoinHandle<Run> {
    let duration = args.iter().position(|arg| *arg == "-d").unwrap() + 1;
    args[duration] = "10s";
    let client = cluster.client(0);
    let revision = async || {
        let page = client.settled("/kv/?limit=1&consistency=local").await.expect(200);
        page.header("brink-revision").unwrap().parse::<u64>().unwrap()
    };
    let before = revision().await;
    let url = cluster.nodes[0].url.clone();
    let running = std::thread::spawn(move || brink(&url, &args));
    eventually(LIMIT, "the load writes", async || (revision().await > before + 100).then_some(())).await;
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_writes_are_reported() {
    let cluster = Cluster::start(3).await;
    let urls: Vec<_> = cluster.nodes.iter().map(|node| node.url.as_str()).collect();
    let args = ["bench", "-c", "8", "-d", "10s", "--warmup", "200ms", "--reads", "0.5", "--keys", "500", "-o", "json"];
    let count = |report: &Value, kind: &str| report[kind]["count"].as_u64().unwrap();
    let report = run_until(&urls.join(","), &args, |report| {
        report["errors"] == 0 && count(report, "writes") > 100 && count(report, "reads") > 100
    });
    for kind in ["writes", "reads"] {
        let figures = &report[kind];
        let quantiles = ["p50_ms", "p99_ms", "p99_9_ms"].map(|name| figures[name].as_f64().unwrap());
        assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{report}");
    }
    let found =
        cluster.client(0).settled("/kv/?prefix=bench/&limit=1000&keys_only=true&consistency=strong").await.expect(200);
    assert_eq!(found.json["count"], 500);
    let value = &cluster.client(0).settled("/kv/bench/0/?consistency=strong").await.expect(200).json["value"];
    assert_eq!(value.as_str().unwrap().len(), 256);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_kept_and_errors_are_counted() {
    let mut cluster = Cluster::start(1).await;
    let url = cluster.nodes[0].url.clone();
    let args = ["bench", "-c", "4", "-d", "2s", "--warmup", "0s", "--rate", "100", "-o", "json"];
    let report =
        run_until(&url, &args, |report| (80.0..=105.0).contains(&report["writes"]["per_second"].as_f64().unwrap()));
    let due = report["writes"]["count"].as_u64().unwrap() + report["unsent"].as_u64().unwrap();
    assert!((195..=205).contains(&due), "{report}");

    let running = run_longer(&cluster, args).await;
    cluster.nodes[0].kill();
    let report: Value = serde_json::from_str(&running.join().unwrap().expect(0).out).unwrap();
    assert!(report["errors"].as_u64().unwrap() > 0, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_loaded_and_what_is_lost_with_one_counts() {
    let mut cluster = Cluster::start(1).await;
    let url = cluster.nodes[0].url.clone();
    let args = ["bench", "-c", "2", "-d", "2s", "--warmup", "0s", "--stream", "64", "--prefix", "b\"/", "-o", "json"];
    run_until(&url, &args, |report| report["errors"] == 0 && report["writes"]["count"].as_u64().unwrap() > 100);

    let running = run_longer(&cluster, args).await;
    cluster.nodes[0].kill();
    let report: Value = serde_json::from_str(&running.join().unwrap().expect(0).out).unwrap();
    assert!(report["errors"].as_u64().unwrap() >= 64, "{report}");
}
