//! `brink bench` drives a running cluster and reports rates and latencies.

use brink_tests::{Cluster, brink};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn reads_and_writes_are_reported() {
    let cluster = Cluster::start(3).await;
    let urls: Vec<_> = cluster.nodes.iter().map(|node| node.url.as_str()).collect();
    let args = ["bench", "-c", "8", "-d", "2s", "--warmup", "200ms", "--reads", "0.5", "--keys", "500", "-o", "json"];
    let report: Value = serde_json::from_str(&brink(&urls.join(","), &args).expect(0).out).unwrap();
    assert_eq!(report["errors"], 0, "{report}");
    for kind in ["writes", "reads"] {
        let figures = &report[kind];
        assert!(figures["count"].as_u64().unwrap() > 100, "{report}");
        let quantiles = ["p50_ms", "p99_ms", "p99_9_ms"].map(|name| figures[name].as_f64().unwrap());
        assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{report}");
    }
    let found = cluster.client(0).get("/kv/?prefix=bench/&limit=1000&keys_only=true").await.expect(200);
    assert_eq!(found.json["count"], 500);
    let value = &cluster.client(0).get("/kv/bench/0/").await.expect(200).json["value"];
    assert_eq!(value.as_str().unwrap().len(), 256);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_kept_and_errors_are_counted() {
    let mut cluster = Cluster::start(1).await;
    let url = cluster.nodes[0].url.clone();
    let args = ["bench", "-c", "4", "-d", "2s", "--warmup", "0s", "--rate", "100", "-o", "json"];
    let report: Value = serde_json::from_str(&brink(&url, &args).expect(0).out).unwrap();
    let rate = report["writes"]["per_second"].as_f64().unwrap();
    assert!((80.0..=105.0).contains(&rate), "{report}");
    let due = report["writes"]["count"].as_u64().unwrap() + report["unsent"].as_u64().unwrap();
    assert!((195..=205).contains(&due), "{report}");

    let running = std::thread::spawn(move || brink(&url, &args));
    tokio::time::sleep(std::time::Duration::from_millis(800)).await;
    cluster.nodes[0].kill();
    let report: Value = serde_json::from_str(&running.join().unwrap().expect(0).out).unwrap();
    assert!(report["errors"].as_u64().unwrap() > 0, "{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_loaded_and_what_is_lost_with_one_counts() {
    let mut cluster = Cluster::start(1).await;
    let url = cluster.nodes[0].url.clone();
    let args = ["bench", "-c", "2", "-d", "2s", "--warmup", "0s", "--stream", "64", "--prefix", "b\"/", "-o", "json"];
    let report: Value = serde_json::from_str(&brink(&url, &args).expect(0).out).unwrap();
    assert_eq!(report["errors"], 0, "{report}");
    assert!(report["writes"]["count"].as_u64().unwrap() > 100, "{report}");

    let running = std::thread::spawn(move || brink(&url, &args));
    tokio::time::sleep(std::time::Duration::from_millis(800)).await;
    cluster.nodes[0].kill();
    let report: Value = serde_json::from_str(&running.join().unwrap().expect(0).out).unwrap();
    assert!(report["errors"].as_u64().unwrap() >= 64, "{report}");
}
