//! The plugins in `plugins/`, in a cluster.

use std::path::Path;

use brink_tests::{Cluster, brink, plugin_file, plugin_wasm};
use serde_json::json;

use crate::repeated;

/// Deadline of a call: these tests do not measure time.
const DEADLINE_MS: u64 = 5_000;

/// Runs each plugin's `cases.toml` by `brink plugin test`.
#[test]
fn the_cases_of_every_plugin_pass() {
    let plugins = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../plugins"));
    let mut count = 0;
    for entry in plugins.read_dir().unwrap() {
        let folder = entry.unwrap().path();
        let (name, cases) = (folder.file_name().unwrap().to_str().unwrap(), folder.join("cases.toml"));
        let component = plugin_file(name);
        let arguments = ["plugin", "test", component.to_str().unwrap(), "--cases", cases.to_str().unwrap()];
        let tested = brink("http://127.0.0.1:1", &arguments).expect(0);
        assert!(tested.out.ends_with("cases, 0 failed\n"), "{tested:?}");
        count += 1;
    }
    assert_eq!(count, 5);
}

#[tokio::test]
async fn references_limits_and_masks_apply_on_every_node() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(0);
    for name in ["limits", "redact", "reference"] {
        repeated(|| client.put_plugin(name, plugin_wasm(name))).await.expect(200);
    }
    let orders = json!({"references": [{"at": "/customer", "key": "customers/{}"}], "restrict_delete": ["{}/"]});
    let both = ["put", "delete"];
    for mut hook in [
        json!({"plugin": "redact", "prefix": "customers/", "config": {"rules": [{"at": "/card", "keep_last": 4}]}}),
        json!({"plugin": "limits", "prefix": "orders/", "config": {"counts": [{"under": "orders/*/", "max": 2}]}}),
        json!({"plugin": "reference", "operations": both, "config": orders}),
    ] {
        hook["deadline_ms"] = DEADLINE_MS.into();
        let path = format!("/hooks/{}/", hook["plugin"].as_str().unwrap());
        repeated(|| client.put_json(&path, &hook)).await.expect(200);
    }
    let (one, two) = (cluster.client(1), cluster.client(2));
    let ann = two.write("customers/ann", &json!({"card": "4111111111111111"})).await.expect(201);
    assert_eq!(ann.json["value"], json!({"card": "***1111"}));

    let order = |customer: &str| json!({"customer": customer});
    one.write("orders/ann/1", &order("ann")).await.expect(201);
    two.write("orders/ann/2", &order("ann")).await.expect(201);
    let (anns, bobs) = (order("ann"), order("bob"));
    let refused = repeated(|| two.put("orders/ann/3", &anns)).await.expect(422);
    assert_eq!(refused.json["violations"][0]["code"], "count", "{}", refused.json);
    one.write("orders/ann/2", &order("ann")).await.expect(200);
    let refused = repeated(|| one.put("orders/bob/1", &bobs)).await.expect(422);
    assert_eq!(refused.json["violations"][0]["path"], "/customer", "{}", refused.json);

    one.write("customers/ann/notes", &json!("likes tea")).await.expect(201);
    let refused = repeated(|| two.delete("/kv/customers/ann/")).await.expect(422);
    assert_eq!(refused.json["violations"][0]["code"], "in-use", "{}", refused.json);
    two.erase("customers/ann/notes").await.expect(204);
    one.erase("customers/ann").await.expect(204);
}

