//! Learners (read replicas): nodes that receive every write and serve reads, but neither vote nor lead.

use std::time::Duration;

use brink_tests::{Client, Cluster, Options, entries, eventually};
use serde_json::{Value, json};

use super::snapshot::{SNAPSHOT_ENTRIES, WRITES, fill, options};

/// Time limit of every wait. Generous, because other tests may keep the machine busy.
const LIMIT: Duration = Duration::from_secs(60);

/// The index of the learner.
const LEARNER: usize = 3;

/// Starts three voters and a learner.
async fn with_learner(options: Options) -> Cluster {
    let mut cluster = Cluster::prepare(4, options);
    let urls: Vec<String> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
    for index in 0..LEARNER {
        let others: Vec<String> =
            (0..LEARNER).filter(|other| *other != index).map(|other| urls[other].clone()).collect();
        cluster.nodes[index].knows(&others);
        cluster.nodes[index].start();
    }
    cluster.ready().await;
    cluster.nodes[LEARNER].knows(&urls[..LEARNER]);
    cluster.nodes[LEARNER].start();
    cluster.nodes[LEARNER].lives().await;
    cluster.client(0).add_member(&urls[LEARNER], "learner").await.expect(200);
    cluster.nodes[LEARNER].ready().await;
    cluster
}

/// The lag of a node according to a client's node: in the members, in the health and in the metrics.
async fn lags(client: &Client, url: &str) -> [Option<u64>; 3] {
    let find = |list: &Value| {
        let node = list.as_array()?.iter().find(|node| node["url"] == url)?.clone();
        node["lag_entries"].as_u64()
    };
    let members = find(&client.get("/cluster/members/").await.expect(200).json["members"]);
    let health = find(&client.get("/health/").await.expect(200).json["cluster"]["nodes"]);
    let metrics = String::from_utf8(client.get("/metrics").await.body).unwrap();
    let is_lag = |line: &&str| line.starts_with("brink_replication_lag{") && line.contains(url);
    let gauge = metrics.lines().find(is_lag).and_then(|line| line.rsplit_once(' ')?.1.parse().ok());
    [members, health, gauge]
}

#[tokio::test]
async fn a_learner_shows_its_lag_and_catches_up_from_a_snapshot() {
    let mut cluster = with_learner(options()).await;
    let url = cluster.nodes[LEARNER].url.clone();
    for voter in 0..LEARNER {
        eventually(LIMIT, "the learner's lag is known", || async {
            lags(cluster.client(voter), &url).await.iter().all(Option::is_some).then_some(())
        })
        .await;
    }
    cluster.nodes[LEARNER].kill();
    fill(cluster.client(0), "meanwhile").await;
    cluster.until_logs_are_cut(4 * SNAPSHOT_ENTRIES).await;
    for voter in 0..LEARNER {
        eventually(LIMIT, "the learner's lag grows", || async {
            let lags = lags(cluster.client(voter), &url).await;
            lags.iter().all(|lag| lag.is_some_and(|lag| lag >= 500)).then_some(())
        })
        .await;
    }

    cluster.nodes[LEARNER].start();
    cluster.nodes[LEARNER].ready().await;
    eventually(LIMIT, "the learner has caught up", || async {
        (entries(cluster.client(LEARNER), "meanwhile/", "local").await.len() == WRITES).then_some(())
    })
    .await;
    eventually(LIMIT, "the learner logs the snapshot", || async {
        cluster.nodes[LEARNER].log().contains("snapshot installed").then_some(())
    })
    .await;
    for node in 0..LEARNER {
        eventually(LIMIT, "the learner's lag is gone", || async {
            let lags = lags(cluster.client(node), &url).await;
            lags.iter().all(|lag| lag.is_some_and(|lag| lag < 10)).then_some(())
        })
        .await;
    }
    eventually(LIMIT, "the learner knows that its own lag is gone", || async {
        lags(cluster.client(LEARNER), &url).await[0].filter(|lag| *lag < 10)
    })
    .await;
    // Its strong reads are confirmed by the leader.
    cluster.client(1).write("fresh", &json!(1)).await.expect(201);
    let read = cluster.client(LEARNER).settled("/kv/fresh/?consistency=strong").await.expect(200);
    assert_eq!(read.header("brink-consistency"), Some("linearizable"));
}

#[tokio::test]
async fn a_learner_is_never_a_candidate() {
    let mut cluster = with_learner(Options::default()).await;
    for voter in 0..LEARNER {
        cluster.nodes[voter].kill();
    }
    let term = async || cluster.client(LEARNER).get("/cluster/leader/").await.expect(200).json["term"].clone();
    let before = term().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(term().await, before);
    assert!(!cluster.nodes[LEARNER].log().contains("cluster formed"));
    cluster.client(LEARNER).put("a", &json!(1)).await.expect(500);
    // The learner and one voter are two of four nodes, but one of three voters.
    cluster.nodes[0].start();
    cluster.nodes[0].answers().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.client(LEARNER).get("/health/").await.json["cluster"]["has_quorum"], false);
    cluster.nodes[1].start();
    eventually(LIMIT, "two voters are a majority", || async {
        (cluster.client(LEARNER).put("a", &json!(1)).await.status < 300).then_some(())
    })
    .await;
}
