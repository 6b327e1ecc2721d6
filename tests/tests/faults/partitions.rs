//! P5 and P8 under partitions: what each side may still do, and that the other side does not need to be told.

use std::time::Duration;

use brink_tests::hosts::Hosts;
use brink_tests::{Client, Cluster, Options, eventually};
use serde_json::json;

/// Within which the sides notice that they are apart, or together again.
const NOTICE_LIMIT: Duration = Duration::from_secs(10);

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
async fn a_leader_that_is_cut_off_is_succeeded_and_serves_only_what_it_has() {
    let _alone = super::ALONE.lock().await;
    let (cluster, hosts) = start().await;
    let leader = cluster.leader().await;
    let (one, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.client(leader).put("a", &json!(1)).await.expect(201);
    for follower in [one, other] {
        hosts.cut(leader, follower);
        hosts.cut(follower, leader);
    }
    let alone = cluster.client(leader);
    let (first, others) = (cluster.client(one), cluster.client(other));
    eventually(NOTICE_LIMIT, "the majority goes on", || async {
        (first.put("a", &json!(2)).await.status == 200).then_some(())
    })
    .await;
    // It may not know yet that it is alone, but it never shows the old value as the latest one.
    let read = alone.get("/kv/a/?consistency=strong").await;
    assert_eq!(read.status, 503, "{}", read.json);
    eventually(NOTICE_LIMIT, "all of the majority go on", || async {
        (others.put("a", &json!(2)).await.status == 200).then_some(())
    })
    .await;
    let read = alone.get("/kv/a/?consistency=local").await.expect(200);
    assert_eq!((&read.json["value"], read.header("brink-consistency")), (&json!(1), Some("local")));
    alone.put("a", &json!(3)).await.expect(500);
    eventually(NOTICE_LIMIT, "it says that it has no quorum", || async {
        (status(alone).await == "no_quorum").then_some(())
    })
    .await;

    hosts.heal();
    eventually(NOTICE_LIMIT, "it is part of the cluster again", || async {
        let read = alone.get("/kv/a/?consistency=strong").await;
        (read.status == 200 && read.json["value"] != 1 && status(alone).await == "healthy").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_is_not_heard_does_not_disturb_the_others() {
    let _alone = super::ALONE.lock().await;
    let (cluster, hosts) = start().await;
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
            assert!(written.status < 300, "{}", written.json);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        hosts.heal();
        eventually(NOTICE_LIMIT, "all are together again", || async {
            (cluster.client(cut_off).put("a", &json!(2)).await.status < 300
                && status(cluster.client(leader)).await == "healthy")
                .then_some(())
        })
        .await;
    }
    assert_eq!(cluster.leader().await, leader);
    assert_eq!(term().await, before, "nobody had to be elected");
}