#[tokio::test]
async fn a_transformer_runs_before_a_validator_and_a_batch_is_judged_as_a_whole() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(0);
    repeated(|| client.put_plugin("normalize", plugin_wasm("normalize"))).await.expect(200);
    repeated(|| client.put_plugin("json-schema", plugin_wasm("json-schema"))).await.expect(200);
    let normal = json!({"trim": ["/name"], "lowercase": ["/mail"], "drop": ["/password"]});
    let hook = json!({"plugin": "normalize", "prefix": "users/", "config": normal, "deadline_ms": DEADLINE_MS});
    repeated(|| client.put_json("/hooks/normal/", &hook)).await.expect(200);
    let schema = json!({"required": ["name"], "properties": {"name": {"pattern": "^[^ ]"}, "password": false}});
    let config = json!({ "schema": schema });
    let hook =
        json!({"plugin": "json-schema", "prefix": "users/", "order": -1, "config": config, "deadline_ms": DEADLINE_MS});
    repeated(|| client.put_json("/hooks/schema/", &hook)).await.expect(200);

    let ann = json!({"name": "  Ann ", "mail": "ANN@example.org", "password": "secret"});
    let written = cluster.client(1).write("users/ann", &ann).await.expect(201);
    assert_eq!(written.json["value"], json!({"name": "Ann", "mail": "ann@example.org"}));
    assert_eq!(
        cluster.client(2).settled("/kv/users/ann/?consistency=strong").await.json["value"],
        written.json["value"]
    );

    let items = json!({"items": [
        {"key": "users/bob", "value": {"name": " Bob"}},
        {"key": "other", "value": {"name": " as it is"}},
        {"key": "users/eve", "value": {}},
    ]});
    let refused = repeated(|| cluster.client(1).post_json("/kv/batch/", &items)).await.expect(422);
    assert_eq!(refused.json["violations"][0]["item"], 2, "{}", refused.json);
    assert_eq!(refused.json["violations"][0]["code"], "required");
    cluster.client(1).settled("/kv/users/bob/?consistency=strong").await.expect(404);
    cluster.client(1).settled("/kv/other/?consistency=strong").await.expect(404);

    let items =
        json!({"items": [{"key": "users/bob", "value": {"name": " Bob"}}, {"op": "delete", "key": "users/ann"}]});
    let written = repeated(|| cluster.client(1).post_json("/kv/batch/", &items)).await.expect(200);
    assert_eq!(written.json["results"][0]["value"], json!({"name": "Bob"}));
    cluster.client(2).settled("/kv/users/ann/?consistency=strong").await.expect(404);
}

#[tokio::test]
async fn a_monitoring_hook_refuses_nothing_and_a_skipping_hook_ignores_failures() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    repeated(|| client.put_plugin("limits", plugin_wasm("limits"))).await.expect(200);
    repeated(|| client.put_plugin("hostile", plugin_wasm("test-hostile"))).await.expect(200);
    let config = json!({"depth_max": 0});
    let monitor =
        json!({"plugin": "limits", "prefix": "m/", "mode": "monitor", "config": config, "deadline_ms": DEADLINE_MS});
    repeated(|| client.put_json("/hooks/monitor/", &monitor)).await.expect(200);
    let config = json!({"do": "panic", "role": "validator"});
    let skip = json!({"plugin": "hostile", "prefix": "s/", "on_failure": "skip", "config": config, "deadline_ms": DEADLINE_MS});
    repeated(|| client.put_json("/hooks/skip/", &skip)).await.expect(200);
    client.put("m/a", &json!([1])).await.expect(201);
    client.put("s/a", &json!(1)).await.expect(201);
    let metrics = String::from_utf8(client.get("/metrics").await.expect(200).body).unwrap();
    let counted = |name: &str, label: &str| {
        metrics.lines().any(|line| line.starts_with(name) && line.contains(label) && line.ends_with(" 1"))
    };
    assert!(counted("brink_hook_rejections", "hook=\"monitor\""), "{metrics}");
    assert!(counted("brink_hook_traps", "hook=\"skip\""), "{metrics}");
}

#[tokio::test]
async fn a_repeated_write_keeps_its_first_outcome_after_a_change_of_hooks() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client(0);
    repeated(|| client.put_plugin("normalize", plugin_wasm("normalize"))).await.expect(200);
    repeated(|| client.put_plugin("limits", plugin_wasm("limits"))).await.expect(200);
    let hook =
        json!({"plugin": "normalize", "prefix": "users/", "config": {"trim": ["/name"]}, "deadline_ms": DEADLINE_MS});
    repeated(|| client.put_json("/hooks/normal/", &hook)).await.expect(200);
    let headers = [("content-type", "application/json"), ("idempotency-key", "ann")];
    let body = r#"{"value": {"name": " Ann "}}"#;
    let first = repeated(|| client.send("PUT", "/kv/users/ann/", &headers, body)).await.expect(201);
    assert_eq!(first.json["value"], json!({"name": "Ann"}));

    let nothing =
        json!({"plugin": "limits", "prefix": "users/", "config": {"depth_max": 0}, "deadline_ms": DEADLINE_MS});
    repeated(|| client.put_json("/hooks/nothing/", &nothing)).await.expect(200);
    let bob = json!({"name": "Bob"});
    repeated(|| client.put("users/bob", &bob)).await.expect(422);
    for node in &cluster.nodes {
        let again = repeated(|| node.client.send("PUT", "/kv/users/ann/", &headers, body)).await.expect(201);
        assert_eq!((&again.body, again.header("brink-repeated")), (&first.body, Some("true")));
    }
}
