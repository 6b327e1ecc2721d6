//! Plugins and hooks are replicated, and refused requests leave nothing behind.

use std::time::Duration;

use brink_tests::{Client, Cluster, eventually, plugin_wasm};
use serde_json::{Value, json};

use crate::repeated;

/// A component that exports nothing.
const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

/// A core module.
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";

async fn assert_empty(client: &Client) {
    assert_eq!(client.get("/plugins/").await.expect(200).json["plugins"], json!([]));
    assert_eq!(client.get("/hooks/").await.expect(200).json["hooks"], json!([]));
}

#[tokio::test]
async fn an_upload_that_is_not_a_plugin_is_refused_and_leaves_nothing() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    for (bytes, said) in [(&b"hello"[..], "component"), (CORE_MODULE, "component"), (EMPTY_COMPONENT, "brink:hooks")] {
        let refused = client.put_plugin("p", bytes.to_vec()).await.expect(422);
        assert_eq!(refused.json["type"], "urn:brink:problem:not-a-plugin");
        assert!(refused.json["detail"].as_str().unwrap().contains(said), "{}", refused.json);
    }
    let refused = client.put_plugin("no name", plugin_wasm("normalize")).await.expect(400);
    assert!(refused.json["detail"].as_str().unwrap().contains("no name"), "{}", refused.json);
    assert_empty(client).await;
}

#[tokio::test]
async fn a_hook_that_cannot_run_is_refused_and_leaves_nothing() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    let refused = |answer: brink_tests::Answer, kind: &str| {
        assert_eq!(answer.json["type"], format!("urn:brink:problem:{kind}"), "{}", answer.json);
        assert_eq!(answer.json["outcome"], "not_written");
        answer.json
    };
    let missing = client.put_json("/hooks/h/", &json!({"plugin": "normalize"})).await.expect(422);
    assert!(refused(missing, "plugin-missing")["detail"].as_str().unwrap().contains("normalize"));

    client.put_plugin("normalize", plugin_wasm("normalize")).await.expect(200);
    let wrong = json!({"plugin": "normalize", "config": {"trim": ["no pointer"]}});
    let wrong = refused(client.put_json("/hooks/h/", &wrong).await.expect(422), "config-refused");
    assert_eq!(wrong["path"], "/trim/0");

    let malformed: [(Value, &str); 5] = [
        (json!({"plugin": "normalize", "prefx": "a"}), "prefx"),
        (json!({"plugin": "normalize", "operations": []}), "operations"),
        (json!({"plugin": "normalize", "digest": "abc"}), "digest"),
        (json!({"plugin": "normalize", "deadline_ms": 0}), "deadline_ms"),
        (json!({"plugin": "normalize", "mode": "strict"}), "mode"),
    ];
    for (body, said) in malformed {
        let answer = refused(client.put_json("/hooks/h/", &body).await.expect(400), "bad-hook");
        let detail = answer["detail"].as_str().unwrap();
        assert!(detail.contains(said) || detail.contains("strict"), "{detail}");
    }
    assert_eq!(client.get("/hooks/").await.json["hooks"], json!([]));
}

#[tokio::test]
async fn a_hook_applies_on_all_nodes_and_survives_a_restart() {
    let mut cluster = Cluster::start(3).await;
    let deployed =
        repeated(|| cluster.client(0).put_plugin("json-schema", plugin_wasm("json-schema"))).await.expect(200);
    assert_eq!(deployed.json["roles"], json!(["validator"]));
    let config = json!({"schema": {"type": "number"}});
    let hook = json!({"plugin": "json-schema", "prefix": "n/", "config": config, "deadline_ms": 5_000});
    repeated(|| cluster.client(1).put_json("/hooks/numbers/", &hook)).await.expect(200);
    for restarted in [false, true] {
        for node in &cluster.nodes {
            let text = json!("x");
            repeated(|| node.client.put("n/a", &text)).await.expect(422);
            node.client.write("n/a", &json!(1)).await.expect_written();
            let hooks = node.client.get("/hooks/").await.json;
            assert_eq!(hooks["hooks"][0]["name"], "numbers");
            assert_eq!(hooks["hooks"][0]["digest"], deployed.json["digest"]);
        }
        if !restarted {
            for node in &mut cluster.nodes {
                node.kill();
                node.start();
            }
            cluster.ready().await;
        }
    }
}

