//! `POST /kv/stream/`: many writes on one connection, each answered by a line, in order.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use brink_tests::{Cluster, Stream};
use serde_json::{Value, json};

/// Time for the next line of an answer. Only a guard.
const LIMIT: Duration = Duration::from_secs(60);

/// More lines than a node takes without an answer having been read.
const MANY: usize = 40_000;

#[tokio::test]
async fn each_line_is_a_write_of_its_own_and_answered_in_order() {
    let cluster = Cluster::start(3).await;
    let mut stream = Stream::open(cluster.nodes[1].port);
    stream.send("{\"key\":\"a\",\"value\":[1, 2]}\n");
    let first = stream.line().unwrap();
    assert_eq!((&first["key"], &first["version"], &first["value"]), (&json!("a"), &json!(1), &Value::Null));
    // Lines may be divided anywhere, and empty ones are skipped.
    stream.send("\n{\"key\":\"b\",\"value_base64\":\"AAE=\",\"content");
    stream.send("_type\":\"image/png\"}\nnonsense\r\n{\"key\":\"a\",\"value\":2,\"if_revision\":99}\n{\"op\":\"delete\",\"key\":\"a\"}\n");
    stream.send("{\"op\":\"delete\",\"key\":\"a\"}\n{\"key\":\"\",\"value\":1}\n{\"key\":\"c\",\"value\":3}");
    stream.end();
    assert_eq!(stream.line().unwrap()["key"], "b");
    let bad = stream.line().unwrap();
    let told = (&bad["type"], &bad["status"], &bad["outcome"], &bad["line"]);
    assert_eq!(told, (&json!("urn:brink:problem:bad-body"), &json!(400), &json!("not_written"), &json!(4)));
    assert_eq!(bad["trace_id"].as_str().unwrap().len(), 32);
    let failed = stream.line().unwrap();
    assert_eq!(
        (&failed["status"], &failed["line"], &failed["current_revision"]),
        (&json!(412), &json!(5), &first["revision"])
    );
    assert_eq!(stream.line().unwrap(), json!({"key": "a", "deleted": true, "existed": true}));
    assert_eq!(stream.line().unwrap(), json!({"key": "a", "deleted": true, "existed": false}));
    assert_eq!(stream.line().unwrap()["type"], "urn:brink:problem:bad-key");
    assert_eq!(stream.line().unwrap()["key"], "c");
    assert_eq!(stream.line(), None);

    let client = cluster.client(0);
    assert_eq!(client.settled("/kv/c/?consistency=strong").await.expect(200).json["value"], 3);
    let image = client.send_settled("GET", "/kv/b/?consistency=strong", &[("accept", "image/png")], "").await;
    assert_eq!(image.expect(200).body, [0, 1]);
    client.settled("/kv/a/?consistency=strong").await.expect(404);
}

/// As curl does with a body of unknown length, and goes on after a second without an answer.
#[tokio::test]
async fn a_client_that_asks_before_it_sends_is_told_to() {
    let cluster = Cluster::start(1).await;
    let mut tcp = TcpStream::connect(("127.0.0.1", cluster.nodes[0].port)).unwrap();
    tcp.set_read_timeout(Some(LIMIT)).unwrap();
    let head = "POST /kv-store/v1/kv/stream HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n\
                content-length: 21\r\nexpect: 100-continue\r\n\r\n";
    tcp.write_all(head.as_bytes()).unwrap();
    let mut lines = BufReader::new(tcp.try_clone().unwrap()).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), "HTTP/1.1 100 Continue");
    tcp.write_all(b"{\"key\":\"a\",\"value\":1}").unwrap();
    assert!(lines.any(|line| line.starts_with("{\"key\":\"a\",\"version\":1,")));
}

