//! Real data with its authors' JSON Schema: ISO 639-3 from Debian's package `iso-codes`.

use std::path::Path;

use brink_tests::{Cluster, entries, plugin_wasm};
use serde_json::{Value, json};

use crate::settled;

/// The package's data directory.
const DATA_DIR: &str = "/usr/share/iso-codes/json";

/// Minimum number of ISO 639-3 records: as in Debian 12.
const RECORDS_MIN: usize = 7_900;

fn read(name: &str) -> Value {
    let path = Path::new(DATA_DIR).join(name);
    let text = std::fs::read(&path).unwrap_or_else(|error| {
        panic!("{}: {error}; install the package iso-codes, or run `cargo xtask test`", path.display())
    });
    serde_json::from_slice(&text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn iso_639_3_is_imported_under_its_own_schema_and_a_corrupted_record_is_refused() {
    let cluster = Cluster::start(3).await;
    let url = cluster.nodes[0].url.as_str();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // The schema of one record is the schema of the file's items.
    let mut schema = read("schema-639-3.json");
    let record_schema = schema["properties"]["639-3"]["items"].take();
    let config = file("config.json", json!({"draft": "draft-04", "schema": record_schema}).to_string().as_bytes());
    let wasm = file("json-schema.wasm", &plugin_wasm("json-schema"));
    settled(url, &["plugin", "deploy", "json-schema", &wasm]).expect(0);
    let config = format!("@{config}");
    let bind = ["plugin", "bind", "iso639-3", "--plugin", "json-schema", "--prefix", "iso639-3/", "--config", &config];
    // A generous deadline: this test does not measure time.
    settled(url, &[&bind[..], &["--deadline-ms", "5000"]].concat()).expect(0);

    let import = |path: &str| {
        let args = ["kv", "import", path, "--items", "/639-3", "--key-field", "alpha_3", "--prefix", "iso639-3/"];
        settled(url, &args)
    };
    let document = read("iso_639-3.json");
    let records = document["639-3"].as_array().unwrap();
    assert!(records.len() >= RECORDS_MIN, "{} records", records.len());
    let imported = import(&format!("{DATA_DIR}/iso_639-3.json")).expect(0);
    assert_eq!(imported.out, format!("{} records imported\n", records.len()));

    for node in &cluster.nodes {
        let found = entries(&node.client, "iso639-3/", "strong").await;
        assert_eq!(found.len(), records.len());
        for record in records {
            let key = format!("iso639-3/{}", record["alpha_3"].as_str().unwrap());
            assert_eq!(&found[&key], record, "{key} on {}", node.url);
        }
    }

    let mut corrupted = document.clone();
    corrupted["639-3"][1_000]["scope"] = json!("X");
    let corrupted = file("corrupted.json", corrupted.to_string().as_bytes());
    let refused = import(&corrupted).expect(4);
    let key = records[1_000]["alpha_3"].as_str().unwrap();
    for said in ["record 1001", &format!("iso639-3/{key}"), "/scope"] {
        assert!(refused.err.contains(said), "{said:?} is not in: {}", refused.err);
    }
    let kept = cluster.client(1).settled(&format!("/kv/iso639-3/{key}/?consistency=strong")).await.expect(200);
    assert_eq!(kept.json["value"], records[1_000]);
}
