//! One node's wrong clock: it decides neither the times of entries nor how long names are remembered, and is reported.

use std::time::Duration;

use brink_tests::{Cluster, FakeClock, Options, brink, eventually, right_time};
use serde_json::json;

/// Three nodes, of which the last has a wrong wall clock.
async fn cluster(clock: &FakeClock, wrong: &str) -> Cluster {
    let mut cluster = Cluster::prepare(3, Options::default());
    clock.set(wrong);
    cluster.nodes[2].wrap(clock.wrapper());
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.ready().await;
    // Before it has heard the others' clocks, a node has nothing but its own.
    eventually(Duration::from_secs(10), "writes have the cluster's time", || async {
        let put = cluster.client(2).put("ready", &json!(0)).await.json;
        let updated_at = put["updated_at"].as_str()?;
        (*right_time("-1 hour") < *updated_at && *updated_at < *right_time("+1 hour")).then_some(())
    })
    .await;
    cluster
}

#[tokio::test]
async fn a_wrong_clock_of_one_node_moves_no_time_and_forgets_no_name() {
    for (wrong, first, again) in [("@2020-01-01 00:00:10", 2, 0), ("+25h", 0, 2)] {
        let clock = FakeClock::new();
        let cluster = cluster(&clock, wrong).await;
        for leader in [2, 1] {
            let url = &cluster.nodes[leader].url;
            cluster.client(0).put_json("/cluster/leader/", &json!({ "url": url })).await.expect(200);
            let (name, key) = (format!("order-{leader}"), format!("/kv/order-{leader}/"));
            let headers = [("content-type", "application/json"), ("idempotency-key", name.as_str())];
            let body = r#"{"value":"first"}"#;
            let written = cluster.client(first).send("PUT", &key, &headers, body).await.expect(201).json;
            let updated_at = written["updated_at"].as_str().unwrap();
            assert!(
                *right_time("-5 seconds") < *updated_at && *updated_at < *right_time("+5 seconds"),
                "{wrong}: {written}"
            );
            cluster.client(1).put(&name, &json!("of somebody else")).await.expect(200);
            let repeated = cluster.client(again).send("PUT", &key, &headers, body).await.expect(201);
            assert_eq!(repeated.header("brink-repeated"), Some("true"), "{wrong}");
            let value = cluster.client(0).get(&key).await.json["value"].clone();
            assert_eq!(value, "of somebody else", "{wrong}");
        }
    }
}

#[tokio::test]
async fn a_wrong_clock_shows_in_log_health_metrics_and_on_the_command_line() {
    let clock = FakeClock::new();
    let cluster = cluster(&clock, "+25h").await;
    let far = |value: &serde_json::Value| value.as_i64().is_some_and(|ms| (ms - 25 * 3_600_000).abs() < 60_000);
    let own = eventually(Duration::from_secs(5), "the node has heard the others' clocks", || async {
        let health = cluster.client(2).get("/health/").await.expect(200).json;
        health["clock"].is_object().then_some(health)
    })
    .await;
    assert!(far(&own["clock"]["offset_ms"]) && own["clock"]["bound_ms"] == 1_000, "{own}");
    assert_eq!((&own["status"], &own["cluster"]["can_accept_writes"]), (&json!("degraded"), &json!(true)));
    let other = cluster.client(0).get("/health/").await.json;
    assert_eq!((&other["status"], other.get("clock")), (&json!("healthy"), None), "{other}");
    for node in other["cluster"]["nodes"].as_array().unwrap() {
        assert_eq!(far(&node["clock_offset_ms"]), node["url"] == cluster.nodes[2].url, "{other}");
    }

    eventually(Duration::from_secs(5), "the log and the metrics show it", || async {
        let metrics = String::from_utf8(cluster.client(2).get("/metrics").await.body).unwrap();
        let offset = metrics.lines().find(|line| line.starts_with("brink_clock_offset_seconds"))?;
        let is_far = offset.split(' ').next_back()?.parse::<f64>().is_ok_and(|s| (s - 90_000.0).abs() < 60.0);
        (is_far && cluster.nodes[2].log().contains("clock is far from the other nodes' clocks")).then_some(())
    })
    .await;
    for node in [0, 2] {
        let status = brink(&cluster.nodes[node].url, &["cluster", "status"]).expect(0).out;
        let line = format!("the clock of {} is ", cluster.nodes[2].url);
        assert!(status.contains(&line) && status.contains(" s ahead of the other nodes' clocks"), "{status}");
    }
}
