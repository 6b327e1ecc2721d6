//! P8: membership changes while the cluster serves: lost disks, added and removed nodes, leadership transfers.

use std::collections::BTreeMap;
use std::time::Duration;

use brink_tests::{Answer, Client, Cluster, Load, Options, entries, eventually};
use serde_json::{Value, json};

/// Time for a node to become a member.
const JOIN_LIMIT: Duration = Duration::from_secs(60);

/// The members according to a node, by URL.
async fn members(client: &Client) -> BTreeMap<String, Value> {
    let list = client.get("/cluster/members/").await.expect(200).json;
    let list = list["members"].as_array().unwrap().iter();
    list.map(|member| (member["url"].as_str().unwrap().to_owned(), member.clone())).collect()
}

async fn add(client: &Client, url: &str, role: &str) {
    client.add_member(url, role).await.expect(200);
}

/// Requests once that a member is removed.
async fn remove(client: &Client, url: &str) -> Answer {
    let url = url.replace('/', "%2F");
    client.delete(&format!("/cluster/members/{url}/")).await
}

#[tokio::test]
async fn a_node_that_lost_its_disk_rejoins_as_a_new_member() {
    let mut cluster = Cluster::start(3).await;
    for number in 0..50 {
        cluster.client(0).write(&format!("before/{number}"), &json!(number)).await.expect(201);
    }
    let leader = cluster.leader().await;
    let (lost, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let before = members(cluster.client(leader)).await;
    cluster.nodes[lost].kill();
    std::fs::remove_dir_all(cluster.nodes[lost].data_dir()).unwrap();
    cluster.nodes[lost].start();
    cluster.ready().await;

    let url = cluster.nodes[lost].url.clone();
    let after = eventually(JOIN_LIMIT, "the new member is a voter", || async {
        let after = members(cluster.client(leader)).await;
        let id = &after[&url]["id"];
        (after.len() == 3 && *id != before[&url]["id"] && after[&url]["role"] == "voter").then_some(after)
    })
    .await;
    assert_eq!(after[&cluster.nodes[other].url]["id"], before[&cluster.nodes[other].url]["id"]);
    let found = entries(cluster.client(lost), "before/", "strong").await;
    assert_eq!(found.len(), 50);

    // It counts for the quorum: with it, the cluster survives the loss of another node.
    cluster.nodes[leader].kill();
    eventually(JOIN_LIMIT, "the other two nodes acknowledge writes", || async {
        (cluster.client(lost).put("after", &json!(1)).await.status < 300).then_some(())
    })
    .await;
    // It keeps its new id.
    cluster.nodes[lost].kill();
    cluster.nodes[lost].start();
    cluster.nodes[leader].start();
    cluster.ready().await;
    assert_eq!(members(cluster.client(lost)).await[&url]["id"], after[&url]["id"]);
}

/// If a node with an empty disk could vote, these two would elect a leader without the acknowledged write.
#[tokio::test]
async fn a_node_with_an_empty_disk_does_not_vote() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (behind, wiped) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.nodes[behind].kill();
    cluster.client(leader).write("acknowledged", &json!(1)).await.expect(201);
    cluster.nodes[leader].kill();
    cluster.nodes[wiped].kill();
    std::fs::remove_dir_all(cluster.nodes[wiped].data_dir()).unwrap();
    for node in [behind, wiped] {
        cluster.nodes[node].start();
    }
    for node in [behind, wiped] {
        cluster.nodes[node].answers().await;
    }
    // Longer than several elections.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for node in [behind, wiped] {
        let health = cluster.client(node).get("/health/").await.json;
        assert_eq!(health["cluster"]["has_quorum"], false, "{health}");
        cluster.client(node).put("lost", &json!(1)).await.expect(500);
    }
    // The node that has the write completes the majority, and admits the empty one.
    cluster.nodes[leader].start();
    cluster.ready().await;
    for node in &cluster.nodes {
        node.client.settled("/kv/acknowledged/?consistency=strong").await.expect(200);
    }
}

