//! P11: nobody takes part as a node without the cluster's secret, and the secret can be exchanged while the nodes run.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use brink_tests::{Cluster, Options, eventually, undisturbed};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(60);

const OLD: &str = "the-old-secret-of-this-cluster-01";
const NEW: &str = "the-new-secret-of-this-cluster-02";

/// How a node says that another one does not accept it, or the other way round.
const REFUSALS: [&str; 2] = ["does not prove that it is of this cluster", "does not accept the proof of this node"];

/// A cluster of nodes that each have a secret in a file of their own.
fn with_secret(dir: &Path, nodes: usize, secrets: &str) -> (Cluster, Vec<PathBuf>) {
    let mut cluster = Cluster::prepare(nodes, Options::default());
    let files: Vec<PathBuf> = (0..nodes).map(|node| dir.join(format!("secret{node}"))).collect();
    for (node, file) in cluster.nodes.iter_mut().zip(&files) {
        std::fs::write(file, secrets).unwrap();
        node.start_with(&["--cluster-secret-file", file.to_str().unwrap()]);
    }
    (cluster, files)
}

/// Sends a request on a connection, and returns the head of the answer.
fn ask(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    stream.read_exact(&mut vec![0; length.map_or(0, |length| length.parse().unwrap())]).unwrap();
    head
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_who_speaks_the_protocol_of_nodes_gets_nothing() {
    let cluster = Cluster::start(3).await;
    cluster.client(0).write("a", &json!("private")).await.expect(201);
    let members = cluster.client(0).get("/cluster/members/").await.expect(200).json;
    let ids = cluster.client(0).member_ids().await;
    let port = cluster.nodes[0].port;
    let id = &members["members"][0]["id"];
    let head = format!(
        "HTTP/1.1\r\nhost: localhost\r\nbrink-cluster: {}\r\nbrink-index-min: 0\r\ncontent-length: 0\r\nbrink-peer-to: {}\r\n",
        members["cluster"].as_str().unwrap_or("0000000000000001"),
        u64::from_str_radix(id.as_str().unwrap(), 16).unwrap(),
    );
    let line = format!("{head}connection: upgrade\r\nupgrade: brink-line\r\nbrink-peer-version: 1\r\n");
    let requests = [
        format!("POST /kv-store/v1/peer/line {line}"),
        format!("POST /kv-store/v1/peer/snapshot {head}"),
        format!("GET /kv-store/v1/peer/snapshot {head}"),
    ];
    for request in &requests {
        // Without a proof, with an invented one, and with one that belongs to no challenge.
        for proof in ["", "brink-peer-proof: \r\n", "brink-peer-proof: AAAA\r\n"] {
            let answer = ask(&mut connect(port), &format!("{request}{proof}\r\n"));
            assert!(answer.starts_with("HTTP/1.1 401"), "{request}{proof}: {answer}");
        }
        // With the node's own proof, turned back on it.
        let nonce = "A".repeat(43);
        let mut stream = connect(port);
        let greeting = format!("brink-peer-nonce: {nonce}\r\nbrink-peer-url: {}\r\n", cluster.nodes[0].url);
        let challenge =
            ask(&mut stream, &format!("GET /kv-store/v1/peer/challenge HTTP/1.1\r\nhost: localhost\r\n{greeting}\r\n"));
        assert!(challenge.starts_with("HTTP/1.1 200"), "{challenge}");
        let proof = challenge.lines().find(|line| line.starts_with("brink-peer-proof: ")).unwrap();
        let answer = ask(&mut stream, &format!("{request}{proof}\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 401"), "{request}{proof}: {answer}");
    }
    assert_eq!(cluster.client(0).member_ids().await, ids);
    assert_eq!(cluster.client(0).get("/kv/a/?consistency=strong").await.expect(200).json["value"], "private");
    eventually(LIMIT, "the refusal is logged", || async {
        let log = cluster.nodes[0].log();
        log.contains("a caller that does not prove that it is a node of this cluster was refused").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_with_another_secret_stays_outside() {
    let dir = tempfile::tempdir().unwrap();
    let (mut cluster, files) = with_secret(dir.path(), 3, OLD);
    cluster.ready().await;
    cluster.client(0).write("a", &json!("private")).await.expect(201);
    let members = cluster.client(0).member_ids().await;
    cluster.nodes[2].kill();
    // The third node comes back with another secret, and once more with none that anyone knows.
    std::fs::write(&files[2], NEW).unwrap();
    let strange = ["--cluster-secret-file", files[2].to_str().unwrap()];
    for args in [&strange[..], &["--allow-anonymous"]] {
        let logged = cluster.nodes[2].log().len();
        cluster.nodes[2].start_with(args);
        cluster.nodes[2].answers().await;
        cluster.client(1).write("b", &json!("later")).await.expect_written();
        let log = eventually(LIMIT, "the node is refused", || async {
            let log = cluster.nodes[2].log().split_off(logged);
            REFUSALS.iter().any(|refusal| log.contains(refusal)).then_some(log)
        })
        .await;
        assert!(!log.contains(OLD) && !log.contains(NEW), "secrets are not logged");
        cluster.client(2).get("/kv/b/?consistency=local").await.expect(404);
        cluster.client(2).get("/kv/a/?consistency=strong").await.expect(503);
        cluster.nodes[2].kill();
    }
    assert_eq!(cluster.client(0).member_ids().await, members);
    // With the secret it is what it was.
    std::fs::write(&files[2], OLD).unwrap();
    cluster.nodes[2].start_with(&strange);
    cluster.nodes[2].ready().await;
    assert_eq!(cluster.client(2).settled("/kv/b/?consistency=strong").await.expect(200).json["value"], "later");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_answers_at_the_url_of_a_new_member_is_not_shown() {
    let cluster = Cluster::start(1).await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/kv-store/v1", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            // The caller may have gone.
            let _ = stream.read(&mut request);
            let _ = stream.write_all(b"HTTP/1.1 500 banner\r\ncontent-length: 8\r\n\r\nintimate");
        }
    });
    let (json_type, body) = (("content-type", "application/json"), json!({ "url": url, "role": "voter" }).to_string());
    let refused = cluster.client(0).send("POST", "/cluster/members/", &[json_type], body).await.expect(409).json;
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.contains("does not prove that it is of this cluster"), "{detail}");
    assert!(!detail.contains("500") && !detail.contains("banner") && !detail.contains("intimate"), "{detail}");
    drop(server);
}

/// Writes to every node until it is told to stop, and says which write failed.
async fn every_write_succeeds(cluster: &Cluster, stop: &AtomicBool) -> Result<(), String> {
    for number in 0_u32.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        for (node, key) in cluster.nodes.iter().zip(["a", "b", "c"]) {
            let answer = node.client.put(key, &json!(number)).await;
            if answer.status >= 300 {
                return Err(format!("write {number} to {key}: {}", answer.json));
            }
        }
    }
    Ok(())
}

