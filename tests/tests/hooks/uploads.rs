//! Large plugins on their way: an upload that ends early leaves nothing, and a node takes only so many at once.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use brink_tests::{Answer, Client, Cluster, eventually, plugin_wasm};
use serde_json::json;

/// How many uploads a node takes at once.
const UPLOADS_MAX: usize = 4;

/// How much is stored at once, and an upload is seen by.
const PIECE_BYTES: usize = 1024 * 1024;

const LIMIT: Duration = Duration::from_secs(30);

/// The plugin `normalize` with so many pieces of bytes in it that mean nothing.
fn padded(pieces: usize) -> Vec<u8> {
    let mut component = plugin_wasm("normalize");
    let padding: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(pieces * PIECE_BYTES).collect();
    // A custom section: its number, its length, and its name with the length of that.
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

/// What the log of a node holds.
async fn log_entries(client: &Client) -> u64 {
    let metrics = client.get("/metrics").await.expect(200).body;
    let metrics = String::from_utf8(metrics).unwrap();
    let value = metrics.lines().find_map(|line| line.strip_prefix("brink_log_entries"));
    let value = value.and_then(|rest| rest.split_whitespace().last()).unwrap_or("0");
    value.parse::<f64>().unwrap() as u64
}

/// Begins an upload, and waits until another node has some of its pieces.
async fn begin(uploader: &Client, witness: &Client, component: &[u8]) -> tokio::task::JoinHandle<Option<Answer>> {
    // The figure is some moments old: what it shows must not be what came before.
    let before = eventually(LIMIT, "nothing else is written", || async {
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

/// The plugin is what it should be, and judges.
async fn assert_judges(cluster: &Cluster, digest: &str) {
    let hook = json!({"plugin": "padded", "prefix": "n/", "config": {"trim": [""]}});
    let bound = cluster.client(0).put_json("/hooks/h/", &hook).await.expect(200);
    assert_eq!(bound.json["digest"], digest);
    for node in &cluster.nodes {
        assert!(node.client.put("n/a", &json!(" x ")).await.status < 300);
        assert_eq!(node.client.get("/kv/n/a/").await.expect(200).json["value"], "x");
    }
}

#[tokio::test]
async fn an_upload_whose_node_dies_leaves_no_plugin_and_can_be_made_again_anywhere() {
    let mut cluster = Cluster::start(3).await;
    let component = padded(48);
    let uploader = (cluster.leader().await + 1) % 3;
    let other = (uploader + 1) % 3;
    let upload = begin(cluster.client(uploader), cluster.client(other), &component).await;
    cluster.nodes[uploader].kill();
    assert!(upload.await.unwrap().is_none(), "the connection broke before there was an answer");
    assert_eq!(cluster.client(other).get("/plugins/").await.expect(200).json["plugins"], json!([]));
    let uploaded = cluster.client(other).put_plugin("padded", component).await.expect(200);
    cluster.nodes[uploader].start();
    cluster.ready().await;
    assert_judges(&cluster, uploaded.json["digest"].as_str().unwrap()).await;
}

#[tokio::test]
async fn an_upload_goes_on_when_the_leader_dies() {
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
async fn a_node_takes_only_so_many_uploads_at_once() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client(0);
    let address = client.url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    let begin = |number| {
        let mut connection = TcpStream::connect(address).unwrap();
        let head = format!("PUT /kv-store/v1/plugins/slow-{number}/ HTTP/1.1\r\nhost: {address}\r\n");
        connection.set_read_timeout(Some(LIMIT)).unwrap();
        connection.write_all(format!("{head}content-length: 1000\r\nexpect: 100-continue\r\n\r\n").as_bytes()).unwrap();
        // The node asks for the body once it has room for it.
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
    eventually(LIMIT, "there is room again", || async {
        (client.put_plugin("q", plugin_wasm("normalize")).await.status == 200).then_some(())
    })
    .await;
}
