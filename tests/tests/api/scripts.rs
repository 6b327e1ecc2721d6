//! The golden scripts in `scripts/`: requests to real nodes with their answers.
//!
//! | line | meaning |
//! |---|---|
//! | `# text` | a comment |
//! | `> PUT /kv/a/` | a request to the first node; `> PUT <node2>/kv/a/` goes to the second one |
//! | `> if-match: *` | a header |
//! | `>> {"value": 1}` | a line of the body |
//! | `>> <hooks-0.1.0-validator.wasm>` | a body from a file in `fixtures/` |
//! | `>> <plugin test-hostile>` | a compiled plugin as body |
//! | `>> <1025 bytes>` | a body of this size |
//! | `! start <node2>` | starts a node; the first one runs from the beginning |
//! | `! kill <node2>` | kills a node |
//! | `! wait /health/ "healthy"` | repeats a `GET` until the answer contains the text |
//!
//! All other lines are answers: the status, some headers, the body. `<node1>` is the base URL of the first node; in a path it
//! is percent-encoded. Values that differ between runs are shown as `…`. `UPDATE_GOLDENFILES=1` writes the answers again.
//! Without it, a request is repeated while an election, or a node that is slow to answer, may be why its answer differs.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use brink_tests::{Answer, Cluster, Options, eventually, plugin_wasm};
use goldenfile::Mint;
use serde_json::Value;

/// The directory of the scripts.
const SCRIPTS_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/api/scripts");

/// The directory of files that a body can name.
const FIXTURES_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");

/// Number of nodes that a script can start.
const NODES: usize = 4;

/// Time limit of a `! wait` line, and of an answer that may yet change.
const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// The headers of an answer that are shown.
const HEADERS: [&str; 10] = [
    "etag",
    "content-type",
    "allow",
    "retry-after",
    "brink-consistency",
    "brink-revision",
    "brink-staleness-ms",
    "brink-repeated",
    "vary",
    "content-disposition",
];

/// Members of JSON bodies whose values differ between runs.
const MASKED: [&str; 15] = [
    "created_at",
    "updated_at",
    "trace_id",
    "at_ms",
    "start_us",
    "p50_us",
    "p99_us",
    "max_us",
    "memory_bytes",
    "cluster",
    "id",
    "term",
    "lag_entries",
    "rtt_ms",
    "free_bytes",
];

/// The media type of metrics, whose values all differ.
const METRICS: &str = "text/plain; version=0.0.4";

/// The tests, one for each script.
macro_rules! scripts {
    ($($name:ident)*) => {
        $(#[tokio::test]
        async fn $name() {
            run(concat!(stringify!($name), ".txt")).await;
        })*

        #[test]
        fn every_script_has_a_test() {
            let files = std::fs::read_dir(SCRIPTS_DIR).unwrap().map(|entry| entry.unwrap().file_name());
            let files: BTreeSet<String> = files.map(|name| name.into_string().unwrap()).collect();
            assert_eq!(files, [$(concat!(stringify!($name), ".txt")),*].map(str::to_owned).into());
        }
    };
}

scripts! {
    one_key
    preconditions
    idempotency
    ranges
    batches
    bad_requests
    plugins
    hooks
    registry
    failing_plugins
    health
    members
    quorum
}

async fn run(name: &str) {
    let script = std::fs::read_to_string(Path::new(SCRIPTS_DIR).join(name)).unwrap();
    // IMPORTANT: the mint compares the files when it is dropped, so it must outlive the golden file.
    let mut mint = Mint::new(SCRIPTS_DIR);
    let mut golden = mint.new_goldenfile(name).unwrap();
    let mut runner = Runner::start().await;
    let mut lines = script.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(request) = line.strip_prefix("> ") {
            let mut more = Vec::new();
            while let Some(line) = lines.next_if(|line| line.starts_with('>')) {
                more.push(line);
            }
            let mut earlier = String::new();
            while let Some(line) = lines.next_if(|line| !line.is_empty() && !line.starts_with(['>', '!', '#'])) {
                earlier.push_str(line);
                earlier.push('\n');
            }
            writeln!(golden, "{}", [&[line], &more[..]].concat().join("\n")).unwrap();
            write!(golden, "{}", runner.settle(request, &more, &earlier).await).unwrap();
        } else if let Some(action) = line.strip_prefix("! ") {
            writeln!(golden, "{line}").unwrap();
            runner.act(action).await;
        } else if line.is_empty() || line.starts_with('#') {
            writeln!(golden, "{line}").unwrap();
        }
    }
}

