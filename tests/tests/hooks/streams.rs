//! Hooks judge each line of a stream.

use std::io::Write as _;
use std::time::Duration;

use brink_tests::{Client, Cluster, Stream, Watch, eventually, plugin_wasm};
use serde_json::json;

use crate::was_cut_off;

/// Keys that are written twice.
const KEYS: usize = 8;

/// Bytes of the first value of each key, whose hook takes much longer than that of the second.
const LARGE: usize = 900_000;

/// Attempts at what a busy machine may not do in time.
const ATTEMPTS: usize = 3;

/// Time for the lines of all streams.
const LIMIT: Duration = Duration::from_secs(60);

/// Streams whose clients read nothing, and more lines than the node takes from one.
const STALLED: usize = 2;
const LINES_MAX: usize = 40_000;

async fn set_hook(client: &Client) {
    client.put_plugin("normalize", plugin_wasm("normalize")).await.expect(200);
    let hook = json!({"plugin": "normalize", "prefix": "k/", "config": {"trim": ["/a"]}, "deadline_ms": 10_000});
    client.put_json("/hooks/normalize/", &hook).await.expect(200);
}

#[tokio::test]
async fn lines_of_one_key_are_applied_in_their_order_however_long_their_hooks_take() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    set_hook(client).await;
    for attempt in 0..ATTEMPTS {
        let machine = Watch::start();
        let mut stream = Stream::open(cluster.nodes[0].port);
        for key in 0..KEYS {
            for text in [format!(" {} ", "x".repeat(LARGE)), " last ".to_owned()] {
                let line = json!({"key": format!("k/{attempt}/{key}"), "value": {"a": text}});
                stream.send(&(line.to_string() + "\n"));
            }
        }
        stream.end();
        let lines: Vec<_> = (0..2 * KEYS).map(|_| stream.line().unwrap()).collect();
        // A machine that stands still may not have done a line in time.
        if lines.iter().any(|line| line["type"].is_string()) {
            assert!(
                lines.iter().all(|line| line["version"].is_u64() || line["status"].as_u64() >= Some(500)),
                "{lines:?}"
            );
            assert!(machine.has_stood_still(), "{lines:?}");
            continue;
        }
        let versions: Vec<_> = lines.iter().map(|line| line["version"].as_u64()).collect();
        assert_eq!(versions, [Some(1), Some(2)].repeat(KEYS));
        for key in 0..KEYS {
            let path = format!("/kv/k/{attempt}/{key}/");
            assert_eq!(client.settled(&path).await.expect(200).json["value"], json!({"a": "last"}));
        }
        return;
    }
    panic!("lines were late each time");
}

/// Its writes go on although nobody takes their answers, so they leave the places where hooks run to others.
#[tokio::test]
async fn clients_that_read_no_answers_do_not_keep_hooks_from_others() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    set_hook(client).await;
    let mut streams: Vec<Stream> = (0..STALLED).map(|_| Stream::open(cluster.nodes[0].port)).collect();
    for (stream, number) in streams.iter_mut().zip(0..) {
        stream.tcp.get_ref().set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        for line in 0.. {
            // Answers name their keys, and fill the buffers of the sockets.
            let key = format!("k/{number}/{line}/{}", "k".repeat(900));
            let text = json!({"key": key, "value": {"a": " x "}}).to_string() + "\n";
            if stream.tcp.get_mut().write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).is_err() {
                break;
            }
            assert!(line < LINES_MAX, "the node reads on");
        }
    }
    // Until the lines that were taken are written, and the streams stand still.
    let probe = async || client.put("probe", &json!(1)).await.json["revision"].as_u64();
    eventually(LIMIT, "the streams stand still", || async {
        let before = probe().await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        (before.is_some() && probe().await == before.map(|before| before + 1)).then_some(())
    })
    .await;
    for number in 0..50 {
        let (key, value) = (format!("k/{number}"), json!({"a": " y "}));
        let mut written = client.put(&key, &value).await;
        // Not for as long as `write` would: the node cuts off clients that take no answers for a minute.
        for _ in 1..ATTEMPTS {
            if was_cut_off(&written) {
                written = client.put(&key, &value).await;
            }
        }
        written.expect_written();
    }
}
