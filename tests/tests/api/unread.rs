//! A request that is refused before its body was read is answered all the same, and its connection goes on.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use brink_tests::Cluster;

/// Only a guard.
const GUARD: Duration = Duration::from_secs(60);

/// More than the buffers of a connection hold.
const BODY_BYTES: usize = 32 * 1024 * 1024;

/// Requests that need no body to be refused, with the status of the refusal.
const REFUSED: [(&str, &str, u16); 9] = [
    ("PUT /kv-store/v1/kv/a/?unknown=1", "", 400),
    ("PUT /kv-store/v1/kv/a/", "content-encoding: gzip\r\n", 415),
    ("PUT /kv-store/v1/kv/a/", "origin: http://example.org\r\n", 403),
    ("PUT /kv-store/v1/kv/a/", "", 413),
    ("PUT /kv-store/v1/kv/%ff/", "", 400),
    ("POST /kv-store/v1/kv/batch/", "content-type: text/plain\r\n", 415),
    ("POST /kv-store/v1/nothing/", "", 404),
    ("PATCH /kv-store/v1/kv/a/", "", 405),
    ("PUT /kv-store/v1/plugins/a/", "brink-user: \r\n", 400),
];

/// Reads one answer.
fn answer(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&head)));
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    stream.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
    head
}

#[tokio::test]
async fn a_refusal_arrives_and_its_connection_goes_on() {
    let cluster = Cluster::start(1).await;
    let port = cluster.nodes[0].port;
    let body = vec![b'x'; BODY_BYTES];
    let exchange = move || {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(GUARD)).unwrap();
        for (line, headers, status) in REFUSED {
            let head = format!("{line} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {BODY_BYTES}\r\n\r\n");
            let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
            sent.unwrap_or_else(|error| panic!("{line} {headers}: {error}"));
            let head = answer(&mut stream);
            assert!(head.starts_with(&format!("http/1.1 {status}")), "{line} {headers}: {head}");
        }
    };
    tokio::task::spawn_blocking(exchange).await.unwrap();
}