/// The cluster of a script.
struct Runner {
    cluster: Cluster,
    /// Texts in answers that differ between runs, with their replacements.
    replacements: Vec<(String, String)>,
}

impl Runner {
    /// Starts the first node. The other ones know it from their start on.
    async fn start() -> Self {
        let mut cluster = Cluster::prepare(NODES, Options::default());
        let urls: Vec<String> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
        for (index, node) in cluster.nodes.iter_mut().enumerate() {
            node.knows(&urls[..index.min(1)]);
        }
        cluster.nodes[0].start();
        cluster.ready().await;
        let replacements = (1..).zip(urls).map(|(number, url)| (url, format!("<node{number}>"))).collect();
        Self { cluster, replacements }
    }

    /// Performs a `!` line.
    async fn act(&mut self, action: &str) {
        let (verb, rest) = action.split_once(' ').expect("a verb and its object");
        let (target, text) = rest.split_once(' ').unwrap_or((rest, ""));
        let (node, path) = self.locate(target);
        match verb {
            "start" => self.cluster.nodes[node].start(),
            "kill" => self.cluster.nodes[node].kill(),
            "wait" => {
                eventually(WAIT_LIMIT, action, || async {
                    let answer = self.cluster.client(node).try_send("GET", &path, &[], "").await.ok()?;
                    self.show(&answer).contains(text).then_some(())
                })
                .await;
            }
            _ => panic!("unknown action: {action}"),
        }
    }

