//! The client commands against a running cluster.

use brink_tests::{Cluster, brink, plugin_wasm};

use crate::settled;

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_written_read_listed_and_deleted() {
    let cluster = Cluster::start(3).await;
    let url = cluster.nodes[0].url.as_str();
    assert_eq!(
        brink(url, &["kv", "put", "users/ann", r#"{"n": 1.50}"#]).expect(0).out,
        "users/ann version 1, revision 1\n"
    );
    assert_eq!(settled(url, &["kv", "get", "users/ann"]).expect(0).out, "{\"n\":1.50}\n");
    settled(url, &["kv", "put", "users/ann", "2", "--if-absent"]).expect(4);
    brink(url, &["kv", "put", "users/ann", "2", "--if-revision", "1"]).expect(0);
    settled(url, &["kv", "put", "note", "plain text", "--content-type", "text/plain"]).expect(0);
    assert_eq!(settled(url, &["kv", "get", "note"]).expect(0).out, "plain text");
    for key in ["with space", "dir/", "a//b", "../up", "é?#%"] {
        settled(url, &["kv", "put", key, "true"]).expect(0);
        assert_eq!(settled(url, &["kv", "get", key, "--consistency", "strong"]).expect(0).out, "true\n");
    }
    let listed = brink(url, &["kv", "list", "--keys-only", "-o", "json", "--limit", "2"]).expect(0).out;
    let keys: Vec<serde_json::Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((keys.len(), keys[0]["key"].as_str()), (2, Some("../up")));
    assert!(brink(url, &["kv", "list", "--prefix", "users/"]).expect(0).out.contains("users/ann"));
    brink(url, &["kv", "del", "users/ann", "note"]).expect(0);
    brink(url, &["kv", "get", "users/ann"]).expect(3);
    brink(url, &["kv", "del", "users/ann"]).expect(3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_restores_an_export_exactly() {
    let cluster = Cluster::start(1).await;
    let url = cluster.nodes[0].url.as_str();
    brink(url, &["kv", "put", "p/a", r#"{"big": 123456789012345678901234567890, "n": 1.50}"#]).expect(0);
    brink(url, &["kv", "put", "p/b", "bytes", "--content-type", "application/octet-stream"]).expect(0);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("export.jsonl");
    let file = file.to_str().unwrap();
    assert_eq!(brink(url, &["kv", "export", "--prefix", "p/", file]).expect(0).out, "2 entries exported\n");
    brink(url, &["kv", "del", "p/a", "p/b"]).expect(0);
    assert_eq!(brink(url, &["kv", "import", file]).expect(0).out, "2 records imported\n");
    let again = brink(url, &["kv", "export", "--prefix", "p/"]).expect(0).out;
    assert_eq!(again, std::fs::read_to_string(file).unwrap());
    assert!(again.contains("123456789012345678901234567890") && again.contains("1.50"), "{again}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_deployed_bound_listed_and_removed() {
    let cluster = Cluster::start(3).await;
    let url = cluster.nodes[0].url.as_str();
    let dir = tempfile::tempdir().unwrap();
    let wasm = dir.path().join("normalize.wasm");
    std::fs::write(&wasm, plugin_wasm("normalize")).unwrap();
    let wasm = wasm.to_str().unwrap();
    assert!(settled(url, &["plugin", "deploy", "normalize", wasm]).expect(0).out.contains("transformer"));
    let config = dir.path().join("config.json");
    std::fs::write(&config, r#"{"trim": ["/name"]}"#).unwrap();
    let config = format!("@{}", config.to_str().unwrap());
    let bind = ["plugin", "bind", "names", "--plugin", "normalize", "--prefix", "users/", "--config", &config];
    // A generous deadline: this test does not measure time.
    let bind = [&bind[..], &["--deadline-ms", "5000"]].concat();
    assert!(settled(url, &bind).expect(0).out.contains("in force"));
    settled(url, &["kv", "put", "users/ann", r#"{"name": " Ann "}"#]).expect(0);
    let read = ["kv", "get", "users/ann", "--consistency", "strong"];
    assert_eq!(settled(&cluster.nodes[1].url, &read).expect(0).out, "{\"name\":\"Ann\"}\n");
    let listed = brink(&cluster.nodes[2].url, &["plugin", "list"]).expect(0).out;
    assert!(listed.contains("normalize") && listed.contains("users/"), "{listed}");
    let refused = settled(url, &["plugin", "bind", "bad", "--plugin", "normalize", "--config", "{\"x\": 1}"]).expect(4);
    assert!(refused.err.contains("config-refused"), "{}", refused.err);
    settled(url, &["plugin", "remove", "normalize"]).expect(4);
    brink(url, &["plugin", "unbind", "names"]).expect(0);
    brink(url, &["plugin", "remove", "normalize"]).expect(0);
    brink(url, &["plugin", "unbind", "names"]).expect(3);
    std::fs::write(wasm, "no wasm").unwrap();
    assert!(brink(url, &["plugin", "deploy", "x", wasm]).expect(4).err.contains("not-a-plugin"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_is_shown_and_a_dead_node_is_skipped() {
    let mut cluster = Cluster::start(3).await;
    let status = brink(&cluster.nodes[0].url, &["cluster", "status"]).expect(0).out;
    assert_eq!(status.lines().filter(|line| line.contains("leader")).count(), 1, "{status}");
    cluster.nodes[0].kill();
    let urls = format!("{},{}", cluster.nodes[0].url, cluster.nodes[1].url);
    let json = brink(&urls, &["cluster", "status", "-o", "json"]).expect(0).out;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["cluster"]["total_nodes"], 3);
}

#[test]
fn completions_and_help_are_printed() {
    assert!(brink("", &["completions", "bash"]).expect(0).out.contains("_brink"));
    for command in ["serve", "kv", "plugin", "cluster", "bench"] {
        assert!(brink("", &[command, "--help"]).expect(0).out.contains("Usage: brink"), "{command}");
    }
    assert!(brink("", &["--version"]).expect(0).out.starts_with("brink "));
}
