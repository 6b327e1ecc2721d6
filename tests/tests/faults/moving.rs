//! Members that change their address while the network is cut: the majority decides, and the others follow it.

use std::time::Duration;

use brink_tests::hosts::Hosts;
use brink_tests::{Cluster, Node, Options, eventually};
use serde_json::{Value, json};

use crate::alone::alone;

/// Time for an election, for a node to get its place, and for nodes to notice the end of a partition.
const LIMIT: Duration = Duration::from_secs(60);

async fn start() -> (Cluster, Hosts) {
    let hosts = Hosts::new(3);
    let mut cluster = Cluster::prepare_at(hosts.places(), Options::default());
    cluster.nodes.iter_mut().for_each(Node::start);
    cluster.ready().await;
    (cluster, hosts)
}

async fn writes(cluster: &Cluster, node: usize) {
    eventually(LIMIT, "a write succeeds", || async {
        (cluster.client(node).put("written", &json!(node)).await.status < 300).then_some(())
    })
    .await;
}

/// Waits until a node lists three members, one of them with this URL and id.
async fn lists(cluster: &Cluster, node: usize, url: &str, id: &Value) {
    eventually(LIMIT, &format!("node {node} lists {url}"), || async {
        let found = cluster.client(node).member_ids().await;
        (found[url] == *id && found.as_object()?.len() == 3).then_some(())
    })
    .await;
}

fn isolate(hosts: &Hosts, node: usize) {
    for other in (0..3).filter(|other| *other != node) {
        hosts.cut(node, other);
        hosts.cut(other, node);
    }
}

/// Stops a node, and starts it on another port. Returns its id.
async fn move_node(cluster: &mut Cluster, node: usize, port: u16) -> Value {
    let id = cluster.client(node).member_ids().await[&cluster.nodes[node].url].clone();
    assert!(id.is_string());
    assert!(cluster.nodes[node].stop());
    // The others may have moved since it was last started.
    let others = cluster.nodes.iter().enumerate().filter(|(other, _)| *other != node);
    let others: Vec<String> = others.map(|(_, other)| other.url.clone()).collect();
    cluster.nodes[node].knows(&others);
    cluster.nodes[node].move_to(port);
    cluster.nodes[node].start();
    id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_cut_off_follows_a_member_that_moved_meanwhile() {
    let _alone = alone().await;
    let (mut cluster, hosts) = start().await;
    let leader = cluster.leader().await;
    let (moved, cut_off) = ((leader + 1) % 3, (leader + 2) % 3);
    let before = cluster.client(cut_off).member_ids().await;
    isolate(&hosts, cut_off);
    let id = move_node(&mut cluster, moved, 8_001).await;
    let url = cluster.nodes[moved].url.clone();
    for node in [leader, moved] {
        lists(&cluster, node, &url, &id).await;
        writes(&cluster, node).await;
    }
    assert_eq!(cluster.client(cut_off).member_ids().await, before);
    assert!(cluster.client(cut_off).put("alone", &json!(1)).await.status >= 500);

    hosts.heal();
    lists(&cluster, cut_off, &url, &id).await;
    writes(&cluster, cut_off).await;
    // The two count for the quorum, at the new address.
    cluster.nodes[leader].kill();
    writes(&cluster, cut_off).await;
    writes(&cluster, moved).await;
    // It has that from the log, and not from hearsay.
    cluster.nodes[moved].kill();
    cluster.nodes[cut_off].kill();
    cluster.nodes[cut_off].start();
    cluster.nodes[cut_off].answers().await;
    lists(&cluster, cut_off, &url, &id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_while_a_member_moves_follows_the_majority() {
    let _alone = alone().await;
    let (mut cluster, hosts) = start().await;
    for (round, delay_ms) in (1..).zip([0, 60, 150, 400]) {
        let leader = cluster.leader().await;
        let (moved, other) = ((leader + 1) % 3, (leader + 2) % 3);
        let id = move_node(&mut cluster, moved, 8_000 + round).await;
        // Before the leader hears of it, while it changes the membership, or after that.
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        isolate(&hosts, leader);
        let url = cluster.nodes[moved].url.clone();
        for node in [other, moved] {
            writes(&cluster, node).await;
            lists(&cluster, node, &url, &id).await;
        }

        hosts.heal();
        lists(&cluster, leader, &url, &id).await;
        for node in 0..3 {
            writes(&cluster, node).await;
            let found = cluster.client(node).member_ids().await;
            assert_eq!(found, cluster.client(other).member_ids().await, "after {delay_ms} ms");
        }
    }
}