    /// Sends a request until its answer is the earlier one, as long as only a busy machine may be why it is not.
    async fn settle(&mut self, request: &str, more: &[&str], earlier: &str) -> String {
        let began = Instant::now();
        let is_updated = std::env::var_os("UPDATE_GOLDENFILES").is_some();
        loop {
            let answer = self.send(request, more).await;
            if answer == earlier || !may_change(request, &answer, earlier) || is_updated || began.elapsed() > WAIT_LIMIT
            {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Sends a request, and returns its answer as text.
    async fn send(&mut self, request: &str, more: &[&str]) -> String {
        let (method, target) = request.split_once(' ').expect("a method and a path");
        let (node, path) = self.locate(target);
        let (body, headers): (Vec<&str>, Vec<&str>) = more.iter().partition(|line| line.starts_with(">>"));
        let headers: Vec<_> = headers.iter().map(|line| line[1..].trim().split_once(": ").expect("a header")).collect();
        let body = body.iter().map(|line| line[2..].trim_start()).collect::<Vec<_>>().join("\n");
        let answer = self.cluster.client(node).send(method, &path, &headers, self.body(&body)).await;
        if body.starts_with("<plugin ") {
            // The digest and the size differ between builds.
            let digest = answer.json["digest"].as_str().map(|digest| (digest.to_owned(), "…".to_owned()));
            let size = answer.json["size_bytes"].as_u64();
            let size = size.map(|size| (format!("\"size_bytes\":{size}"), "\"size_bytes\":…".to_owned()));
            self.replacements.extend(digest.into_iter().chain(size));
        }
        // A new cluster raises its level once its leader has heard all nodes.
        let answer = mask(&mask(&self.show(&answer), "\"feature_level\":"), "\"supports_level\":");
        // A new member is healthy once the other nodes have polled it.
        if method == "POST" { mask(&answer, "\"healthy\":") } else { answer }
    }

    /// The node and the path that a target such as `<node2>/cluster/members/<node3>/` names.
    fn locate(&self, target: &str) -> (usize, String) {
        let number = |index: usize| format!("<node{}>", index + 1);
        let node = (0..NODES).find(|index| target.starts_with(&number(*index)));
        let path = node.map_or(target, |index| &target[number(index).len()..]);
        let encode = |path: String, (url, name): &(String, String)| path.replace(name, &url.replace('/', "%2F"));
        (node.unwrap_or(0), self.replacements.iter().take(NODES).fold(path.to_owned(), encode))
    }

    /// The bytes of a body.
    fn body(&self, text: &str) -> Vec<u8> {
        let special = text.strip_prefix('<').and_then(|text| text.strip_suffix('>'));
        match special.and_then(|special| special.split_once(' ')) {
            Some(("plugin", package)) => plugin_wasm(package),
            Some((bytes, "bytes")) => vec![b'x'; bytes.parse().unwrap()],
            _ => match special {
                Some(file) if file.contains('.') => std::fs::read(Path::new(FIXTURES_DIR).join(file)).unwrap(),
                _ => {
                    let urls = self.replacements.iter().take(NODES);
                    urls.fold(text.to_owned(), |text, (url, name)| text.replace(name, url)).into_bytes()
                }
            },
        }
    }

    /// An answer as it stands in a script.
    fn show(&self, answer: &Answer) -> String {
        let mut text = format!("{}\n", answer.status);
        for name in HEADERS {
            match answer.header(name) {
                Some("application/json" | "application/problem+json") | None => {}
                Some(_) if name == "brink-staleness-ms" => text.push_str(&format!("{name}: …\n")),
                Some(value) => text.push_str(&format!("{name}: {value}\n")),
            }
        }
        let mut json = answer.json.clone();
        let body = match json.pointer_mut("/cluster/nodes").and_then(Value::as_array_mut) {
            // The nodes in `/health/` are ordered by their ids, which are random.
            Some(nodes) => {
                nodes.sort_by_key(|node| node["url"].to_string());
                json.to_string()
            }
            None => String::from_utf8_lossy(&answer.body).into_owned(),
        };
        let body = match answer.header("content-type").is_some_and(|found| found.starts_with(METRICS)) {
            true => "…".to_owned(),
            false => self.replacements.iter().fold(body, |body, (found, shown)| body.replace(found, shown)),
        };
        let body = MASKED.iter().fold(body, |body, member| mask(&body, &format!("\"{member}\":")));
        // Positions in the source code of plugins.
        let body = mask(&body, "lib.rs:");
        if !body.is_empty() {
            text.push_str(body.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Whether another answer than the earlier one may pass: a state that nodes tell each other, or a request that was cut off by an
/// election or since a node did not answer at once.
fn may_change(request: &str, answer: &str, earlier: &str) -> bool {
    let is_told = ["/health/", "/members/", "/leader/"].iter().any(|path| request.ends_with(path));
    let status = answer.lines().next();
    let is_cut_off = match status {
        Some("500") => answer.contains("problem:replication-failed"),
        Some("503") => true,
        Some("409") => answer.contains("reached") || answer.contains("must answer"),
        _ => false,
    };
    (request.starts_with("GET ") && is_told) || (is_cut_off && status != earlier.lines().next())
}

/// Replaces each string, number or word that follows `before` by `…`.
fn mask(body: &str, before: &str) -> String {
    let mut parts = body.split(before);
    let mut masked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (value, rest) = match part.strip_prefix('"').map(|part| part.split_once('"').unwrap_or((part, ""))) {
            Some((_, rest)) => ("\"…\"", rest),
            None if part.starts_with(['{', '[']) => ("", part),
            None => ("…", part.trim_start_matches(|c: char| c.is_alphanumeric() || "+-.:".contains(c))),
        };
        masked.extend([before, value, rest]);
    }
    masked
}
