//! One node's wrong clock: it decides neither the times of entries nor how long names are remembered, and is reported.

use std::time::Duration;

use brink_tests::{Cluster, FakeClock, Options, brink, eventually, right_time};
use serde_json::json;

/// Time for a node to hear the others' clocks, and to show its own.
const LIMIT: Duration = Duration::from_secs(60);

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
    eventually(LIMIT, "writes have the cluster's time", || async {
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
            cluster.client(0).make_leader(url).await.expect(200);
            let (name, key) = (format!("order-{leader}"), format!("/kv/order-{leader}/"));
            let headers = [("content-type", "application/json"), ("idempotency-key", name.as_str())];
            let body = r#"{"value":"first"}"#;
            let earliest = right_time("-5 seconds");
            let written = cluster.client(first).send_settled("PUT", &key, &headers, body).await.expect(201).json;
            let updated_at = written["updated_at"].as_str().unwrap();
            assert!(*earliest < *updated_at && *updated_at < *right_time("+5 seconds"), "{wrong}: {written}");
            cluster.client(1).write(&name, &json!("of somebody else")).await.expect(200);
            let repeated = cluster.client(again).send_settled("PUT", &key, &headers, body).await.expect(201);
            assert_eq!(repeated.header("brink-repeated"), Some("true"), "{wrong}");
            let value = cluster.client(0).settled(&format!("{key}?consistency=strong")).await.json["value"].clone();
            assert_eq!(value, "of somebody else", "{wrong}");
        }
    }
}

#[tokio::test]
async fn a_wrong_clock_shows_in_log_health_metrics_and_on_the_command_line() {
    let clock = FakeClock::new();
    let cluster = cluster(&clock, "+25h").await;
    let far = |value: &serde_json::Value| value.as_i64().is_some_and(|ms| (ms - 25 * 3_600_000).abs() < 60_000);
    // A node that has not answered just now has no clock, and the cluster is not whole without it.
    let own = eventually(LIMIT, "the node has heard the others' clocks, and takes part", || async {
        let health = cluster.client(2).get("/health/").await.expect(200).json;
        let stands = (&health["status"], &health["cluster"]["can_accept_writes"]);
        (health["clock"].is_object() && stands == (&json!("degraded"), &json!(true))).then_some(health)
    })
    .await;
    assert!(far(&own["clock"]["offset_ms"]) && own["clock"]["bound_ms"] == 1_000, "{own}");
    eventually(LIMIT, "another node is healthy, and says whose clock is far", || async {
        let other = cluster.client(0).get("/health/").await.json;
        let mut nodes = other["cluster"]["nodes"].as_array()?.iter();
        let all_right = nodes.all(|node| far(&node["clock_offset_ms"]) == (node["url"] == cluster.nodes[2].url));
        assert_eq!(other.get("clock"), None, "{other}");
        (other["status"] == "healthy" && all_right).then_some(())
    })
    .await;

    eventually(LIMIT, "the log and the metrics show it", || async {
        let metrics = String::from_utf8(cluster.client(2).get("/metrics").await.body).unwrap();
        let offset = metrics.lines().find(|line| line.starts_with("brink_clock_offset_seconds"))?;
        let is_far = offset.split(' ').next_back()?.parse::<f64>().is_ok_and(|s| (s - 90_000.0).abs() < 60.0);
        (is_far && cluster.nodes[2].log().contains("clock is far from the other nodes' clocks")).then_some(())
    })
    .await;
    for node in [0, 2] {
        eventually(LIMIT, "the command says whose clock is far", || async {
            let status = brink(&cluster.nodes[node].url, &["cluster", "status"]).expect(0).out;
            let line = format!("the clock of {} is ", cluster.nodes[2].url);
            (status.contains(&line) && status.contains(" s ahead of the other nodes' clocks")).then_some(())
        })
        .await;
    }
}
