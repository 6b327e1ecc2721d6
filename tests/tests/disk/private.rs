//! What a node keeps is for its user alone.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use brink_tests::Cluster;
use serde_json::json;

/// The bits of a mode that give others access.
const OTHERS: u32 = 0o077;

/// A directory and everything in it, with their modes.
fn modes(path: &Path) -> Vec<(PathBuf, u32)> {
    let mode = std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
    let entries = path.is_dir().then(|| path.read_dir().unwrap()).into_iter().flatten();
    let below = entries.flat_map(|entry| modes(&entry.unwrap().path()));
    std::iter::once((path.to_owned(), mode)).chain(below).collect()
}

#[tokio::test]
async fn nobody_else_may_read_what_a_node_keeps() {
    let mut cluster = Cluster::start(1).await;
    cluster.client(0).put("secret", &json!("a")).await.expect(201);
    assert!(cluster.nodes[0].stop(), "so that no file vanishes meanwhile");
    let data_dir = cluster.nodes[0].data_dir();
    let all = modes(&data_dir);
    assert!(["log", "data", "spool", "compiled"].iter().all(|name| all.iter().any(|(path, _)| path.ends_with(name))));
    let open: Vec<_> = all.iter().filter(|(_, mode)| mode & OTHERS != 0).collect();
    assert!(open.is_empty(), "{open:?}");

    // An earlier version left everything open.
    for (path, mode) in &all {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode | 0o055)).unwrap();
    }
    cluster.nodes[0].start();
    cluster.ready().await;
    for name in ["log", "data", "spool", "log.watermark"] {
        let mode = std::fs::metadata(data_dir.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & OTHERS, 0, "{name}: {mode:o}");
    }
}
