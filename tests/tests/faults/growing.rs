//! Nodes come, die for good and are replaced, and the leader is removed, all while clients are at work on every node.

use std::collections::BTreeSet;
use std::time::Duration;

use brink_tests::workload::{Clients, Desk, Pace};
use brink_tests::{Client, Cluster, Options, episode, eventually, history};
use serde_json::{Value, json};

/// How long a node may take to become a member.
const JOIN_LIMIT: Duration = Duration::from_secs(30);

/// How many nodes the cluster grows to.
const SIZE: usize = 5;

/// How long the cluster is left alone between two changes.
const SPAN: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_replaces_a_dead_node_and_loses_its_leader_while_clients_are_at_work() {
    let _alone = super::ALONE.lock().await;
    let mut cluster = Cluster::prepare(SIZE, Options::default());
    let urls: Vec<String> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
    cluster.nodes[0].knows(&[]);
    cluster.nodes[0].start();
    cluster.nodes[0].ready().await;
    let desk = Desk::new(&cluster);
    let clients = Clients::start(&desk, Pace { clients: 2, ..Pace::default() }, 1);

    // To three and to five.
    for node in 1..SIZE {
        tokio::time::sleep(SPAN).await;
        cluster.nodes[node].knows(&urls[..1]);
        cluster.nodes[node].start();
        desk.note_life(node);
        cluster.nodes[node].answers().await;
        add(cluster.client(node - 1), &urls[node]).await;
        cluster.nodes[node].ready().await;
    }

    // One dies and comes back with an empty disk: another takes its place.
    tokio::time::sleep(SPAN).await;
    let leader = cluster.leader().await;
    let dead = (1..SIZE).find(|node| *node != leader).unwrap();
    cluster.nodes[dead].kill();
    desk.note_life(dead);
    std::fs::remove_dir_all(cluster.nodes[dead].data_dir()).unwrap();
    tokio::time::sleep(SPAN).await;
    cluster.nodes[dead].start();
    desk.note_life(dead);
    cluster.nodes[dead].ready().await;

    // The leader must go.
    tokio::time::sleep(SPAN).await;
    let leader = cluster.leader().await;
    let other = (leader + 1) % SIZE;
    remove(cluster.client(other), &urls[leader]).await;
    tokio::time::sleep(SPAN).await;
    clients.stop().await;

    let left: Vec<usize> = (0..SIZE).filter(|node| *node != leader).collect();
    let members = cluster.client(other).get("/cluster/members/").await.expect(200).json;
    let members: BTreeSet<&str> = members["members"].as_array().unwrap().iter().filter_map(url_of).collect();
    assert_eq!(members, left.iter().map(|node| urls[*node].as_str()).collect());
    for node in left {
        desk.read_everything(node).await;
    }
    let calls = desk.history.calls();
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
    eventually(JOIN_LIMIT, "the node is let in", || async {
        let answer = client.post_json("/cluster/members/", &body).await;
        (answer.status == 200).then_some(())
    })
    .await;
}

async fn remove(client: &Client, url: &str) {
    let path = format!("/cluster/members/{}/", url.replace('/', "%2F"));
    eventually(JOIN_LIMIT, "the node is removed", || async {
        let answer = client.delete(&path).await;
        // An answer that was lost means that it is not there any more.
        [204, 404, 409].contains(&answer.status).then_some(())
    })
    .await;
}
