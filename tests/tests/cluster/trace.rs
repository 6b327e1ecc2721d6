//! P10: one write is one trace across all nodes, from the client's `traceparent` on.

use std::collections::BTreeSet;
use std::time::Duration;

use brink_tests::{Cluster, Collector, Options, Span, eventually, plugin_wasm};
use serde_json::json;

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

#[tokio::test]
async fn a_write_through_a_follower_is_one_trace_over_three_processes() {
    let collector = Collector::start().await;
    let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "100")];
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let cluster = Cluster::start_with(3, Options { env, ..Options::default() }).await;
    cluster.healthy().await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;

    cluster.client(leader).put_plugin("limits", plugin_wasm("limits")).await.expect(200);
    let hook = json!({"plugin": "limits", "config": {"bytes_max": 100}});
    cluster.client(leader).put_json("/hooks/small/", &hook).await.expect(200);

    let body = json!({"value": 1}).to_string();
    let traceparent = format!("00-{TRACE_ID}-{CLIENT_SPAN}-01");
    let headers = [("content-type", "application/json"), ("traceparent", traceparent.as_str())];
    let answer = cluster.client(follower).send("PUT", "/kv/traced/", &headers, body).await.expect(201);
    assert_eq!(answer.header("brink-trace-id"), Some(TRACE_ID));

    let spans = eventually(Duration::from_secs(60), "all spans have arrived", || async {
        let spans = collector.trace(TRACE_ID);
        // The request's span ends last on its node; appends and applies end independently on the others.
        let has_all = !all(&spans, "http.request").is_empty()
            && ["raft.append", "storage.apply"].iter().all(|name| all(&spans, name).len() == 3);
        has_all.then_some(spans)
    })
    .await;

    let request = one(&spans, "http.request");
    assert_eq!(request.parent_id, CLIENT_SPAN, "the client's span is the parent");
    let judge = one(&spans, "hooks.judge");
    assert_eq!(judge.parent_id, request.span_id);
    assert_eq!(one(&spans, "hook").parent_id, judge.span_id);
    let propose = one(&spans, "replication.propose");
    assert_eq!(propose.parent_id, request.span_id);
    for name in ["replication.forward", "raft.append", "raft.commit", "storage.apply"] {
        for span in all(&spans, name) {
            assert_eq!(span.parent_id, propose.span_id, "{name}");
        }
    }
    let nodes = |name: &str| all(&spans, name).into_iter().map(|span| span.instance.clone()).collect::<BTreeSet<_>>();
    let urls: BTreeSet<_> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
    assert_eq!(nodes("raft.append"), urls);
    assert_eq!(nodes("storage.apply"), urls);
    assert_eq!(nodes("raft.commit"), BTreeSet::from([cluster.nodes[leader].url.clone()]));
    for name in ["http.request", "hooks.judge", "hook", "replication.propose", "replication.forward"] {
        assert_eq!(nodes(name), BTreeSet::from([cluster.nodes[follower].url.clone()]), "{name}");
    }
}

fn all<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found = all(spans, name);
    assert_eq!(found.len(), 1, "{name} in {spans:#?}");
    found[0]
}
