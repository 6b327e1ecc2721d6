//! Nodes that are killed while the cluster's feature level is raised: all of them have raised it afterwards, or none.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use brink_tests::hosts::Hosts;
use brink_tests::{Cluster, Options, brink, eventually};
use serde_json::{Value, json};

use crate::alone::alone;

/// The URL of the node in the fixture, which formed its cluster before there were levels.
const URL: &str = "http://fixture:8000/kv-store/v1";

/// The newest feature level.
const NEWEST: u64 = 3;

/// Time for a node to learn the level.
const LIMIT: Duration = Duration::from_secs(60);

fn run(program: &str, args: &[&str]) {
    assert!(Command::new(program).args(args).status().unwrap().success(), "{program} {args:?}");
}

fn copy(from: &Path, to: &Path) {
    run("rm", &["-rf", to.to_str().unwrap()]);
    run("cp", &["-a", from.to_str().unwrap(), to.to_str().unwrap()]);
}

/// A cluster of the first feature level: the fixture's node, and two that joined it. All are stopped.
async fn cluster_of_the_first_level(hosts: &Hosts) -> (Cluster, tempfile::TempDir) {
    let mut cluster = Cluster::prepare_at(hosts.places(), Options::default());
    let dir = tempfile::tempdir().unwrap();
    let names = dir.path().join("hosts");
    let address = cluster.nodes[0].url.trim_start_matches("http://").split(':').next().unwrap().to_owned();
    std::fs::write(&names, format!("127.0.0.1 localhost\n{address} fixture\n")).unwrap();
    let script = format!("mount --bind {} /etc/hosts && exec \"$0\" \"$@\"", names.display());
    for (node, place) in cluster.nodes.iter_mut().zip(hosts.places()) {
        let named = ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned);
        node.wrap(place.wrapper.into_iter().chain(named).collect());
    }
    let urls: Vec<String> = cluster.nodes.iter().map(|node| node.url.clone()).collect();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/data-format-3.tar.gz");
    std::fs::create_dir_all(cluster.nodes[0].data_dir()).unwrap();
    run("tar", &["-xzf", fixture.to_str().unwrap(), "-C", cluster.nodes[0].data_dir().to_str().unwrap()]);
    cluster.nodes[0].advertise(URL);
    cluster.nodes[0].knows(&[]);
    cluster.nodes[0].start();
    cluster.nodes[0].ready().await;
    for node in 1..3 {
        cluster.nodes[node].knows(&[URL.to_owned(), urls[3 - node].clone()]);
        cluster.nodes[node].start();
        cluster.nodes[node].answers().await;
        cluster.client(0).add_member(&urls[node], "voter").await.expect(200);
    }
    cluster.ready().await;
    cluster.client(1).write("before", &json!(1)).await.expect(201);
    for node in &mut cluster.nodes {
        assert!(node.stop());
    }
    cluster.nodes[0].knows(&urls[1..]);
    (cluster, dir)
}

async fn level(cluster: &Cluster, node: usize) -> Value {
    cluster.client(node).get("/cluster/members/").await.expect(200).json["feature_level"].clone()
}

async fn leader(cluster: &Cluster) -> usize {
    eventually(LIMIT, "a leader is known", || async {
        let leader = cluster.client(1).get("/cluster/leader/").await.expect(200).json;
        let url = leader["url"].as_str()?;
        cluster.nodes.iter().position(|node| node.url == url).or_else(|| (url == URL).then_some(0))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_level_that_was_being_raised_when_all_nodes_were_killed_is_raised_on_all_or_on_none() {
    let _alone = alone().await;
    let hosts = Hosts::new(3);
    let (mut cluster, dir) = cluster_of_the_first_level(&hosts).await;
    let kept = |node: usize| dir.path().join(node.to_string());
    for (node, stopped) in cluster.nodes.iter().enumerate() {
        copy(&stopped.data_dir(), &kept(node));
    }
    for delay_ms in [0, 1, 3, 12, 1_000] {
        for (node, stopped) in cluster.nodes.iter_mut().enumerate() {
            copy(&kept(node), &stopped.data_dir());
            stopped.start();
        }
        cluster.ready().await;
        for node in 0..3 {
            assert_eq!(level(&cluster, node).await, 1);
        }
        let leader = leader(&cluster).await;
        let client = cluster.client(leader).clone();
        let raise = async move {
            let body = json!({ "feature_level": NEWEST }).to_string();
            let headers = [("content-type", "application/json")];
            client.try_send("PUT", "/cluster/feature-level/", &headers, body).await.map(|answer| answer.status)
        };
        let raised = tokio::spawn(raise);
        tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        // Others may have the entry that raises it, or not yet.
        cluster.nodes[leader].kill();
        cluster.kill_all();
        let answer = raised.await.unwrap();

        cluster.nodes.iter_mut().for_each(brink_tests::Node::start);
        cluster.ready().await;
        for node in 0..3 {
            // A node that answers this has applied everything before.
            cluster.client(node).settled("/kv/before/?consistency=strong").await.expect(200);
        }
        let level_now = level(&cluster, 0).await;
        for node in 1..3 {
            assert_eq!(level(&cluster, node).await, level_now, "killed after {delay_ms} ms");
        }
        assert!(level_now == NEWEST || !matches!(answer, Ok(200)), "a level that was acknowledged is gone");

        brink(&cluster.nodes[1].url, &["cluster", "upgrade"]).expect(0);
        for node in 0..3 {
            eventually(LIMIT, "every node has the level", || async {
                (level(&cluster, node).await == NEWEST).then_some(())
            })
            .await;
            cluster.client(node).write(&format!("after/{node}"), &json!(1)).await.expect(201);
        }
        cluster.kill_all();
    }
}
