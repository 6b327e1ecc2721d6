//! Who belongs to a cluster: removed members, members that move, copies of members, and nodes that must not begin anew.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use brink_tests::{Client, Cluster, Options, eventually, free_ports};
use serde_json::{Value, json};

/// Time for a node to notice where it stands, or to get its place.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);

async fn add(client: &Client, url: &str, role: &str) -> u16 {
    let answer = client.add_member(url, role).await;
    println!("{url}: {} {}", answer.status, answer.json["detail"]);
    answer.status
}

async fn writes(cluster: &Cluster, node: usize) {
    eventually(NOTICE_LIMIT, "a write succeeds", || async {
        (cluster.client(node).put("written", &json!(node)).await.status < 300).then_some(())
    })
    .await;
}

async fn says(cluster: &Cluster, node: usize, words: &str) {
    eventually(NOTICE_LIMIT, &format!("the log says {words:?}"), || async {
        cluster.nodes[node].log().contains(words).then_some(())
    })
    .await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        match path.is_dir() {
            true => copy(&path, &to.join(name)),
            false => drop(std::fs::copy(&path, to.join(name)).unwrap()),
        }
    }
}

#[tokio::test]
async fn a_removed_member_knows_it_and_can_be_let_in_again() {
    let cluster = Cluster::start(3).await;
    cluster.client(0).write("x", &json!("old")).await.expect(201);
    let leader = cluster.leader().await;
    let removed = (leader + 1) % 3;
    let (client, url) = (cluster.client(removed), &cluster.nodes[removed].url);
    let before = client.member_ids().await;
    // It has the old value before it is removed.
    client.settled("/kv/x/?consistency=strong").await.expect(200);
    cluster.client(leader).remove_member(url).await;
    cluster.client(leader).write("x", &json!("new")).await.expect(200);

    says(&cluster, removed, "this node was removed from its cluster").await;
    let health = client.get("/health/").await.expect(200).json;
    assert_eq!(
        (&health["status"], &health["cluster"]["can_accept_writes"], &health["cluster"]["leader"]),
        (&json!("not_taking_part"), &json!(false), &Value::Null),
        "{health}"
    );
    assert_eq!(client.try_send("GET", "/readyz", &[], "").await.unwrap().status, 503);
    let refused = client.put("x", &json!("its own")).await.expect(503).json;
    assert_eq!(
        (&refused["type"], &refused["outcome"]),
        (&json!("urn:brink:problem:not-taking-part"), &json!("not_written"))
    );
    client.get("/kv/x/?consistency=strong").await.expect(503);
    let local = client.get("/kv/x/").await.expect(200);
    assert_eq!((&local.json["value"], local.header("brink-consistency")), (&json!("old"), Some("local")));

    assert_eq!(add(cluster.client(leader), url, "voter").await, 200);
    cluster.ready().await;
    assert_eq!(client.settled("/kv/x/?consistency=strong").await.expect(200).json["value"], "new");
    assert_eq!(client.member_ids().await, before);
    writes(&cluster, removed).await;
}

#[tokio::test]
async fn a_member_that_comes_back_at_another_address_is_followed() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let moved = (leader + 1) % 3;
    let id = cluster.client(leader).member_ids().await[&cluster.nodes[moved].url].clone();
    cluster.nodes[moved].stop();
    cluster.nodes[moved].move_to(free_ports(1)[0]);
    cluster.nodes[moved].start();
    cluster.ready().await;
    writes(&cluster, moved).await;
    let after = cluster.client(leader).member_ids().await;
    assert_eq!((&after[&cluster.nodes[moved].url], after.as_object().unwrap().len()), (&id, 3), "{after}");
    // To add it is to say what is so already.
    assert_eq!(add(cluster.client(leader), &cluster.nodes[moved].url, "voter").await, 200);
    assert_eq!(cluster.client(leader).member_ids().await, after);
    // It counts for the quorum at its new address.
    let third = (leader + 2) % 3;
    cluster.nodes[third].kill();
    writes(&cluster, moved).await;
}

#[tokio::test]
async fn members_that_all_move_find_each_other() {
    let mut cluster = Cluster::start(3).await;
    cluster.client(0).write("before", &json!(1)).await.expect(201);
    let before = cluster.client(0).member_ids().await;
    cluster.kill_all();
    for (node, port) in cluster.nodes.iter_mut().zip(free_ports(3)) {
        node.move_to(port);
    }
    let urls: Vec<String> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
    for node in &mut cluster.nodes {
        let others: Vec<String> = urls.iter().filter(|url| **url != node.url).cloned().collect();
        node.knows(&others);
        node.start();
    }
    cluster.ready().await;
    for node in 0..3 {
        cluster.client(node).settled("/kv/before/?consistency=strong").await.expect(200);
        writes(&cluster, node).await;
    }
    let after = cluster.client(0).member_ids().await;
    let known = |ids: &Value| {
        ids.as_object().unwrap().values().map(ToString::to_string).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!((known(&after), after.as_object().unwrap().len()), (known(&before), 3), "{after}");
    assert!(urls.iter().all(|url| after[url].is_string()), "{after}");
}

#[tokio::test]
async fn two_members_that_swap_addresses_both_stay() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let before = cluster.client(leader).member_ids().await;
    let ports = [cluster.nodes[one].port, cluster.nodes[other].port];
    let urls = [cluster.nodes[one].url.clone(), cluster.nodes[other].url.clone()];
    cluster.nodes[one].stop();
    cluster.nodes[other].stop();
    let third = cluster.nodes[leader].url.clone();
    for (node, place) in [(one, 1), (other, 0)] {
        cluster.nodes[node].move_to(ports[place]);
        cluster.nodes[node].knows(&[third.clone(), urls[1 - place].clone()]);
        cluster.nodes[node].start();
    }
    cluster.ready().await;
    let after = cluster.client(leader).member_ids().await;
    assert_eq!((&after[&urls[0]], &after[&urls[1]]), (&before[&urls[1]], &before[&urls[0]]), "{after}");
    for node in 0..3 {
        writes(&cluster, node).await;
    }
}

