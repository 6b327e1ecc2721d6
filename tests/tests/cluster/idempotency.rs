//! P4: a write with an `Idempotency-Key` is applied once, however often it is sent, even if the leader is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use brink_tests::{Answer, Client, Cluster, eventually};

/// Number of writers. Each sends every write to two nodes at once.
const WRITERS: usize = 6;

/// Time for writes to be acknowledged.
const LIMIT: Duration = Duration::from_secs(60);

/// Upper bound of one writer's writes.
const WRITES_MAX: usize = 5_000;

#[tokio::test]
async fn an_idempotent_write_is_applied_once_whichever_node_receives_it() {
    let cluster = Cluster::start(3).await;
    cluster.healthy().await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "order-1")];
    let first = cluster.client(0).send("PUT", "/kv/order/", &headers, r#"{"value":1}"#).await.expect(201);
    assert_eq!(first.header("brink-repeated"), None);
    for node in &cluster.nodes {
        let again = node.client.send_settled("PUT", "/kv/order/", &headers, r#"{"value":1}"#).await.expect(201);
        assert_eq!((&again.body, again.header("brink-repeated")), (&first.body, Some("true")));
        let other = node.client.send_settled("PUT", "/kv/order/", &headers, r#"{"value":2}"#).await.expect(422);
        assert_eq!(other.json["type"], "urn:brink:problem:idempotency-key-reused");
        assert_eq!(other.json["outcome"], "not_written");
    }
}

/// Each write is sent to two nodes, as by a client whose first answer was lost. A write that is applied twice has
/// version 2.
#[tokio::test]
async fn repeated_writes_are_applied_once_while_leaders_are_killed() {
    let mut cluster = Cluster::start(3).await;
    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<Client> = cluster.nodes.iter().map(|node| node.client.clone()).collect();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(clients.clone(), writer, stop.clone(), written.clone())))
        .collect();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        // There is load at each kill, and 200 writes in all.
        let count = written.load(Ordering::Relaxed);
        eventually(LIMIT, "writes are acknowledged", || async {
            (written.load(Ordering::Relaxed) > count + 50).then_some(())
        })
        .await;
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
    assert!(written > 200, "only {written} writes");
    cluster.healthy().await;
}

async fn write(clients: Vec<Client>, writer: usize, stop: Arc<AtomicBool>, written: Arc<AtomicUsize>) {
    for number in 0..WRITES_MAX {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("{writer}/{number}");
        let (one, other) = (writer + number, writer + number + 1);
        let (one, other) = tokio::join!(send_repeatedly(&clients, one, &key), send_repeatedly(&clients, other, &key));
        for answer in [&one, &other] {
            assert_eq!(answer.status, 201, "{key}: {}", String::from_utf8_lossy(&answer.body));
        }
        assert_eq!(one.body, other.body, "{key}");
        written.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends a write to one node after the other, with the same key, until one acknowledges it.
async fn send_repeatedly(clients: &[Client], mut node: usize, key: &str) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    eventually(LIMIT, "the write is acknowledged", || {
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
