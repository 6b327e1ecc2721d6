//! Rights: each method of each route serves those who have its right, and nobody else. The table of rights is that of
//! docs/security.md, which a test of the router compares with the code.

use std::collections::BTreeSet;

use brink_tests::{Answer, Client, Cluster, Options};
use serde_json::{Value, json};

/// What `--anonymous` opens on a node, and the rights that clients have there.
const NODES: [(&str, &[&str]); 7] = [
    ("", &["none"]),
    ("peers,plain", &["none"]),
    ("read", &["none", "any", "read"]),
    ("write", &["none", "any", "read", "write"]),
    ("metrics", &["none", "any", "metrics"]),
    ("deploy", &["none", "any", "read", "deploy"]),
    ("admin", &["none", "any", "read", "write", "metrics", "deploy", "admin"]),
];

const METHODS: [&str; 7] = ["GET", "HEAD", "PUT", "POST", "DELETE", "PATCH", "OPTIONS"];

/// Paths that are at the root as well.
const ROOT: [&str; 3] = ["/livez", "/readyz", "/metrics"];

/// What methods of a path need.
struct Row {
    path: String,
    methods: Vec<String>,
    right: String,
}

/// The table of rights, without the routes of nodes, which do not ask for the rights of clients.
fn rows() -> Vec<Row> {
    let page = include_str!("../../../docs/security.md");
    let rows = page.lines().filter(|line| line.starts_with("| `/")).map(|line| {
        let cells: Vec<_> = line.split('|').map(|cell| cell.replace('`', "").trim().to_owned()).collect();
        let methods = cells[2].split(", ").map(str::to_owned).collect();
        Row { path: cells[1].clone(), methods, right: cells[3].clone() }
    });
    let rows: Vec<_> = rows.filter(|row| !row.path.starts_with("/peer/")).collect();
    assert!(rows.len() > 20, "the table was not found");
    rows
}

/// The right that the table gives to a method; `HEAD` is answered as `GET`.
fn right_of<'a>(rows: &'a [Row], path: &str, method: &str) -> Option<&'a str> {
    let method = if method == "HEAD" { "GET" } else { method };
    let of_path = rows.iter().filter(|row| row.path == path);
    of_path.into_iter().find(|row| row.methods.iter().any(|known| known == method)).map(|row| row.right.as_str())
}

async fn node_with(anonymous: &str) -> Cluster {
    let args = ["--anonymous", anonymous].map(str::to_owned).into();
    Cluster::start_with(1, Options { args, ..Options::default() }).await
}

fn kind(answer: &Answer) -> &str {
    answer.json["type"].as_str().unwrap_or_default().trim_start_matches("urn:brink:problem:")
}

/// Asserts that a request was refused for want of a right.
fn assert_refused(answer: &Answer, method: &str, asked: &str) {
    assert_eq!(answer.status, 401, "{asked}: {}", String::from_utf8_lossy(&answer.body));
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{asked}");
    assert_eq!(answer.header("allow"), None, "{asked}: it tells that the path exists");
    if method != "HEAD" {
        assert_eq!(kind(answer), "unauthorized", "{asked}");
    }
}

#[tokio::test]
async fn each_method_of_each_route_needs_its_right() {
    let rows = rows();
    let paths: BTreeSet<_> = rows.iter().map(|row| row.path.as_str()).collect();
    for (opened, rights) in NODES {
        let cluster = node_with(opened).await;
        let root = Client::new(&format!("http://127.0.0.1:{}", cluster.nodes[0].port));
        let mut targets = Vec::new();
        for path in paths.iter().copied().chain(["/nowhere", "/kv-store"]) {
            let sent = path.replace("{*key}", "a").replace("{name}", "a").replace("{url}", "a");
            targets.extend([(cluster.client(0), path, sent.clone()), (cluster.client(0), path, format!("{sent}/"))]);
            targets.extend(ROOT.contains(&path).then_some((&root, path, sent)));
        }
        for (client, path, sent) in targets {
            for method in METHODS {
                let asked = format!("{method} {}{sent} with {opened:?}", client.url);
                // Where there is a handler, it refuses the empty body.
                let answer = client.send(method, &sent, &[("content-type", "application/json")], "").await;
                let right = right_of(&rows, path, method);
                if !rights.contains(&right.unwrap_or("any")) {
                    assert_refused(&answer, method, &asked);
                    continue;
                }
                assert!(![401, 403].contains(&answer.status), "{asked}: {}", answer.status);
                let exists = paths.contains(path);
                assert_eq!(answer.status == 405, exists && right.is_none(), "{asked}: {}", answer.status);
            }
        }
    }
}

#[tokio::test]
async fn without_a_right_nothing_is_written_and_no_body_is_looked_at() {
    let cluster = node_with("read").await;
    let client = cluster.client(0);
    let url = r#"{"url": "http://127.0.0.1:1/kv-store/v1"}"#;
    for (method, path, content_type, body) in [
        ("PUT", "/kv/a/", "application/json", r#"{"value": 1}"#),
        ("PUT", "/kv/a/", "application/octet-stream", "bytes"),
        ("DELETE", "/kv/a/", "application/json", ""),
        ("POST", "/kv/batch/", "application/json", r#"{"items": [{"key": "a", "value": 1}]}"#),
        ("POST", "/kv/stream/", "application/x-ndjson", "{\"key\": \"a\", \"value\": 1}\n"),
        ("PUT", "/plugins/a/", "application/wasm", "\0asm"),
        ("PUT", "/hooks/a/", "application/json", r#"{"plugin": "a"}"#),
        ("POST", "/hooks/a/rollback/", "application/json", ""),
        ("POST", "/cluster/members/", "application/json", url),
        ("PUT", "/cluster/leader/", "application/json", url),
        ("PUT", "/cluster/feature-level/", "application/json", r#"{"feature_level": 1}"#),
        // Whatever else is wrong with a request.
        ("PUT", "/kv/%ff/", "application/json", "{"),
        ("POST", "/kv/batch/?unknown=1", "text/plain", "{"),
    ] {
        let answer = client.send(method, path, &[("content-type", content_type)], body).await;
        assert_refused(&answer, method, path);
        assert_eq!(answer.json["outcome"], "not_written", "{path}");
    }
    let large = client.send("PUT", "/plugins/a/", &[], vec![0; 4 * 1024 * 1024]).await;
    assert_refused(&large, "PUT", "a large body");
    assert_eq!(client.get("/kv/?consistency=strong").await.expect(200).json["count"], 0);
    assert_eq!(client.get("/cluster/members/").await.expect(200).json["members"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_refusal_does_not_tell_what_exists() {
    let mut cluster = Cluster::start(1).await;
    cluster.client(0).write("kept", &json!("value")).await.expect(201);
    cluster.nodes[0].kill();
    cluster.nodes[0].start_with(&["--anonymous", "metrics"]);
    cluster.ready().await;
    let client = cluster.client(0);
    let refused = async |method: &str, path: &str| {
        let answer = client.send(method, path, &[], "").await;
        assert_refused(&answer, method, path);
        let mut problem = answer.json;
        problem["trace_id"] = Value::Null;
        problem
    };
    for method in ["GET", "PUT", "DELETE"] {
        assert_eq!(refused(method, "/kv/kept/").await, refused(method, "/kv/absent/").await);
    }
    assert_eq!(refused("GET", "/kv/?prefix=kept").await, refused("GET", "/kv/?prefix=absent").await);
    client.get("/health/").await.expect(200);
    client.get("/metrics").await.expect(200);
}
