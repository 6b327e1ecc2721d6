//! Membership changes under load: a cluster grows, replaces a node that lost its disk, and removes its leader.

use std::collections::BTreeSet;
use std::time::Duration;

use brink_tests::workload::{Clients, Traffic, Workload};
use brink_tests::{Client, Cluster, Options, episode, eventually, history};
use serde_json::{Value, json};

use crate::alone::alone;

/// Time for a node to become a member.
const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// Number of nodes that the cluster grows to.
const SIZE: usize = 5;

/// Pause between two changes.
const SPAN: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_replaces_a_node_and_removes_its_leader_under_load() {
    let _alone = alone().await;
    let mut cluster = Cluster::prepare(SIZE, Options::default());
    let urls: Vec<String> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
    cluster.nodes[0].knows(&[]);
    cluster.nodes[0].start();
    cluster.nodes[0].ready().await;
    let workload = Workload::new(&cluster);
    let clients = Clients::start(&workload, Traffic { clients: 2, ..Traffic::default() }, 1);

    // Grow to five nodes.
    for node in 1..SIZE {
        tokio::time::sleep(SPAN).await;
        cluster.nodes[node].knows(&urls[..1]);
        cluster.nodes[node].start();
        workload.note_restart(node);
        cluster.nodes[node].lives().await;
        add(cluster.client(node - 1), &urls[node]).await;
        cluster.nodes[node].ready().await;
    }

    // A node loses its disk, and rejoins as a new member.
    tokio::time::sleep(SPAN).await;
    let leader = cluster.leader().await;
    let dead = (1..SIZE).find(|node| *node != leader).unwrap();
    cluster.nodes[dead].kill();
    workload.note_restart(dead);
    std::fs::remove_dir_all(cluster.nodes[dead].data_dir()).unwrap();
    tokio::time::sleep(SPAN).await;
    cluster.nodes[dead].start();
    workload.note_restart(dead);
    cluster.nodes[dead].ready().await;

    // Remove the leader.
    tokio::time::sleep(SPAN).await;
    let leader = cluster.leader().await;
    let other = (leader + 1) % SIZE;
    cluster.client(other).remove_member(&urls[leader]).await;
    tokio::time::sleep(SPAN).await;
    eventually(JOIN_LIMIT, "there is load", || async {
        let tally = history::tally(&workload.history.calls());
        tally.get("writes done").filter(|done| **done > 100).copied()
    })
    .await;
    clients.stop().await;

    let left: Vec<usize> = (0..SIZE).filter(|node| *node != leader).collect();
    let members = cluster.client(other).get("/cluster/members/").await.expect(200).json;
    let members: BTreeSet<&str> = members["members"].as_array().unwrap().iter().filter_map(url_of).collect();
    assert_eq!(members, left.iter().map(|node| urls[*node].as_str()).collect());
    for node in left {
        workload.read_everything(node).await;
    }
    let calls = workload.history.calls();
    let tally = history::tally(&calls);
    println!("{tally:?}");
    let (violations, _) = episode::check(calls).await;
    assert!(violations.is_empty(), "{}", violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"));
    assert!(tally["writes done"] > 100, "{tally:?}");
}

fn url_of(member: &Value) -> Option<&str> {
    member["url"].as_str()
}

async fn add(client: &Client, url: &str) {
    let body = json!({ "url": url });
    eventually(JOIN_LIMIT, "the node is added", || async {
        let answer = client.post_json("/cluster/members/", &body).await;
        (answer.status == 200).then_some(())
    })
    .await;
}
