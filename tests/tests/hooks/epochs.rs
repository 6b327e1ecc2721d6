//! P6: after the acknowledgement of a hook, no write commits without its judgement.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use brink_tests::{Cluster, plugin_wasm};
use serde_json::json;

use crate::{repeated, was_cut_off};

/// Pause of a writer, so that compilers, whose priority is low, get on.
const PAUSE: Duration = Duration::from_millis(2);

#[tokio::test]
async fn no_write_that_breaks_a_rule_commits_after_the_rule_is_acknowledged() {
    let cluster = Cluster::start(3).await;
    repeated(|| cluster.client(0).put_plugin("limits", plugin_wasm("limits"))).await.expect(200);
    let stop = Arc::new(AtomicBool::new(false));
    // Writers on all nodes write values that the rule forbids.
    let writers: Vec<_> = (0..6)
        .map(|writer| {
            let (client, stop) = (cluster.client(writer % 3).clone(), stop.clone());
            tokio::spawn(async move {
                let mut accepted = Vec::new();
                for number in 0..100_000 {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let answer = client.put(&format!("numbers/{writer}/{number}"), &json!([number])).await;
                    match answer.status {
                        201 => accepted.push(answer.json["revision"].as_u64().unwrap()),
                        422 => assert_eq!(answer.json["plugin"], "limits"),
                        // An election has cut it off. Only acknowledged writes are judged here.
                        500 | 503 => assert!(was_cut_off(&answer), "{answer:?}"),
                        _ => panic!("{answer:?}"),
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                accepted
            })
        })
        .collect();

    // A generous deadline: this test does not measure time.
    let rule = json!({
        "plugin": "limits", "prefix": "numbers/", "config": {"depth_max": 0}, "deadline_ms": 5_000,
    });
    // The revisions at which the rule is in force.
    let mut in_force = Vec::new();
    for round in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let hook = repeated(|| cluster.client(round % 3).put_json("/hooks/numbers/", &rule)).await.expect(200);
        tokio::time::sleep(Duration::from_millis(100)).await;
        // A write just before the removal: all writes up to its revision are under the rule.
        let marker = cluster.client((round + 1) % 3).write("marker", &json!(round)).await.expect_written();
        in_force.push(hook.json["revision"].as_u64().unwrap()..=marker.json["revision"].as_u64().unwrap());
        let remover = cluster.client((round + 2) % 3);
        let removed = remover.delete("/hooks/numbers/").await;
        if was_cut_off(&removed) {
            // It may have removed the hook.
            let again = repeated(|| remover.delete("/hooks/numbers/")).await;
            assert!(matches!(again.status, 204 | 404), "{again:?}");
        } else {
            removed.expect(204);
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut accepted = 0;
    for writer in writers {
        for revision in writer.await.unwrap() {
            accepted += 1;
            assert!(!in_force.iter().any(|rule| rule.contains(&revision)), "{revision} in {in_force:?}");
        }
    }
    assert!(accepted > 100, "only {accepted} accepted writes");
}