/// Replaces the secrets on every node, and waits until each has read them.
async fn replace(cluster: &Cluster, files: &[PathBuf], secrets: &str, round: usize) {
    for (node, file) in cluster.nodes.iter().zip(files) {
        let new = file.with_extension("new");
        std::fs::write(&new, secrets).unwrap();
        std::fs::rename(&new, file).unwrap();
        eventually(LIMIT, "the secrets are read again", || async {
            (node.log().matches("cluster secrets were read again").count() >= round).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_is_exchanged_in_three_rounds_without_a_failed_write() {
    undisturbed(async || {
        let dir = tempfile::tempdir().unwrap();
        let (cluster, files) = with_secret(dir.path(), 3, OLD);
        cluster.healthy().await;
        let (cluster, stop) = (Arc::new(cluster), Arc::new(AtomicBool::new(false)));
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let (cluster, stop) = (cluster.clone(), stop.clone());
                tokio::spawn(async move { every_write_succeeds(&cluster, &stop).await })
            })
            .collect();
        let rounds = [format!("{OLD}\n{NEW}"), format!("{NEW}\n{OLD}"), NEW.to_owned()];
        for (round, secrets) in (1..).zip(rounds) {
            replace(&cluster, &files, &secrets, round).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap()?;
        }
        // Who has only the old one is a stranger now.
        let mut late = Cluster::prepare(1, Options::default());
        late.nodes[0].knows(&[cluster.nodes[0].url.clone()]);
        std::fs::write(files[0].with_extension("late"), OLD).unwrap();
        late.nodes[0].start_with(&["--cluster-secret-file", files[0].with_extension("late").to_str().unwrap()]);
        eventually(LIMIT, "the node is refused", || async {
            late.nodes[0].log().contains("does not prove that it is of this cluster").then_some(())
        })
        .await;
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_node_whose_secret_cannot_be_read_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    for (text, reason) in
        [(None, "cannot be read"), (Some(""), "it is empty"), (Some("short"), "each line must have 32")]
    {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let mut cluster = Cluster::prepare(1, Options::default());
        cluster.nodes[0].start_with(&["--cluster-secret-file", file.to_str().unwrap()]);
        assert_eq!(cluster.nodes[0].ended(LIMIT).await, 2);
        let log = cluster.nodes[0].log();
        assert!(log.contains("--cluster-secret-file: ") && log.contains(reason), "{log}");
    }
}
