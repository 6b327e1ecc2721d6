//! P7: a misbehaving plugin affects only the writes that it judges.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use brink_tests::{Client, Cluster, Options, Watch, eventually, plugin_wasm};
use serde_json::{Value, json};

use crate::{LIMIT, repeated, was_cut_off};

/// Number of other writes that must succeed meanwhile.
const OTHER_WRITES: usize = 1_000;

/// Number of these writes in flight at once.
const OTHER_WRITERS: usize = 8;

/// Number of them that elections may cut off if the machine stood still, and none otherwise.
const CUT_OFF_MAX: usize = OTHER_WRITES / 20;

/// Deadline of a plugin that must exceed it.
const SHORT_MS: u64 = 200;

/// Deadline of a plugin that must exceed another limit first, even on a busy machine: the longest.
const LONG_MS: u64 = 10_000;

/// Time for that other limit to be met.
const MEET_MS: u64 = 3_000;

/// Hooks that each enlarge three values to 4 MiB.
const ENLARGING_HOOKS: usize = 3;

/// Time for a refusal beyond the deadline: `configure` has a deadline of its own, and the machine is busy.
const SLACK: Duration = Duration::from_millis(1_500);

/// The same beside that, if the machine itself stood still meanwhile.
const STALL: Duration = Duration::from_secs(10);

async fn bind(client: &Client, deadline_ms: u64, config: Value) {
    let hook = json!({"plugin": "hostile", "prefix": "hostile/", "deadline_ms": deadline_ms, "config": config});
    repeated(|| client.put_json("/hooks/hostile/", &hook)).await.expect(200);
}

/// Lets the plugin misbehave under load on other keys. Returns the answers to the writes that it judges.
async fn misbehave(cluster: &Cluster, deadline_ms: u64, config: Value) -> Vec<Value> {
    bind(cluster.client(0), deadline_ms, config.clone()).await;
    let cut_off = Arc::new(AtomicUsize::new(0));
    let others: Vec<_> = (0..OTHER_WRITERS)
        .map(|writer| {
            let client = cluster.client(writer % cluster.nodes.len()).clone();
            let cut_off = cut_off.clone();
            tokio::spawn(async move {
                for number in 0..OTHER_WRITES / OTHER_WRITERS {
                    let (key, value) = (format!("others/{writer}/{number}"), json!(number));
                    let answer = repeated(|| async {
                        let answer = client.put(&key, &value).await;
                        cut_off.fetch_add(was_cut_off(&answer).into(), Ordering::Relaxed);
                        answer
                    })
                    .await;
                    assert!(answer.status < 300, "{}", String::from_utf8_lossy(&answer.body));
                }
            })
        })
        .collect();
    let (mut refusals, mut slowest, start) = (Vec::new(), Duration::ZERO, Instant::now());
    let machine = Watch::start();
    while refusals.is_empty() || others.iter().any(|other| !other.is_finished()) {
        for node in &cluster.nodes {
            let began = Instant::now();
            let answer = node.client.put("hostile/a", &json!({"a": 1})).await;
            slowest = slowest.max(began.elapsed());
            assert!(answer.status >= 400, "{config}: {answer:?}");
            // An election may cut it off before the plugin is asked.
            if was_cut_off(&answer) {
                assert!(start.elapsed() < 5 * LIMIT, "{config}: {answer:?}");
                continue;
            }
            assert_eq!(answer.json["outcome"], "not_written", "{config}");
            assert_eq!(answer.json["hook"], "hostile", "{config}: {}", answer.json);
            refusals.push(answer.json);
        }
    }
    for other in others {
        other.await.unwrap();
    }
    let (cut_off, stood_still) = (cut_off.load(Ordering::Relaxed), machine.has_stood_still());
    let cut_off_max = if stood_still { CUT_OFF_MAX } else { 0 };
    assert!(cut_off <= cut_off_max, "{config}: {cut_off} other writes were cut off");
    let stall = if stood_still { STALL } else { Duration::ZERO };
    let limit = Duration::from_millis(2 * deadline_ms.min(MEET_MS)) + SLACK + stall;
    assert!(slowest < limit, "{config}: {slowest:?}");
    cluster.client(1).settled("/kv/hostile/a/?consistency=strong").await.expect(404);
    refusals
}

async fn start() -> Cluster {
    let cluster = Cluster::start(3).await;
    repeated(|| cluster.client(1).put_plugin("hostile", plugin_wasm("test-hostile"))).await.expect(200);
    cluster
}

async fn check(deadline_ms: u64, config: Value, kind: &str, said: &str) {
    let cluster = start().await;
    for refusal in misbehave(&cluster, deadline_ms, config.clone()).await {
        assert_eq!(refusal["type"], format!("urn:brink:problem:{kind}"), "{config}: {refusal}");
        assert!(refusal["detail"].as_str().unwrap().contains(said), "{config}: {refusal}");
    }
}

#[tokio::test]
async fn a_plugin_that_loops_forever_times_out() {
    check(SHORT_MS, json!({"do": "loop"}), "plugin-timed-out", "200").await;
}

#[tokio::test]
async fn a_plugin_that_allocates_without_end_exceeds_its_memory_limit() {
    check(LONG_MS, json!({"do": "allocate"}), "plugin-memory-limit", "").await;
}

#[tokio::test]
async fn the_message_of_a_panic_is_in_the_answer() {
    check(LONG_MS, json!({"do": "panic"}), "plugin-trapped", "this panic is intended").await;
}

#[tokio::test]
async fn a_plugin_that_returns_a_hundred_megabytes_exceeds_its_memory_limit() {
    check(LONG_MS, json!({"do": "huge-output"}), "plugin-memory-limit", "").await;
}

