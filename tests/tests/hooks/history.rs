//! The history of the registry, and rollbacks.

use brink_tests::{Cluster, brink, brink_with, plugin_version, plugin_wasm};
use serde_json::json;

#[tokio::test]
async fn every_change_is_recorded_with_its_author() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    let as_ann = [("content-type", "application/json"), ("brink-user", "ann")];
    client.put_plugin("normalize", plugin_wasm("normalize")).await.expect(200);
    let hook = json!({"plugin": "normalize", "config": {"trim": ["/a"]}, "deadline_ms": 5_000}).to_string();
    client.send("PUT", "/hooks/h/", &as_ann, hook).await.expect(200);
    // Failed requests, and requests without effect, are not recorded.
    client.put_json("/hooks/h/", &json!({"plugin": "normalize", "config": {"trim": ["a"]}})).await.expect(422);
    client.put_plugin("normalize", plugin_wasm("normalize")).await.expect(200);
    client.delete("/hooks/h/").await.expect(204);
    client.delete("/plugins/normalize/").await.expect(204);

    let changes = client.get("/registry/history/").await.expect(200).json["changes"].clone();
    let told: Vec<_> = changes
        .as_array()
        .unwrap()
        .iter()
        .map(|change| (change["number"].as_u64().unwrap(), change["action"].as_str().unwrap()))
        .collect();
    assert_eq!(told, [(4, "plugin-removed"), (3, "hook-removed"), (2, "hook-set"), (1, "plugin-uploaded")]);
    assert_eq!((&changes[2]["by"], &changes[2]["binding"]["config"]), (&json!("ann"), &json!({"trim": ["/a"]})));
    assert_eq!(changes[0]["node"], client.url);
    let refused = client.send("DELETE", "/hooks/h/", &[("brink-user", "")], "").await.expect(400);
    assert!(refused.json["detail"].as_str().unwrap().contains("Brink-User"), "{refused:?}");
}

#[tokio::test]
async fn a_hook_is_rolled_back_in_one_command() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    let url = client.url.as_str();
    let stored = async || client.put("k", &json!({"a": " x ", "b": " x "})).await.json["value"].clone();
    let set = async |field: &str| {
        let hook = json!({"plugin": "p", "config": {"trim": [field]}, "deadline_ms": 5_000});
        client.put_json("/hooks/h/", &hook).await.expect(200);
    };
    let first = client.put_plugin("p", plugin_wasm("normalize")).await.expect(200).json["digest"].clone();
    set("/a").await;
    let early = brink(url, &["plugin", "rollback", "h"]).expect(4);
    assert!(early.err.contains("no-such-state"), "{early:?}");
    client.put_plugin("p", plugin_version("normalize", 1)).await.expect(200);
    set("/b").await;
    assert_eq!(stored().await, json!({"a": " x ", "b": "x"}));

    // The version that only the history refers to is kept.
    let back = brink_with(&[("BRINK_URL", url), ("BRINK_USER", "ben")], &["plugin", "rollback", "h"]).expect(0);
    assert!(back.out.contains(&first.as_str().unwrap()[..12]), "{back:?}");
    assert_eq!(stored().await, json!({"a": "x", "b": " x "}));
    assert_eq!(client.get("/hooks/h/").await.json["digest"], first);
    let change = client.get("/registry/history/").await.json["changes"][0].clone();
    assert_eq!((&change["by"], &change["rolled_back_to"]), (&json!("ben"), &json!(2)));

    brink(url, &["plugin", "rollback", "h", "--to", "4"]).expect(0);
    assert_eq!(stored().await, json!({"a": " x ", "b": "x"}));
    client.delete("/hooks/h/").await.expect(204);
    client.delete("/plugins/p/").await.expect(204);
    // A rollback restores a removed hook, and removes a restored one.
    brink(url, &["plugin", "rollback", "h"]).expect(0);
    assert_eq!(stored().await, json!({"a": " x ", "b": "x"}));
    brink(url, &["plugin", "rollback", "h"]).expect(0);
    assert_eq!(stored().await, json!({"a": " x ", "b": " x "}));
    let history = brink(url, &["plugin", "history"]).expect(0);
    assert!(history.out.contains("rolled-back to 4") && history.out.contains("ben"), "{history:?}");
}