#[tokio::test]
async fn a_single_node_grows_to_three_and_shrinks_without_its_first() {
    let mut cluster = Cluster::prepare(3, Options::default());
    let urls: Vec<String> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
    cluster.nodes[0].knows(&[]);
    cluster.nodes[1].knows(&urls[..1]);
    cluster.nodes[2].knows(&urls[..1]);
    cluster.nodes[0].start();
    cluster.nodes[0].ready().await;
    cluster.client(0).write("first", &json!(1)).await.expect(201);

    // A node that was not added waits, and logs the command that adds it.
    cluster.nodes[1].start();
    eventually(JOIN_LIMIT, "the node logs that it waits", || async {
        cluster.nodes[1].log().contains("brink cluster add").then_some(())
    })
    .await;
    assert_eq!(members(cluster.client(0)).await.len(), 1);
    add(cluster.client(0), &urls[1], "voter").await;
    cluster.nodes[1].ready().await;
    cluster.nodes[2].start();
    cluster.nodes[2].lives().await;
    // Any node accepts the request.
    add(cluster.client(1), &urls[2], "voter").await;
    cluster.ready().await;
    eventually(JOIN_LIMIT, "the three nodes are healthy", || async {
        let health = cluster.client(2).get("/health/").await.json;
        ((&health["cluster"]["total_nodes"], &health["status"]) == (&json!(3), &json!("healthy"))).then_some(())
    })
    .await;
    cluster.client(2).settled("/kv/first/?consistency=strong").await.expect(200);
    // A repeated request changes nothing.
    add(cluster.client(2), &urls[2], "voter").await;

    let leader = cluster.leader().await;
    let left = cluster.client((leader + 1) % 3).clone();
    let left = &left;
    left.remove_member(&urls[leader]).await;
    assert_eq!(members(left).await.len(), 2);
    left.write("second", &json!(2)).await.expect(201);
    let unknown = eventually(JOIN_LIMIT, "the cluster answers", || async {
        let answer = remove(left, &urls[leader]).await;
        (answer.status < 500).then_some(answer)
    });
    unknown.await.expect(404);
    cluster.nodes[leader].kill();
    left.write("third", &json!(3)).await.expect(201);
}

/// The first node of a grown cluster has no `REPLICA_NODES`. With an empty disk it forms a new cluster, and must not take
/// part in the old one under its former id.
#[tokio::test]
async fn a_first_node_that_lost_its_disk_does_not_vote_in_its_old_cluster() {
    let mut cluster = Cluster::prepare(2, Options::default());
    let urls: Vec<String> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
    cluster.nodes[0].knows(&[]);
    cluster.nodes[1].knows(&urls[..1]);
    cluster.nodes[0].start();
    cluster.nodes[0].ready().await;
    cluster.nodes[1].start();
    cluster.nodes[1].lives().await;
    add(cluster.client(0), &urls[1], "voter").await;
    cluster.ready().await;
    let before = members(cluster.client(1)).await;

    cluster.nodes[0].kill();
    std::fs::remove_dir_all(cluster.nodes[0].data_dir()).unwrap();
    cluster.nodes[0].start();
    cluster.nodes[0].ready().await;
    assert_ne!(members(cluster.client(0)).await[&urls[0]]["id"], before[&urls[0]]["id"]);
    // The old cluster needs both votes, and one of them is lost with its disk.
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.client(1).put("a", &json!(1)).await.expect(500);
    assert_eq!(members(cluster.client(1)).await[&urls[0]]["healthy"], false);
}

#[tokio::test]
async fn a_learner_serves_reads_and_does_not_count_for_the_quorum() {
    let mut cluster = Cluster::prepare(4, Options::default());
    let urls: Vec<String> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
    for index in 0..3 {
        let others: Vec<String> = (0..3).filter(|other| *other != index).map(|other| urls[other].clone()).collect();
        cluster.nodes[index].knows(&others);
        cluster.nodes[index].start();
    }
    cluster.nodes[3].knows(&urls[..3]);
    cluster.ready().await;
    cluster.nodes[3].start();
    cluster.nodes[3].lives().await;
    add(cluster.client(0), &urls[3], "learner").await;
    cluster.nodes[3].ready().await;
    assert_eq!(members(cluster.client(0)).await[&urls[3]]["role"], "learner");
    let health = cluster.client(0).get("/health/").await.json;
    assert_eq!(health["cluster"]["required_for_quorum"], 2, "{health}");

    // It accepts writes like any node, and its strong reads show them at once.
    cluster.client(3).write("a", &json!(1)).await.expect(201);
    cluster.client(3).settled("/kv/a/?consistency=strong").await.expect(200);
    eventually(JOIN_LIMIT, "the learner's lag is known, and small", || async {
        let lag = members(cluster.client(0)).await[&urls[3]]["lag_entries"].as_u64()?;
        (lag < 10).then_some(())
    })
    .await;

    // The learner and one voter have no quorum.
    cluster.nodes[0].kill();
    cluster.nodes[1].kill();
    eventually(JOIN_LIMIT, "the loss is noticed", || async {
        (cluster.client(3).put("b", &json!(1)).await.status == 500).then_some(())
    })
    .await;
    cluster.client(3).get("/kv/a/").await.expect(200);
    cluster.nodes[0].start();
    cluster.ready().await;
    add(cluster.client(2), &urls[3], "voter").await;
    assert_eq!(members(cluster.client(2)).await[&urls[3]]["role"], "voter");
}

