//! P4: a write with an `Idempotency-Key` is applied once, however often it is sent, through the death of the leader.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use brink_tests::{Answer, Client, Cluster, eventually};

/// Writers, each of which sends every write to two nodes at once.
const WRITERS: usize = 6;

/// The most writes of one writer: no load runs for ever.
const WRITES_MAX: usize = 5_000;

#[tokio::test]
async fn a_write_with_a_name_is_applied_once_by_whichever_node_it_is_sent_to() {
    let cluster = Cluster::start(3).await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "order-1")];
    let first = cluster.client(0).send("PUT", "/kv/order/", &headers, r#"{"value":1}"#).await.expect(201);
    assert_eq!(first.header("brink-repeated"), None);
    for node in &cluster.nodes {
        let again = node.client.send("PUT", "/kv/order/", &headers, r#"{"value":1}"#).await.expect(201);
        assert_eq!((&again.body, again.header("brink-repeated")), (&first.body, Some("true")));
        let other = node.client.send("PUT", "/kv/order/", &headers, r#"{"value":2}"#).await.expect(422);
        assert_eq!(other.json["type"], "urn:brink:problem:idempotency-key-reused");
        assert_eq!(other.json["outcome"], "not_written");
    }
}

/// The first sender of each write plays one whose answer got lost: the second sends the same to another node. A write
/// that was applied twice has version 2.
#[tokio::test]
async fn repeated_writes_are_applied_once_while_leaders_die() {
    let mut cluster = Cluster::start(3).await;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<Client> = cluster.nodes.iter().map(|node| node.client.clone()).collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(clients.clone(), writer, stop.clone(), written.clone())))
        .collect();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let leader = cluster.leader().await;
        cluster.nodes[leader].kill();
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        cluster.nodes[leader].start();
        cluster.ready().await;
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let written = written.load(Ordering::Relaxed);
    assert!(written > 200, "{written} writes are no load");
    let health = cluster.client(0).get("/health/").await.json;
    assert_eq!(health["status"], "healthy", "{health}");
}

async fn write(clients: Vec<Client>, writer: usize, stop: Arc<AtomicBool>, written: Arc<AtomicUsize>) {
    for number in 0..WRITES_MAX {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("{writer}/{number}");
        let (one, other) = (writer + number, writer + number + 1);
        let (one, other) = tokio::join!(insist(&clients, one, &key), insist(&clients, other, &key));
        for answer in [&one, &other] {
            assert_eq!(answer.status, 201, "{key}: {}", String::from_utf8_lossy(&answer.body));
        }
        assert_eq!(one.body, other.body, "{key}");
        written.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends a write to one node after the other, under the same name, until one answers that it is written.
async fn insist(clients: &[Client], mut node: usize, key: &str) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    eventually(Duration::from_secs(30), "the write is taken", || {
        let client = &clients[node % clients.len()];
        node += 1;
        async move {
            let sent =
                client.try_send("PUT", &format!("/kv/{key}/"), &headers, format!(r#"{{"value":"{key}"}}"#)).await;
            sent.ok().filter(|answer| answer.status < 500)
        }
    })
    .await
}
