//! P6: the values that a plugin has read are unchanged when the write commits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use brink_tests::{Client, Cluster, plugin_wasm};
use serde_json::{Value, json};

use crate::{repeated, was_cut_off};

async fn start(by: &str) -> Cluster {
    let cluster = Cluster::start(3).await;
    repeated(|| cluster.client(0).put_plugin("reference", plugin_wasm("test-reference"))).await.expect(200);
    let hook = json!({"plugin": "reference", "prefix": "orders/", "config": {"reference": "customer", "by": by},
        "deadline_ms": 5_000});
    repeated(|| cluster.client(1).put_json("/hooks/orders/", &hook)).await.expect(200);
    cluster
}

/// Writes or deletes one key by a batch. Returns the revision, which the answer to a `DELETE` does not have. The batch is named:
/// what an election cuts off is asked for again, and done once.
async fn batch(client: &Client, name: &str, item: Value) -> u64 {
    let body = json!({ "items": [item] }).to_string();
    let headers = [("content-type", "application/json"), ("idempotency-key", name)];
    let done = repeated(|| client.send("POST", "/kv/batch/", &headers, body.clone())).await.expect(200);
    done.json["revision"].as_u64().unwrap()
}

#[tokio::test]
async fn an_order_of_a_customer_just_created_on_another_node_is_accepted() {
    let cluster = start("get").await;
    for round in 0..50 {
        let customer = format!("customers/{round}");
        cluster.client(round % 3).write(&customer, &json!({})).await.expect(201);
        let order = json!({ "customer": customer });
        cluster.client((round + 1) % 3).write(&format!("orders/{round}"), &order).await.expect(201);
    }
    let nobodys = json!({"customer": "customers/nobody"});
    let refused = repeated(|| cluster.client(2).put("orders/x", &nobodys)).await.expect(422);
    assert_eq!(refused.json["violations"][0]["path"], "/customer");
}

#[tokio::test]
async fn no_order_commits_without_its_customer_looked_up_by_get() {
    race("get").await;
}

#[tokio::test]
async fn no_order_commits_without_its_customer_looked_up_by_exists() {
    race("exists").await;
}

/// Creates and deletes a customer on one node while all nodes write orders for it.
async fn race(by: &str) {
    let cluster = start(by).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let (client, stop) = (cluster.client(writer % 3).clone(), stop.clone());
            tokio::spawn(async move {
                let (mut accepted, mut refused) = (Vec::new(), 0);
                for number in 0..100_000 {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("orders/{writer}/{number}");
                    let answer = client.put(&key, &json!({"customer": "customers/ann"})).await;
                    match answer.status {
                        201 => accepted.push(answer.json["revision"].as_u64().unwrap()),
                        422 => refused += 1,
                        // Contended: not written.
                        409 => assert_eq!(answer.json["outcome"], "not_written"),
                        // An election has cut it off. Only acknowledged orders are judged here.
                        500 | 503 => assert!(was_cut_off(&answer), "{answer:?}"),
                        _ => panic!("{answer:?}"),
                    }
                }
                (accepted, refused)
            })
        })
        .collect();

    let mut exists = Vec::new();
    for round in 0..150 {
        let from =
            batch(cluster.client(0), &format!("create-{round}"), json!({"key": "customers/ann", "value": {}})).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        let delete = json!({"op": "delete", "key": "customers/ann"});
        let until = batch(cluster.client(0), &format!("delete-{round}"), delete).await;
        exists.push(from..until);
    }
    stop.store(true, Ordering::Relaxed);
    let (mut accepted, mut refused) = (0, 0);
    for writer in writers {
        let (revisions, refusals) = writer.await.unwrap();
        refused += refusals;
        accepted += revisions.len();
        for revision in revisions {
            assert!(
                exists.iter().any(|times| times.contains(&revision)),
                "order at {revision}, customer at {exists:?}"
            );
        }
    }
    assert!(accepted > 20 && refused > 20, "only {accepted} accepted and {refused} refused orders");
}
