//! P1: acknowledged writes survive a kill of all processes at once.

use std::time::Duration;

use brink_tests::{Cluster, Load, entries};

#[tokio::test]
async fn no_acknowledged_write_is_lost_when_all_nodes_are_killed_at_once() {
    let mut cluster = Cluster::start(3).await;
    for round in 0..3 {
        let load = Load::start(&cluster, &format!("round{round}"), 4);
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.kill_all();
        let acknowledged = load.stop().await;
        assert!(acknowledged.len() > 50, "only {} writes", acknowledged.len());

        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.ready().await;
        for node in &cluster.nodes {
            let found = entries(&node.client, &format!("round{round}/"), "strong").await;
            for (key, number) in &acknowledged {
                assert_eq!(found.get(key).and_then(serde_json::Value::as_u64), Some(*number), "{key} on {}", node.url);
            }
        }
    }
}
