//! P5 and P8 under partitions: what the nodes on each side can do.

use std::time::Duration;

use brink_tests::hosts::Hosts;
use brink_tests::{Client, Cluster, Options, eventually, undisturbed};
use serde_json::json;

use crate::alone::alone;

/// Time for the nodes to notice a partition or its end.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);

async fn start() -> (Cluster, Hosts) {
    let hosts = Hosts::new(3);
    let mut cluster = Cluster::prepare_at(hosts.places(), Options::default());
    cluster.nodes.iter_mut().for_each(brink_tests::Node::start);
    cluster.ready().await;
    (cluster, hosts)
}

async fn status(client: &Client) -> String {
    client.get("/health/").await.expect(200).json["status"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_isolated_leader_is_replaced_and_serves_only_its_own_state() {
    let _alone = alone().await;
    let (cluster, hosts) = start().await;
    cluster.healthy().await;
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.client(leader).write("a", &json!(1)).await.expect(201);
    for follower in [one, other] {
        hosts.cut(leader, follower);
        hosts.cut(follower, leader);
    }
    let isolated = cluster.client(leader);
    let (first, others) = (cluster.client(one), cluster.client(other));
    eventually(NOTICE_LIMIT, "the majority acknowledges writes", || async {
        (first.put("a", &json!(2)).await.status == 200).then_some(())
    })
    .await;
    // The old leader may not have noticed its isolation, but a strong read never returns the old value.
    let read = isolated.get("/kv/a/?consistency=strong").await;
    assert_eq!(read.status, 503, "{}", read.json);
    eventually(NOTICE_LIMIT, "all nodes of the majority acknowledge writes", || async {
        (others.put("a", &json!(2)).await.status == 200).then_some(())
    })
    .await;
    let read = isolated.get("/kv/a/?consistency=local").await.expect(200);
    assert_eq!((&read.json["value"], read.header("brink-consistency")), (&json!(1), Some("local")));
    isolated.put("a", &json!(3)).await.expect(500);
    eventually(NOTICE_LIMIT, "the isolated node reports no quorum", || async {
        (status(isolated).await == "no_quorum").then_some(())
    })
    .await;

    hosts.heal();
    eventually(NOTICE_LIMIT, "the node has rejoined the cluster", || async {
        let read = isolated.get("/kv/a/?consistency=strong").await;
        (read.status == 200 && read.json["value"] != 1 && status(isolated).await == "healthy").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_with_a_one_way_link_does_not_disturb_the_others() {
    let _alone = alone().await;
    undisturbed(a_one_way_link).await;
}

async fn a_one_way_link() -> Result<(), String> {
    let (cluster, hosts) = start().await;
    cluster.healthy().await;
    let leader = cluster.leader().await;
    let (mute, deaf) = ((leader + 1) % 3, (leader + 2) % 3);
    let term = async || cluster.client(leader).get("/cluster/leader/").await.expect(200).json["term"].clone();
    let before = term().await;
    for cut_off in [mute, deaf] {
        for other in (0..3).filter(|other| *other != cut_off) {
            let (from, to) = if cut_off == mute { (cut_off, other) } else { (other, cut_off) };
            hosts.cut(from, to);
        }
        let until = std::time::Instant::now() + Duration::from_secs(3);
        while std::time::Instant::now() < until {
            let written = cluster.client(leader).put("a", &json!(1)).await;
            if written.status >= 300 {
                return Err(written.json.to_string());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        hosts.heal();
        eventually(NOTICE_LIMIT, "the cluster is whole again", || async {
            (cluster.client(cut_off).put("a", &json!(2)).await.status < 300
                && status(cluster.client(leader)).await == "healthy")
                .then_some(())
        })
        .await;
    }
    let after = (cluster.leader().await, term().await);
    if after == (leader, before.clone()) {
        Ok(())
    } else {
        Err(format!("there was an election: {leader} in {before}, {after:?}"))
    }
}
