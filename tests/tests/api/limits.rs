//! P9: requests beyond a limit are refused at once.

use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use brink_tests::{Cluster, eventually};
use serde_json::json;

/// Time for bodies to arrive, or to be gone. Only a guard.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_key_may_have_1024_bytes_and_no_more() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    client.put(&"k".repeat(1_024), &json!(1)).await.expect(201);
    let refused = client.put(&"k".repeat(1_025), &json!(1)).await.expect(400);
    assert_eq!(refused.json["type"], "urn:brink:problem:bad-key");
    // The limit counts bytes, not characters.
    client.put(&"%C3%A9".repeat(512), &json!(1)).await.expect(201);
    client.put(&"%C3%A9".repeat(513), &json!(1)).await.expect(400);
}

#[tokio::test]
async fn a_value_may_have_4_mib_and_no_more() {
    let cluster = Cluster::start(3).await;
    let bytes = |count: usize| vec![b'x'; count];
    let raw = [("content-type", "application/octet-stream")];
    let client = cluster.client(1);
    client.write_bytes("large", bytes(4 << 20)).await.expect(201);
    let accept = [("accept", "application/octet-stream")];
    let read = cluster.client(2).send_settled("GET", "/kv/large/?consistency=strong", &accept, "").await;
    assert_eq!(read.expect(200).body.len(), 4 << 20);
    let refused = client.send("PUT", "/kv/large/", &raw, bytes((4 << 20) + 1)).await.expect(413);
    assert_eq!(refused.json["outcome"], "not_written");
    client.send("PUT", "/kv/large/", &raw, bytes(20 << 20)).await.expect(413);
}

/// What bodies that a node holds still lack, in bytes: one for each second of twice the guard.
const LAST_BYTES: usize = 2 * LIMIT.as_secs() as usize;

/// Sends the head of a request with a large body.
fn announce(port: u16, number: usize, length: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head = format!("PUT /kv-store/v1/kv/held/{number} HTTP/1.1\r\nhost: localhost\r\n{length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream
}

#[tokio::test]
async fn the_bodies_that_a_node_holds_may_have_128_mib_and_no_more() {
    let cluster = Cluster::start(1).await;
    let (client, port) = (cluster.client(0), cluster.nodes[0].port);
    let raw = [("content-type", "application/octet-stream")];
    let large = vec![b'x'; 4 << 20];
    // What is only announced needs little room.
    let announced: Vec<_> = (0..56).map(|number| announce(port, number, "content-length: 4194304")).collect();
    client.write_bytes("large", large.clone()).await;
    drop(announced);
    // An eighth is left to small requests: 28 of these find room. Some say how long they are, some do not.
    let mut held: Vec<_> = (0..28)
        .map(|number| {
            let is_chunked = number % 2 == 0;
            let length = if is_chunked { "transfer-encoding: chunked" } else { "content-length: 4194304" };
            let mut stream = announce(port, number, length);
            stream.write_all(if is_chunked { b"400000\r\n" } else { b"" }).unwrap();
            stream.write_all(&large[LAST_BYTES..]).unwrap();
            stream
        })
        .collect();
    // They go on a little, so that they are not given up.
    let held = tokio::spawn(async move {
        for _ in 0..LAST_BYTES / 2 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            // One that was refused is gone.
            held.retain_mut(|stream| stream.write_all(b"x").is_ok());
        }
    });
    let refused = eventually(LIMIT, "the node holds the bodies", || async {
        let answer = client.send("PUT", "/kv/large/", &raw, large.clone()).await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    let told = (&refused.json["type"], &refused.json["outcome"], refused.header("retry-after"));
    assert_eq!(told, (&json!("urn:brink:problem:busy"), &json!("not_written"), Some("1")), "{}", refused.json);
    client.put("small", &json!(1)).await.expect(201);
    held.abort();
    eventually(LIMIT, "the node has room again", || async {
        (client.send("PUT", "/kv/large/", &raw, large.clone()).await.status < 300).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_batch_may_have_10000_items_and_no_more() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    let items =
        |count: usize| -> Vec<_> { (0..count).map(|n| json!({"key": format!("k{n:05}"), "value": n})).collect() };
    let written = client.post_json("/kv/batch/", &json!({ "items": items(10_000) })).await.expect(200);
    assert_eq!(written.json["count"], 10_000);
    client.post_json("/kv/batch/", &json!({ "items": items(10_001) })).await.expect(413);

    // Pages skip and repeat no key, in both directions.
    for reverse in [false, true] {
        let (mut keys, mut cursor) = (Vec::new(), String::new());
        loop {
            let path = format!("/kv/?limit=999&keys_only=true&reverse={reverse}{cursor}");
            let page = client.get(&path).await.expect(200).json;
            keys.extend(
                page["results"].as_array().unwrap().iter().map(|entry| entry["key"].as_str().unwrap().to_owned()),
            );
            let Some(next) = page["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        if reverse {
            keys.reverse();
        }
        let expected: Vec<_> = (0..10_000).map(|n| format!("k{n:05}")).collect();
        assert_eq!(keys, expected);
    }
}

#[tokio::test]
async fn there_may_be_256_plugins_and_64_hooks_and_no_more() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hooks-0.1.0-transformer.wasm");
    let wasm = std::fs::read(file).unwrap();
    for number in 0..256 {
        client.put_plugin(&format!("p{number}"), wasm.clone()).await.expect(200);
    }
    let refused = client.put_plugin("p256", wasm.clone()).await.expect(409);
    assert_eq!(refused.json["type"], "urn:brink:problem:too-many-plugins");
    client.put_plugin("p0", wasm).await.expect(200);

    let hook = |number: usize| json!({"plugin": "p0", "prefix": format!("{number}/"), "config": {"stamp": number}});
    for number in 0..64 {
        client.put_json(&format!("/hooks/h{number}/"), &hook(number)).await.expect(200);
    }
    let refused = client.put_json("/hooks/h64/", &hook(64)).await.expect(409);
    assert_eq!(refused.json["type"], "urn:brink:problem:too-many-hooks");
    client.put_json("/hooks/h0/", &hook(1)).await.expect(200);
}
