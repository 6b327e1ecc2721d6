//! Writers that keep a cluster busy and record the acknowledged writes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::cluster::Cluster;

/// Upper bound of one writer's writes.
const WRITES_MAX: u64 = 100_000;

/// Running writers, each with keys of its own.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<Mutex<BTreeMap<String, u64>>>,
    writers: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `writers` writers on every node. `name` is the prefix of their keys.
    pub fn start(cluster: &Cluster, name: &str, writers: usize) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let clients = cluster.nodes.iter().map(|node| node.client.clone());
        let writers = clients
            .enumerate()
            .flat_map(|(node, client)| (0..writers).map(move |writer| (client.clone(), format!("{node}-{writer}"))));
        let writers = writers
            .map(|(client, id)| {
                tokio::spawn(write(client, format!("{name}/{id}"), stop.clone(), Arc::clone(&acknowledged)))
            })
            .collect();
        Self { stop, acknowledged, writers }
    }

    /// Number of acknowledged writes so far.
    pub fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Stops the writers. Returns the acknowledged keys with their values.
    pub async fn stop(self) -> BTreeMap<String, u64> {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.unwrap();
        }
        std::mem::take(&mut self.acknowledged.lock().unwrap())
    }
}

async fn write(client: Client, prefix: String, stop: Arc<AtomicBool>, acknowledged: Arc<Mutex<BTreeMap<String, u64>>>) {
    for number in 0..WRITES_MAX {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let key = format!("{prefix}/{number}");
        let body = json!({ "value": number }).to_string();
        let sent = client.try_send("PUT", &format!("/kv/{key}/"), &[("content-type", "application/json")], body).await;
        match sent {
            Ok(answer) if answer.status == 201 => {
                acknowledged.lock().unwrap().insert(key, number);
            }
            // The node is down or knows no leader.
            Ok(_) | Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Reads every entry under a prefix from a node: keys and values.
pub async fn entries(client: &Client, prefix: &str, consistency: &str) -> BTreeMap<String, serde_json::Value> {
    let mut entries = BTreeMap::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/kv/?prefix={prefix}&limit=5000&consistency={consistency}{cursor}");
        let page = client.settled(&path).await.expect(200).json;
        for entry in page["results"].as_array().unwrap() {
            let earlier = entries.insert(entry["key"].as_str().unwrap().to_owned(), entry["value"].clone());
            assert!(earlier.is_none(), "a page repeats a key: {entry}");
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return entries,
        }
    }
}