#[tokio::test]
async fn a_large_plugin_is_uploaded_during_writes_and_judges_on_every_node() {
    const PADDING_BYTES: usize = 60 << 20;
    let cluster = Cluster::start(3).await;
    let writer = tokio::spawn({
        let client = cluster.client(0).clone();
        async move {
            for number in 0_u64.. {
                let value = json!(number);
                assert!(repeated(|| client.put("beside", &value)).await.status < 300, "write {number}");
            }
        }
    });
    let mut wasm = plugin_wasm("normalize");
    // A custom section: its id, its length in LEB128, the length of its name, its bytes.
    wasm.push(0);
    wasm.extend((0..5).map(|digit| (PADDING_BYTES >> (7 * digit)) as u8 & 0x7f | if digit < 4 { 0x80 } else { 0 }));
    wasm.resize(wasm.len() + PADDING_BYTES, 0);
    let deployed = repeated(|| cluster.client(1).put_plugin("large", wasm.clone())).await.expect(200);
    assert_eq!(deployed.json["size_bytes"], wasm.len());
    let hook = json!({"plugin": "large", "prefix": "l/", "config": {"trim": [""]}, "deadline_ms": 5_000});
    repeated(|| cluster.client(2).put_json("/hooks/large/", &hook)).await.expect(200);
    for node in &cluster.nodes {
        assert_eq!(node.client.write("l/a", &json!(" x ")).await.json["value"], "x");
    }
    assert!(!writer.is_finished(), "{:?}", writer.await);
    writer.abort();
}

#[tokio::test]
async fn a_plugin_in_use_cannot_be_removed() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    client.put_plugin("normalize", plugin_wasm("normalize")).await.expect(200);
    client.put_json("/hooks/h/", &json!({"plugin": "normalize", "config": {"trim": ["/a"]}})).await.expect(200);
    let refused = client.delete("/plugins/normalize/").await.expect(409);
    assert_eq!(refused.json["hooks"], json!(["h"]));
    client.delete("/hooks/h/").await.expect(204);
    client.delete("/hooks/h/").await.expect(404);
    client.delete("/plugins/normalize/").await.expect(204);
    client.delete("/plugins/normalize/").await.expect(404);
    assert_empty(client).await;
}

#[tokio::test]
async fn a_hook_keeps_its_version_after_an_upload_of_a_new_one() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    let first = client.put_plugin("p", plugin_wasm("limits")).await.expect(200).json;
    let limit = json!({"plugin": "p", "config": {"depth_max": 0}, "deadline_ms": 5_000});
    client.put_json("/hooks/h/", &limit).await.expect(200);
    let second = client.put_plugin("p", plugin_wasm("normalize")).await.expect(200).json;
    assert_ne!(first["digest"], second["digest"]);
    assert_eq!(client.get("/hooks/h/").await.json["digest"], first["digest"]);
    client.put("a", &json!([1])).await.expect(422);
    let trim = json!({"plugin": "p", "config": {"trim": [""]}, "deadline_ms": 5_000});
    client.put_json("/hooks/h/", &trim).await.expect(200);
    assert_eq!(client.put("a", &json!(" x ")).await.expect(201).json["value"], "x");
}

/// The files of a node's compiled code with their modification times.
fn compiled(node: &brink_tests::Node) -> Vec<(std::path::PathBuf, std::time::SystemTime)> {
    let entries = std::fs::read_dir(node.data_dir().join("compiled")).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> = entries.map(|file| (file.path(), file.metadata().unwrap().modified().unwrap())).collect();
    files.sort();
    files
}

#[tokio::test]
async fn a_restarted_node_reuses_compiled_and_pre_initialized_plugins() {
    let mut cluster = Cluster::start(1).await;
    let client = cluster.client(0).clone();
    client.put_plugin("normalize", plugin_wasm("normalize")).await.expect(200);
    let hook = json!({"plugin": "normalize", "config": {"trim": [""]}, "deadline_ms": 5_000});
    client.put_json("/hooks/h/", &hook).await.expect(200);
    let configured = async || {
        eventually(Duration::from_secs(60), "the plugin is pre-initialized", async || {
            let stats = client.get("/registry/stats/").await.json;
            (stats["hooks"][0]["starts_configured"] == true).then_some(())
        })
        .await;
    };
    configured().await;
    let before = compiled(&cluster.nodes[0]);
    assert_eq!(before.len(), 2, "the plugin, compiled and pre-initialized: {before:?}");

    cluster.nodes[0].kill();
    cluster.nodes[0].start();
    cluster.ready().await;
    configured().await;
    assert_eq!(client.write("a", &json!(" x ")).await.expect(201).json["value"], "x");
    assert_eq!(compiled(&cluster.nodes[0]), before);

    // Damaged files are written again.
    cluster.nodes[0].kill();
    for (path, _) in &before {
        let mut bytes = std::fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
    cluster.nodes[0].start();
    cluster.ready().await;
    configured().await;
    assert_eq!(client.write("a", &json!(" y ")).await.expect(200).json["value"], "y");
    assert_ne!(compiled(&cluster.nodes[0]), before);
}
