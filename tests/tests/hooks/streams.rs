//! Hooks judge each line of a stream.

use brink_tests::{Cluster, Stream, plugin_wasm};
use serde_json::json;

/// Keys that are written twice.
const KEYS: usize = 8;

/// Bytes of the first value of each key, whose hook takes much longer than that of the second.
const LARGE: usize = 900_000;

#[tokio::test]
async fn lines_of_one_key_are_applied_in_their_order_however_long_their_hooks_take() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    client.put_plugin("normalize", plugin_wasm("normalize")).await.expect(200);
    let hook = json!({"plugin": "normalize", "prefix": "k/", "config": {"trim": ["/a"]}, "deadline_ms": 10_000});
    client.put_json("/hooks/normalize/", &hook).await.expect(200);

    let mut stream = Stream::open(cluster.nodes[0].port);
    for key in 0..KEYS {
        for text in [format!(" {} ", "x".repeat(LARGE)), " last ".to_owned()] {
            stream.send(&(json!({"key": format!("k/{key}"), "value": {"a": text}}).to_string() + "\n"));
        }
    }
    stream.end();
    let versions: Vec<_> = (0..2 * KEYS).map(|_| stream.line().unwrap()["version"].as_u64()).collect();
    assert_eq!(versions, [Some(1), Some(2)].repeat(KEYS));
    for key in 0..KEYS {
        assert_eq!(client.get(&format!("/kv/k/{key}/")).await.expect(200).json["value"], json!({"a": "last"}));
    }
}
