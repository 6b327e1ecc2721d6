//! The history of the registry, and rollbacks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use brink_tests::{Client, Cluster, brink, brink_with, plugin_wasm};
use serde_json::json;

#[tokio::test]
async fn every_change_is_recorded_with_its_author() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    let as_ann = [("content-type", "application/json"), ("brink-user", "ann")];
    client.put_plugin("normalize", plugin_wasm("normalize")).await.expect(200);
    let hook = json!({"plugin": "normalize", "config": {"trim": ["/a"]}}).to_string();
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
        let hook = json!({"plugin": "p", "config": {"trim": [field]}});
        client.put_json("/hooks/h/", &hook).await.expect(200);
    };
    let first = client.put_plugin("p", plugin_wasm("normalize")).await.expect(200).json["digest"].clone();
    set("/a").await;
    let early = brink(url, &["plugin", "rollback", "h"]).expect(4);
    assert!(early.err.contains("no-such-state"), "{early:?}");
    client.put_plugin("p", version("normalize", 1)).await.expect(200);
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

/// Another version of a plugin with the same behavior.
fn version(package: &str, number: u8) -> Vec<u8> {
    let mut wasm = plugin_wasm(package);
    // A custom section: its id, its length, its name, its content.
    wasm.extend([0, 3, 1, b'v', number]);
    wasm
}

/// Sets the hook that stamps values, and notes the revision from which it is in force.
async fn set_stamp(client: &Client, stamp: u64, in_force: &mut BTreeMap<u64, u64>) {
    let hook = json!({"plugin": "stamp", "prefix": "s/", "config": {"stamp": stamp}, "deadline_ms": 5_000});
    let set = client.put_json("/hooks/stamp/", &hook).await.expect(200);
    in_force.insert(set.json["revision"].as_u64().unwrap(), stamp);
}

#[tokio::test]
async fn every_write_is_judged_by_the_version_in_force_during_deployments_and_rollbacks() {
    const ROUNDS: u8 = 10;
    let cluster = Cluster::start(3).await;
    let mut in_force = BTreeMap::new();
    cluster.client(0).put_plugin("stamp", plugin_wasm("test-stamp")).await.expect(200);
    set_stamp(cluster.client(0), 0, &mut in_force).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let (client, stop) = (cluster.client(writer % 3).clone(), stop.clone());
            tokio::spawn(async move {
                for number in 0..100_000 {
                    if stop.load(Ordering::Relaxed) {
                        return number;
                    }
                    client.put(&format!("s/{writer}/{number}"), &json!({})).await.expect(201);
                }
                100_000
            })
        })
        .collect();
    for round in 2..2 + ROUNDS {
        let client = cluster.client(usize::from(round % 3));
        client.put_plugin("stamp", version("test-stamp", round)).await.expect(200);
        set_stamp(client, u64::from(round), &mut in_force).await;
        if round % 2 == 0 {
            let other = cluster.client(usize::from((round + 1) % 3));
            let back = other.post_json("/hooks/stamp/rollback/", &json!({})).await.expect(200).json;
            let stamp = back["config"]["stamp"].as_u64().unwrap();
            in_force.insert(back["revision"].as_u64().unwrap(), stamp);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut written = 0;
    for writer in writers {
        written += writer.await.unwrap();
    }
    let stored = stamps(cluster.client(1)).await;
    assert_eq!(stored.len(), written);
    for (revision, stamp) in &stored {
        let (_, expected) = in_force.range(..revision).next_back().unwrap();
        assert_eq!(stamp, expected, "at revision {revision}, {in_force:?}");
    }
    let used: BTreeSet<_> = stored.values().collect();
    assert!(used.len() > usize::from(ROUNDS) / 2 && written > 100, "{written} writes, {used:?}");
}

/// The stamps of all entries by revision.
async fn stamps(client: &Client) -> BTreeMap<u64, u64> {
    let mut stamps = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("/kv/?prefix=s/&limit=5000&consistency=strong{cursor}")).await.expect(200).json;
        for entry in page["results"].as_array().unwrap() {
            stamps.insert(entry["revision"].as_u64().unwrap(), entry["value"]["stamp"].as_u64().unwrap());
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return stamps,
        }
    }
}