#[tokio::test]
async fn a_change_that_would_cost_the_quorum_is_refused() {
    let mut cluster = Cluster::start(3).await;
    let urls: Vec<String> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
    let leader = cluster.leader().await;
    let (lost, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.nodes[lost].kill();
    eventually(JOIN_LIMIT, "the loss is noticed", || async {
        let health = cluster.client(leader).get("/health/").await.json;
        (health["cluster"]["healthy_nodes"] == 2).then_some(())
    })
    .await;
    let client = cluster.client(leader);
    remove(client, &urls[other]).await.expect(409);
    // No node runs there.
    let nobody = "http://127.0.0.1:1/kv-store/v1";
    let refused = client.post_json("/cluster/members/", &json!({ "url": nobody })).await.expect(409);
    assert_eq!(refused.json["type"], "urn:brink:problem:membership-refused");
    client.post_json("/cluster/members/", &json!({ "url": "node4" })).await.expect(400);
    client.post_json("/cluster/members/", &json!({ "url": urls[0], "role": "king" })).await.expect(400);
    for unknown in [
        client.put_json("/cluster/leader/", &json!({ "url": nobody })).await,
        remove(client, nobody).await,
        remove(cluster.client(other), nobody).await,
    ] {
        assert_eq!(unknown.expect(404).json["type"], "urn:brink:problem:not-a-member");
    }
    // The leadership is not transferred to an unreachable node: this would cost an election.
    let refused = client.put_json("/cluster/leader/", &json!({ "url": urls[lost] })).await.expect(409);
    assert!(refused.json["detail"].as_str().unwrap().contains("cannot be reached"), "{}", refused.json);
    assert_eq!(cluster.leader().await, leader);
    // The dead node can be removed.
    client.remove_member(&urls[lost]).await;
    assert_eq!(members(client).await.len(), 2);
    client.write("a", &json!(1)).await.expect(201);
}

#[tokio::test]
async fn the_leadership_is_transferred_to_the_named_node() {
    let cluster = Cluster::start(3).await;
    let term = async || {
        let terms =
            cluster.nodes.iter().map(async |node| node.client.get("/cluster/leader/").await.json["term"].as_u64());
        let mut highest = None;
        for term in terms {
            highest = highest.max(term.await);
        }
        highest.unwrap()
    };
    let (mut transfers, mut other_elections) = (0, 0);
    while transfers < 5 {
        cluster.healthy().await;
        let (leader, before) = (cluster.leader().await, term().await);
        let successor = (leader + 1) % 3;
        cluster.client(leader).make_leader(&cluster.nodes[successor].url).await.expect(200);
        let next = cluster.leader().await;
        let after = term().await;
        cluster.client(leader).write("a", &json!(1)).await;
        match next == successor {
            true => transfers += 1,
            // A transfer takes one term. After more of them, the successor has led, and there was another election.
            false => {
                assert!(
                    after > before + 1,
                    "{next} leads in term {after}, and not {successor} after {leader} in {before}"
                );
                other_elections += 1;
                assert!(other_elections < 20, "no node leads for long");
            }
        }
    }
}

/// Restarts one node after the other (SIGTERM) under load.
#[tokio::test]
async fn a_rolling_restart_loses_no_acknowledged_write() {
    let mut cluster = Cluster::start(3).await;
    let load = Load::start(&cluster, "rolling", 2);
    for node in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        // There is load at each stop, and 200 writes in all.
        let count = load.count();
        eventually(JOIN_LIMIT, "writes are acknowledged", || async { (load.count() > count + 70).then_some(()) }).await;
        assert!(cluster.nodes[node].stop(), "the node did not stop cleanly");
        cluster.nodes[node].start();
        cluster.ready().await;
    }
    let acknowledged = load.stop().await;
    assert!(acknowledged.len() > 200, "only {} writes", acknowledged.len());
    let found = entries(cluster.client(0), "rolling/", "strong").await;
    for (key, number) in &acknowledged {
        assert_eq!(found.get(key).and_then(Value::as_u64), Some(*number), "{key}");
    }
}
