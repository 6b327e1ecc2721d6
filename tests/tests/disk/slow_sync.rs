//! A slow disk is the trouble of its node, not of the cluster's clients.

use std::time::{Duration, Instant};

use brink_tests::{Client, Options};
use serde_json::json;

use crate::OnDisks;

/// What each sync of the slow disk takes.
const SYNC: Duration = Duration::from_millis(400);

/// Writes in each half of the test.
const WRITES: usize = 40;

async fn median_of_writes(client: &Client, name: &str) -> Duration {
    let mut taken = Vec::new();
    for number in 0..WRITES {
        let began = Instant::now();
        client.put(&format!("{name}/{number}"), &json!(number)).await.expect(201);
        taken.push(began.elapsed());
    }
    taken.sort_unstable();
    assert!(taken[WRITES - 1] < SYNC, "a write waited for the slow disk: {taken:?}");
    taken[WRITES / 2]
}

#[tokio::test]
async fn slow_syncs_of_one_follower_cost_writers_nothing_visible() {
    let on = OnDisks::start(3, Options::default()).await;
    let leader = on.cluster.leader().await;
    let client = on.cluster.client(leader);
    let before = median_of_writes(client, "before").await;
    on.disks[(leader + 1) % 3].slow_syncs("", SYNC);
    let meanwhile = median_of_writes(client, "meanwhile").await;
    assert!(meanwhile < before * 3 + Duration::from_millis(20), "{meanwhile:?} instead of {before:?}");
    assert_eq!(on.cluster.leader().await, leader, "nobody had a reason to elect another leader");
}
