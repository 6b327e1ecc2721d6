//! A cluster whose nodes have a disk each.

use std::time::Duration;

use brink_tests::{Cluster, FaultFs, Node, Options, eventually};

/// Time for a log to have lines that are written. Only a guard.
const LOG_LIMIT: Duration = Duration::from_secs(60);

/// Waits until the log of a node has these words: a thread of its own writes it.
pub(crate) async fn says(node: &Node, words: &[&str]) {
    eventually(LOG_LIMIT, &format!("the log says {words:?}"), || async {
        let log = node.log();
        words.iter().all(|words| log.contains(words)).then_some(())
    })
    .await;
}

/// A cluster and the disks of its nodes. The cluster is dropped first, so that no process uses a disk that is unmounted.
pub(crate) struct Setup {
    pub(crate) cluster: Cluster,
    pub(crate) disks: Vec<FaultFs>,
}

impl Setup {
    /// Starts a cluster on empty disks.
    pub(crate) async fn start(size: usize, options: Options) -> Self {
        let mut cluster = Cluster::prepare(size, options);
        let disks: Vec<FaultFs> = (0..size).map(|_| FaultFs::mount()).collect();
        for (node, disk) in cluster.nodes.iter_mut().zip(&disks) {
            node.keep_data_on(disk);
        }
        let mut setup = Self { cluster, disks };
        setup.start_all().await;
        setup
    }

    /// Starts all nodes and waits until they are ready.
    pub(crate) async fn start_all(&mut self) {
        for node in &mut self.cluster.nodes {
            node.start();
        }
        self.cluster.ready().await;
    }
}
