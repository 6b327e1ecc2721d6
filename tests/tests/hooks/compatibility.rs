//! Plugins compiled for a released version of the interface keep working.
//!
//! The components in `fixtures/` are never rebuilt. A change that breaks them would break the plugins of users.

use brink_tests::Cluster;
use serde_json::json;

#[tokio::test]
async fn plugins_compiled_for_0_1_0_still_judge_read_and_replace() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    for role in ["validator", "transformer"] {
        let path = format!("{}/fixtures/hooks-0.1.0-{role}.wasm", env!("CARGO_MANIFEST_DIR"));
        let deployed = client.put_plugin(role, std::fs::read(path).unwrap()).await.expect(200);
        assert_eq!(deployed.json["roles"], json!([role]));
    }
    for by in ["get", "exists"] {
        let reference =
            json!({"plugin": "validator", "prefix": by, "config": {"reference": "of", "by": by}, "deadline_ms": 5_000});
        client.put_json(&format!("/hooks/{by}/"), &reference).await.expect(200);
    }
    let stamp = json!({"plugin": "transformer", "prefix": "s/", "config": {"stamp": 7}, "deadline_ms": 5_000});
    client.put_json("/hooks/stamp/", &stamp).await.expect(200);
    let wrong = client.put_json("/hooks/wrong/", &json!({"plugin": "transformer", "config": {"stamp": "x"}})).await;
    assert_eq!(wrong.expect(422).json["path"], "/stamp");

    client.put("users/ann", &json!(1)).await.expect(201);
    for by in ["get", "exists"] {
        client.put(&format!("{by}/a"), &json!({"of": "users/ann"})).await.expect(201);
        let refused = client.put(&format!("{by}/b"), &json!({"of": "users/bob"})).await.expect(422).json;
        assert_eq!(
            (&refused["code"], &refused["violations"][0]["path"]),
            (&json!("dangling-reference"), &json!("/of"))
        );
    }
    assert_eq!(client.put("s/a", &json!({})).await.expect(201).json["value"], json!({"stamp": 7}));
}
