//! Runs the golden scripts.

use std::io::Write as _;
use std::path::Path;

use brink_tests::{Answer, Cluster};
use goldenfile::Mint;

/// Headers that a script shows.
const HEADERS: [&str; 7] =
    ["etag", "content-type", "allow", "retry-after", "brink-consistency", "brink-revision", "brink-repeated"];

async fn run(name: &str) {
    let cluster = Cluster::start(1).await;
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/api/scripts");
    let script = std::fs::read_to_string(dir.join(name)).unwrap();
    // IMPORTANT: the files are compared when the mint is dropped, so it must outlive what is written.
    let mut mint = Mint::new(&dir);
    let mut golden = mint.new_goldenfile(name).unwrap();
    let mut lines = script.lines().peekable();
    let mut requests = 0;
    while let Some(line) = lines.next() {
        let Some(request) = line.strip_prefix("> ") else {
            // Comments and blank lines stay; answers are written anew.
            if line.is_empty() || line.starts_with('#') {
                writeln!(golden, "{line}").unwrap();
            }
            continue;
        };
        writeln!(golden, "{line}").unwrap();
        let (method, path) = request.split_once(' ').expect("method and path");
        let (mut headers, mut body) = (Vec::new(), Vec::new());
        while let Some(more) = lines.next_if(|line| line.starts_with('>')) {
            writeln!(golden, "{more}").unwrap();
            match more.strip_prefix(">>") {
                Some(text) => body.push(text.trim_start()),
                None => headers.push(more[1..].trim().split_once(": ").expect("a header")),
            }
        }
        let answer = cluster.client(0).send(method, path, &headers, body.join("\n")).await;
        write!(golden, "{}", show(&answer, &cluster.nodes[0].url)).unwrap();
        requests += 1;
    }
    assert!(requests > 0, "{name} asks for nothing");
}

fn show(answer: &Answer, url: &str) -> String {
    let mut text = format!("{}\n", answer.status);
    for name in HEADERS {
        match answer.header(name) {
            Some("application/json" | "application/problem+json") | None => {}
            Some(value) => text.push_str(&format!("{name}: {value}\n")),
        }
    }
    let body = String::from_utf8_lossy(&answer.body).replace(url, "<node>");
    let body = ["created_at", "updated_at", "trace_id"].iter().fold(body, |body, field| mask(&body, field));
    if !body.is_empty() {
        text.push_str(body.trim_end());
        text.push('\n');
    }
    text
}

/// Hides what differs from run to run: the text of a field.
fn mask(body: &str, field: &str) -> String {
    let opening = format!("\"{field}\":\"");
    let mut parts = body.split(&opening);
    let mut masked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.split_once('"').map_or("", |(_, rest)| rest);
        masked.push_str(&format!("{opening}…\"{rest}"));
    }
    masked
}

#[tokio::test]
async fn one_key() {
    run("one_key.txt").await;
}

#[tokio::test]
async fn preconditions() {
    run("preconditions.txt").await;
}

#[tokio::test]
async fn idempotency() {
    run("idempotency.txt").await;
}

#[tokio::test]
async fn ranges() {
    run("ranges.txt").await;
}

#[tokio::test]
async fn batches() {
    run("batches.txt").await;
}

#[tokio::test]
async fn bad_requests() {
    run("bad_requests.txt").await;
}

#[tokio::test]
async fn health() {
    run("health.txt").await;
}
