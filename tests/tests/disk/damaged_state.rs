//! A state that is damaged or lost costs a node neither its id nor its log: it is rebuilt, from the log or from another node.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use brink_tests::{Client, Cluster, Options, entries, eventually};
use rustix::process::Signal;
use serde_json::json;

use crate::setup::says;

/// Log entries between snapshots.
const SNAPSHOT_ENTRIES: usize = 50;

/// Number of large values, of a megabyte each.
const LARGE: u64 = 24;

/// Distance of flipped bits, in bytes.
const FLIP_EVERY: usize = 997;

/// Time for a node without a state to stop. The others that it asks for one may take a minute to answer.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// Time for a log to be cut, and for a node to end. Only a guard.
const LIMIT: Duration = Duration::from_secs(60);

fn options() -> Options {
    Options { args: vec!["--snapshot-entries".to_owned(), SNAPSHOT_ENTRIES.to_string()], ..Options::default() }
}

async fn fill(cluster: &Cluster, count: u32) {
    for number in 0..count {
        cluster.client(0).write(&format!("k/{number}"), &json!(number)).await.expect(201);
    }
}

/// The directory of a node's current state.
fn state(data_dir: &Path) -> PathBuf {
    let names = std::fs::read_dir(data_dir).unwrap().map(|entry| entry.unwrap().path());
    let is_state = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        path.is_dir() && (name == "data" || name.starts_with("data-"))
    };
    names.filter(is_state).max().unwrap()
}

/// Flips bits in all files of a directory.
fn flip_bits(dir: &Path) {
    flip_bits_upto(dir, 1.0);
}

/// Flips bits in the first part of each file.
fn flip_bits_upto(dir: &Path, part: f64) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            flip_bits_upto(&path, part);
            continue;
        }
        let mut bytes = std::fs::read(&path).unwrap();
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        bytes.iter_mut().take((end as f64 * part) as usize).step_by(FLIP_EVERY).for_each(|byte| *byte ^= 4);
        std::fs::write(&path, bytes).unwrap();
    }
}

#[tokio::test]
async fn a_node_whose_state_is_lost_gets_it_from_another_under_its_own_id() {
    let mut cluster = Cluster::start_with(3, options()).await;
    fill(&cluster, 300).await;
    cluster.until_logs_are_cut(4 * SNAPSHOT_ENTRIES).await;
    let ids = cluster.member_ids(0).await;
    let damages: [fn(&Path); 3] = [
        |dir| flip_bits(&state(dir)),
        |dir| std::fs::write(dir.join("data.current"), "8 of 9").unwrap(),
        |dir| {
            std::fs::remove_dir_all(state(dir)).unwrap();
        },
    ];
    for (number, damage) in damages.into_iter().enumerate() {
        cluster.nodes[2].kill();
        damage(&cluster.nodes[2].data_dir());
        cluster.nodes[2].start();
        cluster.ready().await;
        let fetched = || cluster.nodes[2].log().matches("the state was fetched from another node").count();
        eventually(LIMIT, "the node says where its state is from", || async { (fetched() > number).then_some(()) })
            .await;
        assert_eq!(fetched(), number + 1, "{}", cluster.nodes[2].log());
        assert_eq!(cluster.member_ids(0).await, ids);
        let expected = entries(cluster.client(0), "k/", "strong").await;
        assert_eq!(entries(cluster.client(2), "k/", "strong").await, expected);
        assert_eq!(expected.len(), 300);
        cluster.client(2).write(&format!("after/{number}"), &json!(1)).await.expect(201);
    }
    let names = std::fs::read_dir(cluster.nodes[2].data_dir()).unwrap();
    let aside = names.filter(|entry| entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("damaged-"));
    assert_eq!(aside.count(), 1);
}

/// Checks the answers of a node that waits for a state.
async fn answers_probes_and_refuses_the_rest(client: &Client) {
    let base = client.url.clone();
    let root = Client::new(base.trim_end_matches("/kv-store/v1"));
    for (client, path) in [(client, "/livez"), (&root, "/livez"), (client, "/livez/")] {
        client.get(path).await.expect(200);
    }
    eventually(LIMIT, "the node says what it waits for", || async {
        let ready = root.get("/readyz").await.expect(503);
        String::from_utf8(ready.body).unwrap().contains("waits for another node").then_some(())
    })
    .await;
    let health = client.get("/health/?any=1").await.expect(200).json;
    assert_eq!(health["status"], "starting");
    assert!(health["reason"].as_str().unwrap().contains("the state of this node is lost"), "{health}");
    let cluster = &health["cluster"];
    assert_eq!((&cluster["can_accept_writes"], &cluster["total_nodes"]), (&json!(false), &json!(3)), "{health}");
    client.get("/metrics").await.expect(200);
    let refused = client.put("k/1", &json!("never")).await.expect(503);
    let told = (&refused.json["type"], &refused.json["outcome"], refused.header("retry-after"));
    assert_eq!(told, (&json!("urn:brink:problem:starting"), &json!("not_written"), Some("1")), "{}", refused.json);
    for path in ["/kv/k/1/?consistency=local", "/kv/", "/cluster/members/"] {
        let refused = client.get(path).await.expect(503);
        assert_eq!(refused.json["type"], "urn:brink:problem:starting", "{path}");
    }
    for (method, path) in [("POST", "/peer/line"), ("POST", "/peer/snapshot"), ("GET", "/peer/snapshot")] {
        let refused = client.send(method, path, &[], "").await.expect(503);
        assert_eq!(refused.header("brink-peer-refusal"), Some("true"), "{method} {path}");
    }
}

