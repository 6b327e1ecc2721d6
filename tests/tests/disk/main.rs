//! Disks that lose, refuse and delay, under real processes: what a node promises about its disk, and what it says when
//! the disk does not keep its own promises.

#![allow(missing_docs, reason = "tests are named as facts")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a failure here is a failed test"
)]

mod failed_disk;
mod format;
mod full_disk;
mod lost_tail;
mod power_cut;
mod slow_sync;

use brink_tests::{Cluster, FaultFs, Options};

/// A cluster whose nodes have a disk each, and the disks. The cluster comes first, so that it ends first.
struct OnDisks {
    cluster: Cluster,
    disks: Vec<FaultFs>,
}

impl OnDisks {
    fn prepare(size: usize, options: Options) -> Self {
        let mut cluster = Cluster::prepare(size, options);
        let disks: Vec<FaultFs> = (0..size).map(|_| FaultFs::new()).collect();
        for (node, disk) in cluster.nodes.iter_mut().zip(&disks) {
            node.keep_data_on(disk);
        }
        Self { cluster, disks }
    }

    async fn start(size: usize, options: Options) -> Self {
        let mut this = Self::prepare(size, options);
        this.start_all().await;
        this
    }

    async fn start_all(&mut self) {
        for node in &mut self.cluster.nodes {
            node.start();
        }
        self.cluster.ready().await;
    }
}
