//! P1: what was acknowledged survives the loss of power of all nodes at once, with everything lost that was not synced.
//!
//! Unlike SIGKILL, which leaves what was written with the kernel, this finds an acknowledgement that came before its
//! sync.

use std::collections::BTreeMap;
use std::time::Duration;

use brink_tests::{Cluster, Load, Options, Tail, entries, eventually};

use crate::OnDisks;

/// How long the cluster may take to be whole again.
const WHOLE_LIMIT: Duration = Duration::from_secs(20);

/// Fewer writes are no load.
const WRITES_MIN: usize = 50;

async fn check(cluster: &Cluster, name: &str, acknowledged: &BTreeMap<String, u64>) {
    assert!(acknowledged.len() > WRITES_MIN, "{} writes are no load", acknowledged.len());
    for node in &cluster.nodes {
        let found = entries(&node.client, &format!("{name}/"), "strong").await;
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|(key, number)| found.get(*key).and_then(serde_json::Value::as_u64) != Some(**number))
            .collect();
        assert!(lost.is_empty(), "{} of {} lost on {}: {lost:?}", lost.len(), acknowledged.len(), node.url);
    }
}

/// Cuts the power of all nodes under load, again and again.
async fn cut_under_load(options: Options, tails: &[Tail]) {
    let mut on = OnDisks::start(3, options).await;
    for (round, tail) in tails.iter().enumerate() {
        let name = format!("round{round}");
        let load = Load::start(&on.cluster, &name, 4);
        tokio::time::sleep(Duration::from_secs(1)).await;
        eventually(WHOLE_LIMIT, "there is a load", || async { (load.count() > WRITES_MIN).then_some(()) }).await;
        on.cluster.kill_all();
        let acknowledged = load.stop().await;
        for disk in &on.disks {
            disk.cut(*tail);
        }
        on.start_all().await;
        check(&on.cluster, &name, &acknowledged).await;
        for node in &on.cluster.nodes {
            assert!(!node.log().contains("has lost"), "no disk broke a promise:\n{}", node.log());
        }
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_with_the_power_of_all_nodes() {
    cut_under_load(Options::default(), &[Tail::Lost, Tail::Lost]).await;
}

#[tokio::test]
async fn a_torn_tail_is_cut_off_and_nothing_acknowledged_with_it() {
    let torn = |bytes| Tail::Torn { bytes };
    cut_under_load(Options::default(), &[torn(1), torn(700), torn(100_000)]).await;
}

/// The log is cut behind snapshots, so that what a node needs after it is in the state, which is not synced per write.
#[tokio::test]
async fn nothing_acknowledged_is_lost_when_the_log_is_short() {
    let args = ["--snapshot-entries", "20"].map(str::to_owned).to_vec();
    cut_under_load(Options { args, ..Options::default() }, &[Tail::Lost, Tail::Torn { bytes: 3_000 }]).await;
}

#[tokio::test]
async fn the_cluster_lives_through_the_loss_of_power_of_one_node() {
    let mut on = OnDisks::start(3, Options::default()).await;
    let load = Load::start(&on.cluster, "one", 2);
    for victim in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        on.cluster.nodes[victim].kill();
        on.disks[victim].cut(Tail::Torn { bytes: 500 });
        let before = load.count();
        eventually(WHOLE_LIMIT, "the others go on", || async { (load.count() > before + 20).then_some(()) }).await;
        on.cluster.nodes[victim].start();
        on.cluster.ready().await;
    }
    check(&on.cluster, "one", &load.stop().await).await;
}

/// The first moments count too: what a node promised as the cluster formed is on its disk, directories included.
#[tokio::test]
async fn a_cluster_that_has_just_formed_survives_the_loss_of_power() {
    let mut on = OnDisks::start(3, Options::default()).await;
    on.cluster.client(0).put("first", &serde_json::json!(1)).await.expect(201);
    on.cluster.kill_all();
    for disk in &on.disks {
        disk.cut(Tail::Lost);
    }
    on.start_all().await;
    on.cluster.client(0).get("/kv/first/?consistency=strong").await.expect(200);
}
