//! Reads and writes by the number of dead nodes: the failure table of the README.

use std::time::{Duration, Instant};

use brink_tests::{Answer, Cluster, eventually, undisturbed};
use serde_json::json;

/// Limit of the time for a state that the nodes reach by themselves.
const LIMIT: Duration = Duration::from_secs(60);

/// Limit of the time until a refusal.
const REFUSAL_LIMIT: Duration = Duration::from_secs(3);

#[tokio::test]
async fn three_nodes_survive_the_loss_of_one() {
    check_table(3).await;
}

#[tokio::test]
async fn five_nodes_survive_the_loss_of_two() {
    check_table(5).await;
}

/// Kills one node after the other, and checks writes and reads on the others.
async fn check_table(size: usize) {
    let mut cluster = Cluster::start(size).await;
    cluster.client(0).write("first", &json!("kept")).await.expect(201);
    // Every node has the write, so that local reads find it after any loss.
    for node in &cluster.nodes {
        node.client.settled("/kv/first/?consistency=strong").await.expect(200);
    }
    for dead in 0..size {
        let has_majority = size - dead > size / 2;
        for node in cluster.nodes.iter().filter(|node| node.is_running()) {
            let client = &node.client;
            if has_majority {
                client.write(&format!("k/{dead}"), &json!(dead)).await.expect_written();
                let read = client.settled("/kv/first/?consistency=strong").await.expect(200);
                assert_eq!(read.header("brink-consistency"), Some("linearizable"));
            } else {
                check_refusals(client).await;
            }
            let read = client.get("/kv/first/?consistency=local").await.expect(200);
            assert_eq!(read.json["value"], "kept");
            let health = client.get("/health/").await.expect(200).json;
            assert_eq!(health["cluster"]["total_nodes"], size);
        }
        // The leader is killed first, so that each loss of a leader is covered.
        let next = if has_majority { cluster.leader().await } else { first_running(&cluster) };
        cluster.nodes[next].kill();
    }
}

async fn check_refusals(client: &brink_tests::Client) {
    let put = async || client.put("lost", &json!(1)).await;
    let mut refused = refused_in_time(put).await;
    if refused.json["type"] == "urn:brink:problem:leader-lost" {
        // It was on its way to the leader that was killed, and the answer says so in time.
        assert_eq!((refused.status, &refused.json["outcome"]), (503, &json!("unknown")), "{}", refused.json);
        refused = refused_in_time(put).await;
    }
    let refused = refused.expect(500);
    let detail = refused.json["detail"].as_str().unwrap();
    let counted = detail.strip_prefix("Failed to replicate to quorum of nodes. Successful: ");
    assert!(counted.is_some_and(|rest| rest.ends_with(" nodes")), "{detail}");
    assert!(["not_written", "unknown"].contains(&refused.json["outcome"].as_str().unwrap()));
    assert!(!refused.json["trace_id"].as_str().unwrap().is_empty());

    let read = client.get("/kv/first/").await.expect(200);
    assert_eq!(read.header("brink-consistency"), Some("local"));
    assert!(read.header("brink-staleness-ms").unwrap().parse::<u64>().is_ok());
    let refused = refused_in_time(async || client.get("/kv/first/?consistency=strong").await.expect(503)).await;
    assert_eq!(refused.json["type"], "urn:brink:problem:quorum-unavailable");
    eventually(LIMIT, "the node reports no quorum", || async {
        (client.get("/health/").await.expect(200).json["status"] == "no_quorum").then_some(())
    })
    .await;
}

/// A refusal, which must come in time.
async fn refused_in_time(request: impl AsyncFn() -> Answer) -> Answer {
    let mut refused = None;
    undisturbed(async || {
        let began = Instant::now();
        refused = Some(request().await);
        let took = began.elapsed();
        if took < REFUSAL_LIMIT { Ok(()) } else { Err(format!("refused after {took:?}")) }
    })
    .await;
    refused.unwrap()
}

fn first_running(cluster: &Cluster) -> usize {
    cluster.nodes.iter().position(brink_tests::Node::is_running).unwrap()
}
