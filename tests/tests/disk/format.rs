//! On-disk formats: this version opens its own format and older ones, and refuses unknown ones.
//!
//! The fixtures are data directories of a single node with the URL [`URL`] and [`KEYS`] keys, stopped with SIGTERM and
//! packed with `tar --sparse`.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use brink_tests::{Cluster, entries};
use serde_json::json;

/// The URL of the fixtures' node.
const URL: &str = "http://fixture:8000/kv-store/v1";

/// Number of keys under `fixture/`.
const KEYS: u64 = 20;

fn unpack(fixture: &str, dir: &Path) {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(fixture);
    std::fs::create_dir_all(dir).unwrap();
    let unpacked = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(dir).status().unwrap();
    assert!(unpacked.success(), "{}", archive.display());
}

#[tokio::test]
async fn data_of_format_3_is_opened() {
    let mut cluster = Cluster::prepare(1, brink_tests::Options::default());
    let node = &mut cluster.nodes[0];
    unpack("data-format-3.tar.gz", &node.data_dir());
    node.advertise(URL);
    node.start();
    cluster.ready().await;
    let client = cluster.client(0);
    let found = entries(client, "fixture/", "strong").await;
    let expected = (0..KEYS).map(|number| (format!("fixture/{number}"), json!({ "number": number }))).collect();
    assert_eq!(found, expected);
    let changed = client.get("/kv/changed/").await.expect(200);
    assert_eq!((&changed.json["version"], &changed.json["value"]), (&json!(2), &json!("two")));
    client.get("/kv/deleted/").await.expect(404);
    client.get("/kv/named/").await.expect(200);
    client.put("new", &json!(1)).await.expect(201);
}

#[tokio::test]
async fn data_of_an_unknown_format_is_refused_and_named() {
    let mut cluster = Cluster::prepare(1, brink_tests::Options::default());
    let node = &mut cluster.nodes[0];
    unpack("data-format-99.tar.gz", &node.data_dir());
    node.start();
    assert_eq!(node.ended(Duration::from_secs(20)).await, 2);
    let log = node.log();
    let last = log.lines().last().unwrap();
    let dir = node.data_dir().join("log");
    let expected = format!("{} has format 99; this version of brink reads format 3", dir.display());
    assert!(last.starts_with("brink: --data-dir: ") && last.ends_with(&expected), "{last}");
}