#[tokio::test]
async fn a_copy_of_a_data_directory_takes_no_part_and_says_why() {
    let mut cluster = Cluster::prepare(4, Options::default());
    let urls: Vec<String> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
    for node in 0..3 {
        let others: Vec<String> = urls[..3].iter().filter(|url| **url != urls[node]).cloned().collect();
        cluster.nodes[node].knows(&others);
        cluster.nodes[node].start();
    }
    cluster.ready().await;
    let leader = cluster.leader().await;
    let original = (leader + 1) % 3;
    cluster.nodes[original].stop();
    copy(&cluster.nodes[original].data_dir(), &cluster.nodes[3].data_dir());
    cluster.nodes[original].start();
    cluster.ready().await;
    let before = cluster.client(leader).member_ids().await;

    cluster.nodes[3].knows(&urls[..3]);
    cluster.nodes[3].start();
    says(&cluster, 3, "this data directory was copied").await;
    cluster.nodes[3].answers().await;
    cluster.client(3).put("x", &json!(1)).await.expect(503);
    assert_eq!(cluster.client(3).get("/health/").await.json["status"], "not_taking_part");
    cluster
        .client(leader)
        .post_json("/cluster/members/", &json!({ "url": urls[3], "role": "voter" }))
        .await
        .expect(409);
    for node in 0..3 {
        writes(&cluster, node).await;
        assert_eq!(cluster.client(node).member_ids().await, before);
    }
}

#[tokio::test]
async fn changes_made_at_once_do_not_undo_each_other() {
    let mut cluster = Cluster::prepare(6, Options::default());
    let urls: Vec<String> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
    for node in 0..6 {
        let others: Vec<String> = urls[..3].iter().filter(|url| **url != urls[node]).cloned().collect();
        cluster.nodes[node].knows(&others);
    }
    for node in &mut cluster.nodes[..3] {
        node.start();
    }
    cluster.ready().await;
    for node in &mut cluster.nodes[3..] {
        node.start();
        node.lives().await;
    }
    let (first, second) = (cluster.client(0), cluster.client(1));
    let answers = tokio::join!(
        add(first, &urls[3], "voter"),
        add(second, &urls[4], "learner"),
        add(second, &urls[5], "voter"),
        first.remove_member(&urls[2]),
    );
    assert_eq!(answers, (200, 200, 200, ()));
    let after = cluster.client(0).member_ids().await;
    let expected = [&urls[0], &urls[1], &urls[3], &urls[4], &urls[5]];
    assert!(expected.iter().all(|url| after[*url].is_string()) && after.as_object().unwrap().len() == 5, "{after}");
}

#[tokio::test]
async fn a_node_that_waits_for_a_cluster_does_not_found_one_alone() {
    let mut cluster = Cluster::prepare(2, Options::default());
    let first = cluster.nodes[0].url.clone();
    cluster.nodes[0].knows(&[]);
    cluster.nodes[1].knows(&[first]);
    cluster.nodes[0].start();
    cluster.nodes[0].ready().await;
    cluster.nodes[1].start();
    says(&cluster, 1, "brink cluster add").await;
    cluster.nodes[1].stop();

    cluster.nodes[1].knows(&[]);
    cluster.nodes[1].start();
    assert_ne!(cluster.nodes[1].ended(NOTICE_LIMIT).await, 0);
    says(&cluster, 1, "REPLICA_NODES is empty, and it waits to be let into a cluster").await;
}

/// Nodes that name each other by `localhost` and by 127.0.0.1 mean the same.
#[tokio::test]
async fn localhost_is_one_host_by_either_name() {
    let mut cluster = Cluster::prepare(3, Options::default());
    let urls: Vec<String> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
    for (number, node) in cluster.nodes.iter_mut().enumerate() {
        let others = urls.iter().filter(|url| **url != node.url);
        let others: Vec<String> =
            others.map(|url| url.replace("127.0.0.1", if number == 0 { "LOCALHOST" } else { "localhost" })).collect();
        node.knows(&others);
        node.start();
    }
    cluster.ready().await;
    for node in 0..3 {
        writes(&cluster, node).await;
    }
}

/// The directory of a node is not spoilt by a list that names the node itself.
#[tokio::test]
async fn a_list_that_names_the_node_itself_is_refused_before_anything_is_stored() {
    let mut cluster = Cluster::prepare(1, Options::default());
    let own = cluster.nodes[0].url.replace("127.0.0.1", "LocalHost");
    cluster.nodes[0].knows(&[own]);
    cluster.nodes[0].start();
    assert_eq!(cluster.nodes[0].ended(NOTICE_LIMIT).await, 2);
    let lines = cluster.nodes[0].log();
    assert!(lines.contains("that is this node's own URL") && lines.lines().count() == 1, "{lines}");
    let output = Command::new("ls").arg(cluster.nodes[0].data_dir()).output().unwrap();
    assert!(output.stdout.is_empty());
}
