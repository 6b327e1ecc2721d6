//! P1: acknowledged writes survive a power cut of all nodes at once, with all unsynced data lost.
//!
//! After SIGKILL the kernel still has unsynced writes. A power cut exposes an acknowledgement that came before its sync.

use std::collections::BTreeMap;
use std::time::Duration;

use brink_tests::{Cluster, Load, Options, Tail, entries, eventually};

use crate::setup::Setup;

/// Time for the cluster to recover. Only a guard.
const WHOLE_LIMIT: Duration = Duration::from_secs(60);

/// Minimum number of acknowledged writes under load.
const WRITES_MIN: usize = 50;

async fn check(cluster: &Cluster, name: &str, acknowledged: &BTreeMap<String, u64>) {
    assert!(acknowledged.len() > WRITES_MIN, "only {} writes", acknowledged.len());
    for node in &cluster.nodes {
        let found = entries(&node.client, &format!("{name}/"), "strong").await;
        let lost: Vec<_> = acknowledged
            .iter()
            .filter(|(key, number)| found.get(*key).and_then(serde_json::Value::as_u64) != Some(**number))
            .collect();
        assert!(lost.is_empty(), "{} of {} lost on {}: {lost:?}", lost.len(), acknowledged.len(), node.url);
    }
}

/// Cuts the power of all nodes under load, once for each tail.
async fn cut_under_load(options: Options, tails: &[Tail]) {
    let mut setup = Setup::start(3, options).await;
    for (round, tail) in tails.iter().enumerate() {
        let name = format!("round{round}");
        let load = Load::start(&setup.cluster, &name, 4);
        tokio::time::sleep(Duration::from_secs(1)).await;
        eventually(WHOLE_LIMIT, "there are acknowledged writes", || async {
            (load.count() > WRITES_MIN).then_some(())
        })
        .await;
        setup.cluster.kill_all();
        let acknowledged = load.stop().await;
        for disk in &setup.disks {
            disk.cut(*tail);
        }
        setup.start_all().await;
        check(&setup.cluster, &name, &acknowledged).await;
        for node in &setup.cluster.nodes {
            assert!(!node.log().contains("has lost"), "a node reports lost data:\n{}", node.log());
        }
    }
}

#[tokio::test]
async fn no_acknowledged_write_is_lost_in_a_power_cut_of_all_nodes() {
    cut_under_load(Options::default(), &[Tail::Lost, Tail::Lost]).await;
}

#[tokio::test]
async fn a_torn_tail_is_cut_off_without_acknowledged_writes() {
    let torn = |bytes| Tail::Torn { bytes };
    cut_under_load(Options::default(), &[torn(1), torn(700), torn(100_000)]).await;
}

/// The log is truncated behind snapshots. Then a node needs its state, which is not synced with every write.
#[tokio::test]
async fn no_acknowledged_write_is_lost_with_a_short_log() {
    let args = ["--snapshot-entries", "20"].map(str::to_owned).to_vec();
    cut_under_load(Options { args, ..Options::default() }, &[Tail::Lost, Tail::Torn { bytes: 3_000 }]).await;
}

#[tokio::test]
async fn the_cluster_survives_a_power_cut_of_one_node() {
    let mut setup = Setup::start(3, Options::default()).await;
    let load = Load::start(&setup.cluster, "one", 2);
    for victim in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        setup.cluster.nodes[victim].kill();
        setup.disks[victim].cut(Tail::Torn { bytes: 500 });
        let before = load.count();
        eventually(WHOLE_LIMIT, "the other nodes acknowledge writes", || async {
            (load.count() > before + 20).then_some(())
        })
        .await;
        setup.cluster.nodes[victim].start();
        setup.cluster.ready().await;
    }
    check(&setup.cluster, "one", &load.stop().await).await;
}

/// The first writes count too: the files and directories that a node creates while the cluster forms must be durable.
#[tokio::test]
async fn a_new_cluster_survives_a_power_cut() {
    let mut setup = Setup::start(3, Options::default()).await;
    setup.cluster.client(0).write("first", &serde_json::json!(1)).await.expect(201);
    setup.cluster.kill_all();
    for disk in &setup.disks {
        disk.cut(Tail::Lost);
    }
    setup.start_all().await;
    setup.cluster.client(0).settled("/kv/first/?consistency=strong").await.expect(200);
}
