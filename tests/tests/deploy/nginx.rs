//! The nginx configuration in `deploy/`, run by Debian's nginx in front of three nodes.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use brink_tests::{Client, Cluster, Stream, eventually};
use serde_json::json;
use tokio::net::TcpSocket;

/// Number of writes and reads before and after each loss of a node.
const REQUESTS: usize = 150;

/// A running nginx. Dropping it stops the process.
struct Nginx {
    child: Child,
    port: u16,
    client: Client,
    dir: tempfile::TempDir,
}

impl Nginx {
    /// Starts nginx with the unchanged configuration, except for the nodes' addresses and its own port.
    fn start(cluster: &Cluster) -> Self {
        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nginx/brink.conf");
        let mut config = std::fs::read_to_string(config).unwrap();
        for (number, node) in cluster.nodes.iter().enumerate() {
            let name = format!("node{}:8000", number + 1);
            assert!(config.contains(&name), "{name} is not in the configuration");
            config = config.replace(&name, &format!("127.0.0.1:{}", node.port));
        }
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert!(config.contains("listen 80;"));
        let config = config.replace("listen 80;", &format!("listen 127.0.0.1:{port};"));

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display().to_string();
        std::fs::write(dir.path().join("brink.conf"), config).unwrap();
        let temp = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temp: String = temp.iter().map(|what| format!("{what}_temp_path {path}/{what};\n")).collect();
        let main = format!(
            "daemon off;\nuser root;\npid {path}/pid;\nerror_log {path}/error.log info;\nevents {{}}\n\
             http {{\naccess_log off;\n{temp}include {path}/brink.conf;\n}}\n"
        );
        std::fs::write(dir.path().join("nginx.conf"), main).unwrap();
        let mut command = Command::new("nginx");
        command.args(["-p", &path, "-c", &format!("{path}/nginx.conf"), "-e", &format!("{path}/error.log")]);
        let child = command.stdin(Stdio::null()).spawn().expect("nginx is not installed; run `cargo xtask test`");
        Self { child, port, client: Client::new(&format!("http://127.0.0.1:{port}/kv-store/v1")), dir }
    }

    async fn answers(&self) {
        eventually(Duration::from_secs(60), "nginx answers", || async {
            self.client.try_send("GET", "/readyz", &[], "").await.ok().filter(|answer| answer.status == 200)
        })
        .await;
    }

    fn error_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("error.log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // On SIGTERM, the master process ends its workers.
        let pid = rustix::process::Pid::from_child(&self.child);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn clients_behind_nginx_do_not_notice_the_loss_of_a_node() {
    let mut cluster = Cluster::start(3).await;
    let nginx = Nginx::start(&cluster);
    let client = nginx.client.clone();
    nginx.answers().await;
    // The first round loses no node, the second one a follower, the third one the leader.
    for round in 0..3 {
        if round > 0 {
            let leader = cluster.leader().await;
            let lost = if round == 1 { (leader + 1) % 3 } else { leader };
            cluster.nodes[lost].kill();
        }
        for number in 0..REQUESTS {
            let key = format!("r{round}/{number}");
            let written = client.put(&key, &json!(number)).await;
            assert!(written.status < 300, "{key}: {written:?}\n{}", nginx.error_log());
            // Strong: other reads are local ones where the leader is slow to answer.
            let read = client.settled(&format!("/kv/{key}/?consistency=strong")).await;
            assert_eq!((read.status, &read.json["value"]), (200, &json!(number)), "{}", nginx.error_log());
        }
        for node in cluster.nodes.iter_mut().filter(|node| !node.is_running()) {
            node.start();
        }
        cluster.ready().await;
    }
    let refused = client.send("POST", "/peer/hello", &[], "").await;
    assert_eq!(refused.status, 404, "clients must not reach the peer protocol");
}

#[tokio::test]
async fn a_stream_of_writes_passes_nginx_line_by_line() {
    let cluster = Cluster::start(3).await;
    let nginx = Nginx::start(&cluster);
    nginx.answers().await;
    let mut stream = Stream::open(nginx.port);
    for number in 0..3 {
        stream.send(&format!("{{\"key\":\"{number}\",\"value\":1}}\n"));
        assert_eq!(stream.line().unwrap()["key"], number.to_string(), "{}", nginx.error_log());
    }
    stream.end();
    assert_eq!(stream.line(), None);
}

/// The status that a client gets which is no operator, for a path that is sent as it is.
async fn status(port: u16, method: &str, path: &str, body: &str) -> u16 {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 2], 0).into()).unwrap();
    let mut stream = socket.connect(([127, 0, 0, 1], port).into()).await.unwrap().into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let head = "Host: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json";
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let line = String::from_utf8_lossy(&answer);
    line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{path}: {line}"))
}

#[tokio::test]
async fn only_operators_reach_more_than_keys() {
    let cluster = Cluster::start(3).await;
    let nginx = Nginx::start(&cluster);
    nginx.answers().await;
    // A key that looks like another path to nginx.
    for path in ["/kv/a/", "/kv/..%2Fplugins/"] {
        let path = format!("/kv-store/v1{path}");
        assert_eq!(status(nginx.port, "PUT", &path, r#"{"value":1}"#).await, 201, "{path}");
        assert_eq!(status(nginx.port, "GET", &format!("{path}?consistency=strong"), "").await, 200, "{path}");
    }
    for path in ["/kv", "/kv/?limit=1", "/health/", "/health", "/livez", "/readyz/"] {
        assert_eq!(status(nginx.port, "GET", &format!("/kv-store/v1{path}"), "").await, 200, "{path}");
    }
    assert_eq!(status(nginx.port, "GET", "/readyz", "").await, 200);

    let closed = ["/metrics", "/kv-store/schema/", "/", "//kv-store/v1/kv/a/"].map(str::to_owned);
    let paths = ["/plugins/", "/plugins/p/", "/hooks", "/registry/lines/", "/cluster/members/", "/metrics", "/tokens/"];
    // They are something else to nginx than to a node, or to somebody who reads them.
    let odd = ["/plugins/../kv/a/", "/%70lugins/", "//plugins/", "/kv%2F..%2Fplugins/", "/kvs/", "/healthy/"];
    let below_base = paths.iter().chain(&odd).map(|path| format!("/kv-store/v1{path}"));
    for path in closed.into_iter().chain(below_base) {
        for method in ["GET", "POST", "DELETE"] {
            assert_eq!(status(nginx.port, method, &path, "").await, 403, "{method} {path}");
        }
    }
    for path in ["/peer/hello", "/peer", "/peer/?a"] {
        assert_eq!(status(nginx.port, "POST", &format!("/kv-store/v1{path}"), "").await, 404, "{path}");
    }
    // The client of the tests is on the list.
    for path in ["/plugins/", "/hooks/", "/cluster/members/", "/metrics"] {
        nginx.client.get(path).await.expect(200);
    }
}
