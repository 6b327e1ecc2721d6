//! Log lines and figures of plugins, as operators see them from any node.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use brink_tests::{Cluster, brink, brink_bin, plugin_wasm};
use serde_json::{Value, json};

use crate::{LIMIT, repeated};

#[tokio::test]
async fn the_message_of_a_panic_is_shown_with_its_plugin_version_trace_and_node() {
    let mut cluster = Cluster::start(3).await;
    let wasm = plugin_wasm("test-hostile");
    let deployed = repeated(|| cluster.client(0).put_plugin("hostile", wasm.clone())).await.expect(200).json;
    let hook = json!({"plugin": "hostile", "prefix": "h/", "deadline_ms": 3_000, "config": {"do": "panic"}});
    repeated(|| cluster.client(0).put_json("/hooks/guard/", &hook)).await.expect(200);

    // The command asks one node and shows lines of all nodes.
    let mut follow = Command::new(brink_bin());
    follow.args(["plugin", "logs", "--follow", "--hook", "guard", "--output", "json"]);
    follow.env("BRINK_URL", &cluster.client(0).url).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut follow = follow.spawn().unwrap();
    let lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let found = tokio::task::spawn_blocking(move || {
        let lines = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
        lines.filter(|line| line["message"].as_str().unwrap().contains("this panic is intended")).take(2).collect()
    });
    // If the command has not connected yet, it shows the earlier lines first.
    let refused = cluster.client(2).put("h/a", &json!(1)).await.expect(500);
    let found: Result<Result<Vec<Value>, _>, _> = tokio::time::timeout(LIMIT, found).await;
    follow.kill().unwrap();
    follow.wait().unwrap();
    let found = found.expect("no lines arrived").unwrap();
    // The plugin's own line, then the failure of its call.
    for (line, level) in found.iter().zip(["warn", "error"]) {
        assert_eq!((&line["hook"], &line["plugin"]), (&json!("guard"), &json!("hostile")));
        assert_eq!((&line["digest"], &line["level"]), (&deployed["digest"], &json!(level)));
        assert_eq!((&line["node"], &line["trace_id"]), (&json!(cluster.client(2).url), &refused.json["trace_id"]));
    }

    let url = cluster.client(1).url.clone();
    let kept = brink(&url, &["plugin", "logs", "--plugin", "hostile"]).expect(0);
    assert!(kept.out.contains("this panic is intended"), "{kept:?}");
    assert_eq!(brink(&url, &["plugin", "logs", "--plugin", "other"]).expect(0).out, "");
    let stats = brink(&url, &["plugin", "stats"]).expect(0);
    assert!(stats.out.contains("trapped 1"), "{stats:?}");
    // An endless answer does not prevent a node from stopping.
    let mut follow = Command::new(brink_bin());
    follow.args(["plugin", "logs", "--follow"]).env("BRINK_URL", &url).stdin(Stdio::null()).stdout(Stdio::null());
    let mut follow = follow.stderr(Stdio::null()).spawn().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let began = std::time::Instant::now();
    assert!(cluster.nodes[0].stop());
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    assert!(!cluster.nodes[0].log().contains("some requests were cut off"), "{}", cluster.nodes[0].log());
    follow.kill().unwrap();
    follow.wait().unwrap();
}
