//! P9: nobody is waited for without end.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use brink_tests::Cluster;
use serde_json::json;

/// Twice the longest limit of what is sent here. Only a guard.
const GUARD: Duration = Duration::from_secs(60);

const HEAD: &str = "POST /kv-store/v1/kv/batch/ HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";

/// Sends a part of a request, and returns all that the node answers until it ends the connection.
fn answer_to(port: u16, part: String) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(GUARD)).unwrap();
    stream.write_all(part.as_bytes()).unwrap();
    let mut answer = Vec::new();
    // A connection that is cut is an error, but not that of the timeout.
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_request_that_does_not_arrive_is_given_up() {
    let cluster = Cluster::start(1).await;
    let port = cluster.nodes[0].port;
    let parts = [HEAD.to_owned(), format!("{HEAD}content-length: 100\r\n\r\n{{\"items\":"), "GET".to_owned()];
    let parts = parts.map(|part| tokio::task::spawn_blocking(move || answer_to(port, part)));
    cluster.client(0).put("others", &json!(1)).await.expect(201);
    let [head, body, start] = parts;
    assert_eq!((head.await.unwrap(), start.await.unwrap()), (String::new(), String::new()));
    let answer = body.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(
        answer.contains("urn:brink:problem:request-timeout") && answer.contains(r#""outcome":"not_written""#),
        "{answer}"
    );
}
