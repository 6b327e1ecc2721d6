//! Formation of a cluster from `REPLICA_NODES`, and its health.

use std::time::Duration;

use brink_tests::{Client, Cluster, Options, eventually};
use serde_json::json;

/// Time for nodes to reach a state that they reach by themselves.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_write_on_one_node_is_read_on_the_others_at_once() {
    let cluster = Cluster::start(3).await;
    for round in 0..20 {
        for (writer, reader) in [(0, 1), (1, 2), (2, 0)] {
            let key = format!("k/{round}/{writer}");
            let written = cluster.client(writer).write(&key, &json!({"round": round, "é": 1.5})).await.expect(201);
            // A node that cannot ask the leader answers with its own state, and says so.
            let read = eventually(LIMIT, "a read is linearizable", || async {
                let read = cluster.client(reader).get(&format!("/kv/{key}/")).await;
                (read.header("brink-consistency") == Some("linearizable")).then_some(read)
            })
            .await
            .expect(200);
            assert_eq!(read.json, written.json);
            assert_eq!(read.header("etag"), written.header("etag"));
        }
    }
}

#[tokio::test]
async fn health_has_the_documented_field_names() {
    let cluster = Cluster::start(3).await;
    let healthy = eventually(LIMIT, "all nodes reach each other, and the first is healthy", || async {
        let health = cluster.client(0).get("/health/").await.expect(200).json;
        (health["cluster"]["healthy_nodes"] == 3 && health["status"] == "healthy").then_some(health)
    })
    .await;
    let names = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let cluster_names = [
        "replication_enabled",
        "total_nodes",
        "healthy_nodes",
        "required_for_quorum",
        "has_quorum",
        "can_accept_writes",
        "leader",
        "nodes",
    ];
    assert_eq!(names(&healthy["cluster"]), cluster_names);
    assert_eq!(names(&healthy["cluster"]["nodes"][0]), ["url", "healthy", "role", "lag_entries", "rtt_ms"]);
    assert_eq!(healthy["cluster"]["replication_enabled"], true);
    assert_eq!(healthy["cluster"]["required_for_quorum"], 2);
    assert_eq!(healthy["cluster"]["nodes"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn all_nodes_of_a_cluster_show_the_same_cluster_id() {
    let clusters = [Cluster::start(3).await, Cluster::start(1).await];
    let mut ids = Vec::new();
    for cluster in &clusters {
        for node in &cluster.nodes {
            let id = node.client.get("/cluster/members/").await.expect(200).json["cluster"].clone();
            assert_eq!(id.as_str().unwrap().len(), 16, "{id}");
            ids.push(id);
        }
    }
    assert!(ids[0] == ids[1] && ids[1] == ids[2] && ids[2] != ids[3], "{ids:?}");
}

#[tokio::test]
async fn a_single_node_needs_no_other_nodes() {
    let cluster = Cluster::start(1).await;
    cluster.client(0).write("a", &json!(1)).await.expect(201);
    let health = cluster.client(0).get("/health/").await.expect(200).json;
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["cluster"]["replication_enabled"], false);
    assert_eq!(health["cluster"]["total_nodes"], 1);
}

#[tokio::test]
async fn a_node_without_a_majority_is_not_ready_and_refuses_writes() {
    let mut cluster = Cluster::prepare(3, Options::default());
    cluster.nodes[0].start();
    let first = cluster.client(0).clone();
    cluster.nodes[0].answers().await;
    assert_eq!(first.get("/readyz").await.status, 503);
    assert_refused_without_quorum(&first).await;
    let read = first.get("/kv/a/").await.expect(404);
    assert_eq!(read.header("brink-consistency"), Some("local"));

    cluster.nodes[2].start();
    cluster.ready().await;
    first.write("a", &json!(1)).await.expect(201);
    assert_eq!(cluster.client(2).settled("/kv/a/?consistency=strong").await.expect(200).json["value"], 1);

    cluster.nodes[1].start();
    cluster.ready().await;
    assert_eq!(cluster.client(1).settled("/kv/a/?consistency=strong").await.expect(200).json["value"], 1);
}

async fn assert_refused_without_quorum(client: &Client) {
    let refused = client.put("a", &json!(0)).await.expect(500);
    assert_eq!(refused.json["type"], "urn:brink:problem:replication-failed");
    assert_eq!(refused.json["detail"], "Failed to replicate to quorum of nodes. Successful: 1 nodes");
    assert_eq!(refused.json["outcome"], "not_written");
}

#[tokio::test]
async fn a_node_stops_cleanly_when_asked() {
    let mut cluster = Cluster::start(3).await;
    cluster.client(0).write("a", &json!(1)).await.expect(201);
    for node in &mut cluster.nodes {
        assert!(node.stop(), "{}", node.log());
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.ready().await;
    assert_eq!(cluster.client(1).settled("/kv/a/?consistency=strong").await.expect(200).json["value"], 1);
}
