//! Uploads of large plugins: an interrupted upload leaves nothing, and a node limits concurrent uploads.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use brink_tests::{Answer, Client, Cluster, eventually, plugin_wasm};
use serde_json::json;

use crate::repeated;

/// Maximum number of concurrent uploads to a node.
const UPLOADS_MAX: usize = 4;

/// Size of the pieces in which a plugin is stored, in bytes.
const PIECE_BYTES: usize = 1024 * 1024;

/// Attempts to kill a node during an upload.
const ATTEMPTS: usize = 3;

/// Time limit of every wait. Only a guard: compilers have a low priority.
const LIMIT: Duration = Duration::from_secs(120);

/// The plugin `normalize`, padded by a number of pieces.
fn padded(pieces: usize) -> Vec<u8> {
    let mut component = plugin_wasm("normalize");
    let padding: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(pieces * PIECE_BYTES).collect();
    // A custom section: its id, its length in LEB128, its name with the length of the name.
    component.push(0);
    let mut length = padding.len() + 4;
    while length >= 0x80 {
        component.push(length as u8 | 0x80);
        length >>= 7;
    }
    component.push(length as u8);
    component.extend(b"\x03pad");
    component.extend(padding);
    component
}

/// Number of entries in a node's log.
async fn log_entries(client: &Client) -> u64 {
    let metrics = client.get("/metrics").await.expect(200).body;
    let metrics = String::from_utf8(metrics).unwrap();
    let value = metrics.lines().find_map(|line| line.strip_prefix("brink_log_entries"));
    let value = value.and_then(|rest| rest.split_whitespace().last()).unwrap_or("0");
    value.parse::<f64>().unwrap() as u64
}

/// Starts an upload, and waits until another node has some of its pieces.
async fn begin(uploader: &Client, witness: &Client, component: &[u8]) -> tokio::task::JoinHandle<Option<Answer>> {
    // The metric is updated with a delay. Wait until it is stable.
    let before = eventually(LIMIT, "the log does not grow", || async {
        let before = log_entries(witness).await;
        tokio::time::sleep(Duration::from_millis(600)).await;
        (log_entries(witness).await == before).then_some(before)
    })
    .await;
    let (uploader, body) = (uploader.clone(), component.to_vec());
    let headers = [("content-type", "application/wasm")];
    let upload = tokio::spawn(async move { uploader.try_send("PUT", "/plugins/padded/", &headers, body).await.ok() });
    eventually(LIMIT, "pieces arrive", || async { (log_entries(witness).await >= before + 3).then_some(()) }).await;
    upload
}

/// Checks that the plugin has this digest and judges on every node.
async fn assert_judges(cluster: &Cluster, digest: &str) {
    let hook = json!({"plugin": "padded", "prefix": "n/", "config": {"trim": [""]}, "deadline_ms": 5_000});
    let bound = repeated(|| cluster.client(0).put_json("/hooks/h/", &hook)).await.expect(200);
    assert_eq!(bound.json["digest"], digest);
    for node in &cluster.nodes {
        node.client.write("n/a", &json!(" x ")).await.expect_written();
        assert_eq!(node.client.settled("/kv/n/a/?consistency=strong").await.expect(200).json["value"], "x");
    }
}

#[tokio::test]
async fn an_upload_to_a_node_that_dies_leaves_no_plugin_and_can_be_repeated_on_any_node() {
    let mut cluster = Cluster::start(3).await;
    let mut attempt = 0;
    let (uploader, other, component) = loop {
        let component = padded(48);
        let uploader = (cluster.leader().await + 1) % 3;
        let other = (uploader + 1) % 3;
        let upload = begin(cluster.client(uploader), cluster.client(other), &component).await;
        cluster.nodes[uploader].kill();
        let is_answered = upload.await.unwrap().is_some();
        if !is_answered {
            break (uploader, other, component);
        }
        attempt += 1;
        assert!(attempt < ATTEMPTS, "the uploads were answered before the kill");
        cluster.nodes[uploader].start();
        cluster.ready().await;
        repeated(|| cluster.client(other).delete("/plugins/padded/")).await;
    };
    assert_eq!(cluster.client(other).settled("/plugins/").await.expect(200).json["plugins"], json!([]));
    let uploaded = repeated(|| cluster.client(other).put_plugin("padded", component.clone())).await.expect(200);
    cluster.nodes[uploader].start();
    cluster.ready().await;
    assert_judges(&cluster, uploaded.json["digest"].as_str().unwrap()).await;
}

#[tokio::test]
async fn an_upload_continues_after_the_loss_of_the_leader() {
    let mut cluster = Cluster::start(3).await;
    let component = padded(48);
    let leader = cluster.leader().await;
    let (uploader, witness) = ((leader + 1) % 3, (leader + 2) % 3);
    let upload = begin(cluster.client(uploader), cluster.client(witness), &component).await;
    cluster.nodes[leader].kill();
    let uploaded = upload.await.unwrap().unwrap().expect(200);
    cluster.nodes[leader].start();
    cluster.ready().await;
    assert_judges(&cluster, uploaded.json["digest"].as_str().unwrap()).await;
}

#[tokio::test]
async fn a_node_limits_concurrent_uploads() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    let address = client.url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let begin = |number| {
        let mut connection = TcpStream::connect(address).unwrap();
        let head = format!("PUT /kv-store/v1/plugins/slow-{number}/ HTTP/1.1\r\nhost: {address}\r\n");
        connection.set_read_timeout(Some(LIMIT)).unwrap();
        connection.write_all(format!("{head}content-length: 1000\r\nexpect: 100-continue\r\n\r\n").as_bytes()).unwrap();
        // The node asks for the body once it accepts the upload.
        let mut answer = [0; 12];
        connection.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 100");
        connection
    };
    let mut slow: Vec<TcpStream> = (0..UPLOADS_MAX).map(begin).collect();
    let refused = client.put_plugin("p", plugin_wasm("normalize")).await.expect(503);
    assert_eq!(refused.json["type"], "urn:brink:problem:busy");
    assert_eq!(refused.json["outcome"], "not_written");
    assert_eq!(refused.header("retry-after"), Some("1"));
    slow.pop();
    eventually(LIMIT, "an upload is accepted again", || async {
        (client.put_plugin("q", plugin_wasm("normalize")).await.status == 200).then_some(())
    })
    .await;
}
