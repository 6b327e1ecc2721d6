//! Two versions of brink in one cluster: a rolling upgrade, the way back, and the end of it.
//!
//! `cargo xtask upgrade` builds an earlier version, and runs this test with its binary in `BRINK_OLD_BIN`.

use std::path::PathBuf;
use std::time::Duration;

use brink_tests::{Cluster, Options, brink_bin, eventually};
use serde_json::{Value, json};

/// The newest feature level.
const NEWEST: u64 = 3;

/// Time for a node to be refused, or to catch up.
const LIMIT: Duration = Duration::from_secs(60);

fn old_bin() -> PathBuf {
    std::env::var_os("BRINK_OLD_BIN").expect("`cargo xtask upgrade` names an earlier version in BRINK_OLD_BIN").into()
}

/// Restarts a node with another binary, and waits until it and all others serve.
async fn restart(cluster: &mut Cluster, node: usize, binary: PathBuf) {
    assert!(cluster.nodes[node].stop());
    cluster.nodes[node].run_binary(binary);
    cluster.nodes[node].start();
    cluster.ready().await;
}

/// Writes through every node, and reads everything written so far, strongly and from every node.
async fn write_and_read(cluster: &Cluster, written: &mut Vec<String>) {
    for node in 0..cluster.nodes.len() {
        let key = format!("k/{}", written.len());
        cluster.client(node).write(&key, &json!(written.len())).await.expect(201);
        written.push(key);
    }
    for node in 0..cluster.nodes.len() {
        for (number, key) in written.iter().enumerate() {
            let found = cluster.client(node).settled(&format!("/kv/{key}/?consistency=strong")).await.expect(200);
            assert_eq!(found.json["value"], json!(number));
        }
    }
}

async fn level(cluster: &Cluster, node: usize) -> Value {
    cluster.client(node).get("/cluster/members/").await.expect(200).json["feature_level"].clone()
}

/// The level of a cluster that nodes of the earlier version have formed: the first if that one knows no levels, else the newest
/// that it knows, to which such a cluster raises itself.
async fn level_of_old_cluster(cluster: &Cluster) -> u64 {
    let members = cluster.client(0).get("/cluster/members/").await.expect(200).json;
    let Some(newest) = members["members"][0]["supports_level"].as_u64() else { return 1 };
    eventually(LIMIT, "the cluster has raised its level", || async {
        (level(cluster, 0).await == newest).then_some(())
    })
    .await;
    newest
}

async fn raise(cluster: &Cluster, node: usize, level: u64) -> brink_tests::Answer {
    cluster.client(node).put_json("/cluster/feature-level/", &json!({ "feature_level": level })).await
}

#[tokio::test]
async fn a_rolling_upgrade_can_be_undone_until_it_is_finished() {
    // The earlier version cannot prove that its nodes are of the cluster.
    let anyone = ("BRINK_ALLOW_ANONYMOUS".to_owned(), "true".to_owned());
    let mut cluster = Cluster::prepare(3, Options { env: vec![anyone], ..Options::default() });
    let mut written = Vec::new();
    for node in &mut cluster.nodes {
        node.run_binary(old_bin());
        node.start();
    }
    cluster.ready().await;
    write_and_read(&cluster, &mut written).await;
    let before = level_of_old_cluster(&cluster).await;
    assert!(before < NEWEST);

    for binary in [brink_bin(), old_bin(), brink_bin()] {
        for node in 0..3 {
            restart(&mut cluster, node, binary.clone()).await;
            write_and_read(&cluster, &mut written).await;
            if node == 0 && before > 1 && binary == brink_bin() {
                // The leader may be of the version before, which takes a level that it does not know for done.
                assert!(raise(&cluster, 0, NEWEST).await.status >= 400);
            }
        }
    }
    assert_eq!(level(&cluster, 0).await, before, "the operator has not finished the upgrade");
    // One step back is the cluster's level, or none.
    raise(&cluster, 1, NEWEST - 1).await.expect(if before == NEWEST - 1 { 200 } else { 400 });
    raise(&cluster, 1, NEWEST).await.expect(200);
    assert_eq!(level(&cluster, 1).await, NEWEST);
    for node in 0..3 {
        eventually(LIMIT, "every node knows the level", || async {
            (level(&cluster, node).await == NEWEST).then_some(())
        })
        .await;
    }
    write_and_read(&cluster, &mut written).await;

    // From now on the version before is kept out, and harms nobody.
    assert!(cluster.nodes[2].stop());
    std::fs::remove_dir_all(cluster.nodes[2].data_dir()).unwrap();
    cluster.nodes[2].run_binary(old_bin());
    cluster.nodes[2].start();
    eventually(LIMIT, "the cluster refuses the old version", || async {
        cluster.nodes[2].log().contains("run a newer one").then_some(())
    })
    .await;
    restart(&mut cluster, 2, brink_bin()).await;
    write_and_read(&cluster, &mut written).await;
}