/// The first words of the answer to `GET /readyz`. An answer comes in one packet.
fn readiness(connection: &mut TcpStream) -> String {
    connection.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut answer = [0; 4096];
    let length = connection.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..length]).chars().take("HTTP/1.1 200".len()).collect()
}

#[tokio::test]
async fn a_node_that_waits_for_a_state_answers_probes_and_refuses_everything_else() {
    let mut cluster = Cluster::start_with(3, options()).await;
    fill(&cluster, 300).await;
    cluster.until_logs_are_cut(4 * SNAPSHOT_ENTRIES).await;
    cluster.kill_all();
    flip_bits(&state(&cluster.nodes[2].data_dir()));
    cluster.nodes[0].start();
    cluster.nodes[0].lives().await;
    // The first of the others accepts connections and never answers, the second cannot be reached.
    cluster.nodes[0].signal(Signal::STOP);
    for _ in 0..2 {
        cluster.nodes[2].start();
        cluster.nodes[2].lives().await;
        answers_probes_and_refuses_the_rest(cluster.client(2)).await;
        let began = Instant::now();
        assert!(cluster.nodes[2].stop());
        assert!(began.elapsed() < STOP_LIMIT, "{:?}", began.elapsed());
    }
    cluster.nodes[2].start();
    cluster.nodes[2].lives().await;
    let mut kept = TcpStream::connect(("127.0.0.1", cluster.nodes[2].port)).unwrap();
    assert_eq!(readiness(&mut kept), "HTTP/1.1 503");
    cluster.nodes[0].signal(Signal::CONT);
    cluster.nodes[1].start();
    cluster.ready().await;
    assert_eq!(readiness(&mut kept), "HTTP/1.1 200", "a connection outlives the start");
    assert_eq!(entries(cluster.client(2), "k/", "strong").await.len(), 300);
    cluster.client(2).write("k/1", &json!("now")).await.expect(200);
    says(&cluster.nodes[2], &["the state was fetched from another node"]).await;
}

#[tokio::test]
async fn a_node_whose_log_was_never_cut_rebuilds_its_state_from_it() {
    for size in [1, 3] {
        let mut cluster = Cluster::start(size).await;
        fill(&cluster, 50).await;
        let ids = cluster.member_ids(0).await;
        let last = size - 1;
        cluster.nodes[last].kill();
        flip_bits(&state(&cluster.nodes[last].data_dir()));
        cluster.nodes[last].start();
        cluster.ready().await;
        says(&cluster.nodes[last], &["the state of this node is lost", "the log"]).await;
        assert_eq!(cluster.member_ids(0).await, ids);
        assert_eq!(entries(cluster.client(last), "k/", "strong").await.len(), 50);
    }
}

/// A value that is stored apart from its entry.
fn large(number: u64) -> serde_json::Value {
    json!(format!("{number}-{}", "x".repeat(1_000_000)))
}

#[tokio::test]
async fn damage_that_a_read_meets_ends_the_node_and_has_its_state_rebuilt_at_the_next_start() {
    let mut cluster = Cluster::start_with(3, options()).await;
    // As many bytes as no table holds in memory.
    for number in 0..LARGE {
        cluster.client(0).write(&format!("k/{number}"), &large(number)).await.expect(201);
    }
    let ids = cluster.member_ids(0).await;
    // Large values are in files of their own, which are written in the background.
    let dir = cluster.nodes[2].data_dir();
    let blobs = eventually(LIMIT, "values are on disk", || async {
        let mut dirs = (0..8).map(|table| state(&dir).join(format!("keyspaces/{table}/blobs")));
        dirs.find(|dir| std::fs::read_dir(dir).is_ok_and(|mut files| files.next().is_some()))
    })
    .await;
    // Their ends are read when the state is opened.
    flip_bits_upto(&blobs, 0.5);
    for number in 0..LARGE {
        let path = format!("/kv/k/{number}/?consistency=local");
        match cluster.client(2).try_send("GET", &path, &[], "").await {
            Ok(answer) if answer.status == 200 => assert!(answer.json["value"] == large(number), "{path} is wrong"),
            Ok(answer) => assert_eq!(answer.json["type"], "urn:brink:problem:storage-failed"),
            // It has ended.
            Err(_) => {}
        }
    }
    assert_eq!(cluster.nodes[2].ended(LIMIT).await, 3);
    cluster.client(0).write("meanwhile", &json!(1)).await.expect(201);
    assert!(dir.join("data.suspect").exists());

    cluster.nodes[2].start();
    cluster.ready().await;
    says(&cluster.nodes[2], &["all of it is read", "the state of this node is lost"]).await;
    assert_eq!(cluster.member_ids(0).await, ids);
    assert!(!dir.join("data.suspect").exists());
    let aside = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path());
    let aside = aside.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("damaged-"));
    assert!(aside.into_iter().all(|aside| !aside.join("log").exists()), "the log was set aside, too");
    let found = entries(cluster.client(2), "k/", "strong").await;
    assert!((0..LARGE).all(|number| found[&format!("k/{number}")] == large(number)));
}

#[tokio::test]
async fn a_single_node_whose_log_was_cut_refuses_to_start_without_its_state() {
    let mut cluster = Cluster::start_with(1, options()).await;
    fill(&cluster, 300).await;
    cluster.until_logs_are_cut(4 * SNAPSHOT_ENTRIES).await;
    cluster.nodes[0].kill();
    flip_bits(&state(&cluster.nodes[0].data_dir()));
    for _ in 0..2 {
        cluster.nodes[0].start();
        assert_eq!(cluster.nodes[0].ended(LIMIT).await, 3);
        let log = cluster.nodes[0].log();
        let last = log.lines().last().unwrap();
        assert!(last.starts_with("brink: the state of this node is lost: "), "{last}");
        assert!(last.contains("restore a backup"), "{last}");
    }
}