#[tokio::test]
async fn a_plugin_that_returns_twenty_megabytes_exceeds_its_output_limit() {
    check(LONG_MS, json!({"do": "huge-output", "bytes": 20_000_000}), "plugin-output-limit", "").await;
}

#[tokio::test]
async fn a_stack_overflow_is_a_trap() {
    check(LONG_MS, json!({"do": "deep-recursion"}), "plugin-trapped", "").await;
}

#[tokio::test]
async fn a_replacement_that_is_not_json_is_refused() {
    check(LONG_MS, json!({"do": "invalid-json"}), "plugin-bad-output", "").await;
}

#[tokio::test]
async fn oversized_answers_are_cut_and_the_machine_is_out_of_reach() {
    let cluster = start().await;
    let client = cluster.client(0);
    bind(client, LONG_MS, json!({"do": "many-violations"})).await;
    let put = || repeated(|| client.put("hostile/a", &Value::Null));
    let refused = put().await.expect(422);
    assert_eq!(refused.json["violations"].as_array().unwrap().len(), 100);

    bind(client, LONG_MS, json!({"do": "read-flood"})).await;
    assert_eq!(put().await.expect(422).json["code"], "read-limit");

    for misbehavior in ["clock", "file", "network", "exit"] {
        bind(client, LONG_MS, json!({ "do": misbehavior })).await;
        let key = format!("hostile/{misbehavior}");
        let answer = repeated(|| client.put(&key, &Value::Null)).await;
        assert_ne!(answer.json["code"], "escaped", "{misbehavior}: {}", answer.json);
        assert!(answer.status < 300 || answer.json["type"] == "urn:brink:problem:plugin-trapped", "{}", answer.json);
    }
}

/// Each hook enlarges three items of a batch, to 36 MiB in all. Nothing but this limit would keep them from making an entry that no follower
/// accepts.
#[tokio::test]
async fn a_write_that_transformers_enlarge_beyond_its_limit_is_refused_and_the_cluster_goes_on() {
    let cluster = start().await;
    let client = cluster.client(0);
    let config = json!({"do": "huge-output", "role": "transformer", "bytes": 4 << 20});
    for number in 0..ENLARGING_HOOKS {
        let hook = json!({"plugin": "hostile", "prefix": format!("large/{number}/"), "deadline_ms": LONG_MS, "config": config});
        let path = format!("/hooks/enlarge-{number}/");
        repeated(|| client.put_json(&path, &hook)).await.expect(200);
    }
    let key = |item: usize| format!("large/{}/{item}", item / 3);
    let item = |item| json!({"key": key(item), "value_base64": "MQ==", "content_type": "text/plain"});
    let items: Vec<_> = (0..3 * ENLARGING_HOOKS).map(item).collect();
    for node in &cluster.nodes {
        let batch = json!({ "items": items });
        let refused = repeated(|| node.client.post_json("/kv/batch/", &batch)).await.expect(422).json;
        assert_eq!(refused["type"], "urn:brink:problem:write-too-large", "{refused}");
        assert_eq!(refused["outcome"], "not_written");
        assert_eq!((&refused["plugin"], &refused["bytes_max"]), (&json!("hostile"), &json!(32 << 20)), "{refused}");
        assert!(refused["bytes"].as_u64() > refused["bytes_max"].as_u64() && refused["hook"].is_string(), "{refused}");
    }
    // Such a batch is large for a busy machine, so one attempt may time out.
    eventually(LIMIT, "a smaller batch is written", || async {
        let written = client.post_json("/kv/batch/", &json!({ "items": items[..4] })).await;
        (written.status == 200).then_some(())
    })
    .await;
    for node in &cluster.nodes {
        node.client.write("other", &json!(1)).await.expect_written();
        node.client.settled("/kv/large/0/0/?consistency=strong").await.expect(200);
        node.client.settled("/kv/large/2/8/?consistency=strong").await.expect(404);
    }
}

#[tokio::test]
async fn a_flood_of_log_lines_is_cut_and_has_the_trace_id() {
    let options = Options { args: vec!["--log-format".to_owned(), "json".to_owned()], ..Options::default() };
    let cluster = Cluster::start_with(1, options).await;
    let client = cluster.client(0);
    repeated(|| client.put_plugin("hostile", plugin_wasm("test-hostile"))).await.expect(200);
    bind(client, LONG_MS, json!({"do": "log-flood", "role": "validator"})).await;
    let written = repeated(|| client.put("hostile/a", &Value::Null)).await.expect(201);
    let trace_id = written.header("brink-trace-id").unwrap().to_owned();
    let of_trace = || {
        let log = cluster.nodes[0].log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line.to_string().contains(&trace_id)).count()
    };
    // A thread of its own writes the lines.
    eventually(LIMIT, "all kept lines are written", || async { (of_trace() >= 64).then_some(()) }).await;
    assert!(of_trace() <= 66, "{} lines have the trace id", of_trace());
}

#[tokio::test]
async fn a_plugin_that_never_returns_from_configure_cannot_be_bound() {
    let cluster = start().await;
    let hook = json!({"plugin": "hostile", "prefix": "hostile/", "config": {"do": "loop-in-configure"}});
    let refused = repeated(|| cluster.client(0).put_json("/hooks/hostile/", &hook)).await.expect(500);
    assert_eq!(refused.json["type"], "urn:brink:problem:plugin-timed-out");
    assert_eq!(cluster.client(0).get("/hooks/").await.json["hooks"], json!([]));
    cluster.client(0).write("hostile/a", &json!(1)).await.expect(201);
}
