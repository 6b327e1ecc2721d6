//! Browsers: what a page of another site makes them send is refused, and a stored value runs nothing in them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use brink_tests::{Answer, Client, Cluster, Options};
use serde_json::{Value, json};

/// Time for an answer on a connection of a test.
const LIMIT: Duration = Duration::from_secs(60);

/// A request: its method, path, content type and body.
type Door = (&'static str, &'static str, &'static str, &'static str);

/// A request for each door that writes.
const WRITES: [Door; 11] = [
    ("PUT", "/kv/a/", "application/json", r#"{"value": 1}"#),
    ("PUT", "/kv/a/", "text/html", "<script>alert(1)</script>"),
    ("DELETE", "/kv/kept/", "", ""),
    ("POST", "/kv/batch/", "application/json", r#"{"items": [{"key": "a", "value": 1}]}"#),
    ("POST", "/kv/stream/", "application/x-ndjson", "{\"key\": \"a\", \"value\": 1}\n"),
    ("PUT", "/plugins/a/", "application/wasm", "\0asm"),
    ("PUT", "/hooks/a/", "application/json", r#"{"plugin": "a"}"#),
    ("POST", "/hooks/a/rollback/", "application/json", ""),
    ("POST", "/cluster/members/", "application/json", r#"{"url": "http://127.0.0.1:1/kv-store/v1"}"#),
    ("PUT", "/cluster/leader/", "application/json", r#"{"url": "http://127.0.0.1:1/kv-store/v1"}"#),
    ("PUT", "/cluster/feature-level/", "application/json", r#"{"feature_level": 1}"#),
];

const READS: [&str; 10] = [
    "/kv/kept/",
    "/kv/?prefix=k",
    "/plugins/",
    "/hooks/",
    "/registry/history/",
    "/registry/lines/?follow=true",
    "/cluster/members/",
    "/health/",
    "/metrics",
    "/nowhere/",
];

/// A node with one entry.
async fn node_with(args: &[&str]) -> Cluster {
    let options = Options { args: args.iter().map(|&arg| arg.to_owned()).collect(), ..Options::default() };
    let cluster = Cluster::start_with(1, options).await;
    cluster.client(0).write("kept", &json!("value")).await.expect(201);
    cluster
}

async fn write(client: &Client, (method, path, content_type, body): Door, headers: &[(&str, &str)]) -> Answer {
    let typed = [&[("content-type", content_type)], headers].concat();
    let headers = if content_type.is_empty() { headers } else { &typed };
    client.send(method, path, headers, body).await
}

fn kind(answer: &Answer) -> &str {
    answer.json["type"].as_str().unwrap_or_default().trim_start_matches("urn:brink:problem:")
}

/// Sends a request as it stands, and returns the status of the answer. `<port>` in it is the node's.
fn status(cluster: &Cluster, request: &str) -> u16 {
    let port = cluster.nodes[0].port;
    let mut tcp = TcpStream::connect(("127.0.0.1", port)).unwrap();
    tcp.set_read_timeout(Some(LIMIT)).unwrap();
    tcp.write_all(request.replace("<port>", &port.to_string()).as_bytes()).unwrap();
    let mut status_line = [0; 12];
    tcp.read_exact(&mut status_line).unwrap();
    String::from_utf8_lossy(&status_line[9..]).parse().unwrap()
}

#[tokio::test]
async fn a_page_of_another_site_changes_nothing() {
    let cluster = node_with(&[]).await;
    let client = cluster.client(0);
    let other_port = format!("http://127.0.0.1:{}", cluster.nodes[0].port ^ 1);
    for door in WRITES {
        for headers in [
            &[("origin", "http://evil.example")][..],
            &[("origin", "null")],
            &[("origin", other_port.as_str()), ("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "cross-site")],
        ] {
            let refused = write(client, door, headers).await.expect(403);
            assert_eq!((kind(&refused), &refused.json["outcome"]), ("foreign-origin", &json!("not_written")));
            assert_eq!(refused.header("access-control-allow-origin"), None);
        }
        let refused = write(client, door, &[("host", "evil.example")]).await.expect(421);
        assert_eq!((kind(&refused), &refused.json["outcome"]), ("wrong-host", &json!("not_written")));
        let asked = [("origin", "http://evil.example"), ("access-control-request-method", "PUT")];
        client.send("OPTIONS", door.1, &asked, "").await.expect(403);
    }
    // What a browser sends for any page without asking the node first, if it said nothing of the page.
    for (_, path, _, body) in WRITES.into_iter().filter(|door| door.0 == "POST") {
        for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=a"] {
            client.send("POST", path, &[("content-type", content_type)], body).await.expect(415);
        }
        client.send("POST", path, &[], body).await.expect(415);
    }
    let entries = client.get("/kv/?consistency=strong").await.expect(200).json;
    assert_eq!((&entries["count"], &entries["results"][0]["key"]), (&json!(1), &json!("kept")), "{entries}");
    assert_eq!(client.get("/registry/history/").await.expect(200).json, json!({"changes": []}));
    assert_eq!(client.get("/cluster/members/").await.expect(200).json["members"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_page_of_another_site_reads_nothing() {
    let cluster = node_with(&[]).await;
    let client = cluster.client(0);
    for path in READS {
        for site in ["cross-site", "same-site"] {
            let headers = [("sec-fetch-site", site), ("sec-fetch-mode", "no-cors")];
            assert_eq!(kind(&client.send("GET", path, &headers, "").await.expect(403)), "foreign-origin", "{path}");
        }
        let renamed = client.send("GET", path, &[("host", "evil.example")], "").await.expect(421);
        assert_eq!(kind(&renamed), "wrong-host", "{path}");
    }
    // Browsers that do not name the site keep the answer from a page that is not allowed to see it.
    let answer = client.send("GET", "/kv/kept/", &[("origin", "http://evil.example")], "").await.expect(200);
    assert_eq!(answer.header("access-control-allow-origin"), None);
    assert_eq!(answer.header("cross-origin-resource-policy"), Some("same-origin"));
}

#[tokio::test]
async fn a_node_answers_to_its_addresses_and_its_names() {
    let cluster = node_with(&["--allow-host", "KV.example.org", "--allow-host", "other"]).await;
    let client = cluster.client(0);
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for host in ["127.0.0.1", "10.1.2.3:80", "[::1]:8000", "LOCALHOST", "kv.example.org:8000", "other", machine.trim()]
    {
        client.send("GET", "/kv/kept/", &[("host", host)], "").await.expect(200);
    }
    for host in ["example.org", "kv.example.org.evil.example", "evil@127.0.0.1", "127.0.0.1.evil.example"] {
        client.send("GET", "/kv/kept/", &[("host", host)], "").await.expect(421);
    }
    let get = |head: &str| status(&cluster, &format!("GET {head}\r\n\r\n"));
    assert_eq!(get("/livez HTTP/1.1\r\nhost: 127.0.0.1:<port>"), 200);
    assert_eq!(get("/livez HTTP/1.1"), 400);
    assert_eq!(get("/livez HTTP/1.1\r\nhost: localhost\r\nhost: localhost"), 400);
    assert_eq!(get("/livez HTTP/1.0"), 200);
    assert_eq!(get("/livez HTTP/1.0\r\nhost: evil.example"), 421);
    assert_eq!(get("http://localhost/livez HTTP/1.1\r\nhost: localhost"), 200);
    assert_eq!(get("http://evil.example/livez HTTP/1.1\r\nhost: localhost"), 421);
}

#[tokio::test]
async fn pages_of_the_node_and_of_allowed_origins_may_use_it() {
    let allowed = "https://app.example.org";
    let cluster = node_with(&["--allow-origin", allowed]).await;
    let client = cluster.client(0);
    let own = format!("http://127.0.0.1:{}", cluster.nodes[0].port);
    let body = json!({"value": 1}).to_string();
    let put = async |headers: &[(&str, &str)]| client.send("PUT", "/kv/a/", headers, body.clone()).await;
    put(&[("origin", own.as_str()), ("sec-fetch-site", "same-origin")]).await.expect(201);
    put(&[("origin", "https://app.example.org:8443")]).await.expect(403);

    let written = put(&[("origin", allowed), ("sec-fetch-site", "cross-site")]).await.expect(200);
    assert_eq!(written.header("access-control-allow-origin"), Some(allowed));
    assert!(written.header("access-control-expose-headers").unwrap().contains("etag"));
    assert_eq!(written.header("vary"), Some("Origin"));
    let problem = client.send("GET", "/kv/absent/", &[("origin", allowed)], "").await.expect(404);
    assert_eq!(problem.header("access-control-allow-origin"), Some(allowed), "a page sees problems, too");

    let asked = [("origin", allowed), ("access-control-request-method", "PUT")];
    let told = client.send("OPTIONS", "/kv/a/", &asked, "").await.expect(204);
    assert_eq!(told.header("access-control-allow-origin"), Some(allowed));
    assert!(told.header("access-control-allow-methods").unwrap().contains("PUT"));
    assert!(told.header("access-control-allow-headers").unwrap().contains("content-type"));
    assert_eq!(told.header("access-control-allow-credentials"), None);
}

#[tokio::test]
async fn a_stored_value_is_a_download_that_runs_nothing() {
    let cluster = node_with(&[]).await;
    let client = cluster.client(0);
    let script = "<script>document.title = 'run'</script>";
    let stored = client.send("PUT", "/kv/page/", &[("content-type", "text/html")], script).await.expect(201);
    let raw = client.send("GET", "/kv/page/", &[("accept", "text/html")], "").await.expect(200);
    assert_eq!((&raw.body[..], raw.header("content-type")), (script.as_bytes(), Some("text/html")));
    let line = "{\"key\": \"b\", \"value\": 1}\n";
    let items = json!({"items": [{"key": "c", "value": 1}]});
    let with_values = [
        stored,
        raw,
        client.get("/kv/page/").await.expect(200),
        client.get("/kv/").await.expect(200),
        client.post_json("/kv/batch/", &items).await.expect(200),
        client.send("POST", "/kv/stream/", &[("content-type", "application/x-ndjson")], line).await.expect(200),
    ];
    for answer in &with_values {
        assert_eq!(answer.header("content-disposition"), Some("attachment"), "{answer:?}");
        assert_eq!(answer.header("content-security-policy"), Some("sandbox; default-src 'none'"), "{answer:?}");
    }
    let others = [
        client.get("/health/").await,
        client.get("/metrics").await,
        client.get("/kv/<script>/").await.expect(404),
        client.send("PATCH", "/kv/a/", &[], "").await.expect(405),
        client.delete("/kv/c/").await.expect(204),
        client.send("GET", "/kv/", &[("host", "evil.example")], "").await.expect(421),
    ];
    for answer in with_values.iter().chain(&others) {
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{answer:?}");
        assert_eq!(answer.header("cross-origin-resource-policy"), Some("same-origin"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_write_may_depend_on_either_form_of_an_entry() {
    let cluster = node_with(&[]).await;
    let client = cluster.client(0);
    let raw = client.send("GET", "/kv/kept/", &[("accept", "application/octet-stream")], "").await.expect(200);
    let json = client.get("/kv/kept/").await.expect(200);
    assert_ne!(raw.header("etag"), json.header("etag"));
    assert_eq!((raw.header("vary"), json.header("vary")), (Some("Accept"), Some("Accept")));
    let put = async |condition: &str, value: Value| {
        let headers = [("content-type", "application/json"), ("if-match", condition)];
        client.send("PUT", "/kv/kept/", &headers, json!({"value": value}).to_string()).await
    };
    let second = put(raw.header("etag").unwrap(), json!(2)).await.expect(200);
    put(raw.header("etag").unwrap(), json!(3)).await.expect(412);
    put(json.header("etag").unwrap(), json!(3)).await.expect(412);
    put(second.header("etag").unwrap(), json!(3)).await.expect(200);
}