#[tokio::test]
async fn lines_of_one_key_are_applied_in_their_order() {
    let cluster = Cluster::start(3).await;
    let mut stream = Stream::open(cluster.nodes[2].port);
    let lines: String = (0..50)
        .map(|round| format!("{{\"key\":\"k\",\"value\":{round}}}\n{{\"key\":\"{round}\",\"value\":0}}\n"))
        .collect();
    stream.send(&lines);
    stream.end();
    let versions: Vec<Value> = (0..100)
        .map(|_| stream.line().unwrap())
        .filter(|line| line["key"] == "k")
        .map(|line| line["version"].clone())
        .collect();
    assert_eq!(versions, (1..=50).map(|version| json!(version)).collect::<Vec<_>>());
    assert_eq!(cluster.client(0).settled("/kv/k/?consistency=strong").await.expect(200).json["value"], 49);
}

#[tokio::test]
async fn a_named_line_is_applied_once() {
    let cluster = Cluster::start(1).await;
    let line = "{\"key\":\"a\",\"value\":1,\"idempotency_key\":\"one\"}\n";
    let send = || {
        let mut stream = Stream::open(cluster.nodes[0].port);
        stream.send(line);
        stream.end();
        stream.line().unwrap()
    };
    let (first, again) = (send(), send());
    assert_eq!((&first["repeated"], &again["repeated"]), (&Value::Null, &json!(true)));
    assert_eq!((&first["revision"], &first["version"]), (&again["revision"], &again["version"]));
    let mut stream = Stream::open(cluster.nodes[0].port);
    stream.send(&line.replace("one", ""));
    let refused = stream.line().unwrap();
    assert_eq!(refused["type"], "urn:brink:problem:bad-body");
    assert!(refused["detail"].as_str().unwrap().contains("idempotency_key"), "{refused}");
}

#[tokio::test]
async fn a_client_that_reads_no_answers_is_not_read_further() {
    let cluster = Cluster::start(1).await;
    let mut stream = Stream::open(cluster.nodes[0].port);
    // Answers name their keys. The buffers of sockets hold some megabytes.
    let key = |number: usize| format!("{number}/{}", "k".repeat(1_000));
    // Longer than a busy machine stands still, and shorter than the node waits for its client.
    stream.tcp.get_ref().set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut sent = 0;
    while sent < MANY {
        let text: String =
            (sent..sent + 100).map(|number| format!("{{\"key\":\"{}\",\"value\":0}}\n", key(number))).collect();
        if stream.tcp.get_mut().write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).is_err() {
            break;
        }
        sent += 100;
    }
    assert!(sent < MANY, "the node took {sent} lines");
    // It lives, and answers what it took.
    cluster.client(0).write("other", &json!(1)).await.expect(201);
    for number in 0..1_000 {
        assert_eq!(stream.line().unwrap()["key"], key(number));
    }
}

/// The client does not look at the answers before it has sent all.
#[tokio::test]
async fn a_line_that_is_too_long_ends_the_stream_after_the_lines_before() {
    let cluster = Cluster::start(1).await;
    let mut stream = Stream::open(cluster.nodes[0].port);
    stream.send("{\"key\":\"a\",\"value\":1}\n");
    let piece = "x".repeat(1 << 20);
    for _ in 0..12 {
        stream.send(&piece);
    }
    assert_eq!(stream.line().unwrap()["key"], "a");
    let last = stream.line().unwrap();
    assert_eq!((&last["type"], &last["line"]), (&json!("urn:brink:problem:too-large"), &json!(2)), "{last}");
    assert_eq!(stream.line(), None);
    // What it held is free again.
    cluster.client(0).write("other", &json!(1)).await.expect(201);
}

#[tokio::test]
async fn a_node_that_stops_answers_what_it_took_and_says_why_it_takes_no_more() {
    let mut cluster = Cluster::start(1).await;
    let mut stream = Stream::open(cluster.nodes[0].port);
    stream.send("{\"key\":\"a\",\"value\":1}\n");
    assert_eq!(stream.line().unwrap()["key"], "a");
    let stopped = std::thread::scope(|scope| {
        let stopping = scope.spawn(|| cluster.nodes[0].stop());
        let last = stream.line().unwrap();
        assert_eq!((&last["type"], &last["outcome"]), (&json!("urn:brink:problem:stopping"), &json!("not_written")));
        assert_eq!(stream.line(), None);
        let _ = stream.tcp.get_ref().shutdown(Shutdown::Both);
        stopping.join().unwrap()
    });
    assert!(stopped);
}
