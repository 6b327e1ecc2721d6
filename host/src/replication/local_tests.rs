//! Whole nodes in one process, on real disks, with a map as the network.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::time::Instant;

use super::lease::RESTART_MARGIN;
use super::peer::protocol::{Answer, SnapshotBody};
use super::types::{TypeConfig, Vote, encode};
use super::{
    Blocking, Call, CallError, ClusterId, Envelope, Error, Handle, Options, Timing, Transport, WriteOutcome, node_id,
};
use crate::storage::{Action, Data, FreeSpace, GuardedWrite, Log, Operation, Space, Value};
use crate::telemetry::Telemetry;

const URLS: [&str; 3] = ["http://a", "http://b", "http://c"];

/// Maximum duration of any wait. Generous: the machine may be busy with other tests.
const LIMIT: Duration = Duration::from_secs(20);

/// The nodes that can be reached, and the calls sent.
#[derive(Default)]
struct Net {
    nodes: Mutex<BTreeMap<String, Handle>>,
    sent: Mutex<Vec<(String, Call)>>,
}

/// One node's transport.
struct Wire {
    net: Arc<Net>,
    own: String,
    cluster: Mutex<Option<ClusterId>>,
}

impl Wire {
    fn reach(&self, to: u64, url: &str, call: Call) -> Result<(Handle, Envelope), CallError> {
        self.net.sent.lock().push((self.own.clone(), call));
        let gone = || CallError::NotSent { url: url.to_owned(), reason: "nobody is there".to_owned() };
        let node = self.net.nodes.lock().get(url).cloned().ok_or_else(gone)?;
        Ok((node, Envelope { to, cluster: *self.cluster.lock() }))
    }
}

/// The result of a call, as the caller sees it.
async fn answered(
    url: String,
    timeout: Duration,
    answer: impl Future<Output = Result<Bytes, Error>>,
) -> Result<Bytes, CallError> {
    match tokio::time::timeout(timeout, answer).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(error)) if error.outcome() == WriteOutcome::NotWritten => {
            Err(CallError::Refused { url, reason: error.to_string() })
        }
        Ok(Err(error)) => Err(CallError::NoAnswer { url, reason: error.to_string() }),
        Err(_) => Err(CallError::NoAnswer { url, reason: "too late".to_owned() }),
    }
}

impl Transport for Wire {
    fn set_cluster(&self, cluster: ClusterId) {
        *self.cluster.lock() = Some(cluster);
    }

    fn call(&self, to: u64, url: &str, call: Call, body: Bytes, timeout: Duration) -> Answer<'_> {
        let (url, reached) = (url.to_owned(), self.reach(to, url, call));
        Box::pin(async move {
            let (node, envelope) = reached?;
            answered(url, timeout, node.serve(call, envelope, body)).await
        })
    }

    fn send_snapshot(&self, to: u64, url: &str, body: SnapshotBody, timeout: Duration) -> Answer<'_> {
        let (url, reached) = (url.to_owned(), self.reach(to, url, Call::Snapshot));
        Box::pin(async move {
            let (node, envelope) = reached?;
            answered(url, timeout, node.serve_snapshot(envelope, body)).await
        })
    }
}

/// A running node.
struct Node {
    handle: Handle,
    data: Data,
    log: Log,
}

impl Node {
    async fn start(net: &Arc<Net>, url: &str, dir: &Path) -> Self {
        let log = Log::open(&dir.join("log"), Box::new(|_, _| {}), false).unwrap();
        let data = Data::open(&dir.join("data"), 8 << 20).unwrap();
        let others = URLS.iter().filter(|other| **other != url).map(|other| (*other).to_owned());
        let options = Options {
            self_url: url.to_owned(),
            peer_urls: others.collect(),
            spool_dir: dir.to_path_buf(),
            timing: Timing::LAN,
            snapshot_entries: 10_000,
            blocking: Blocking::default(),
            may_found: true,
            free_space: FreeSpace::new(Path::new("/"), 0),
        };
        let wire = Arc::new(Wire { net: net.clone(), own: url.to_owned(), cluster: Mutex::new(None) });
        let handle = Handle::start(options, log.clone(), data.clone(), wire, Telemetry::disabled()).await.unwrap();
        net.nodes.lock().insert(url.to_owned(), handle.clone());
        Self { handle, data, log }
    }

    /// Removes the node from the network and stops it.
    async fn stop(self, net: &Net) {
        let url = self.handle.status().self_url;
        net.nodes.lock().remove(&url);
        self.handle.shutdown().await;
        let log = self.log;
        tokio::task::spawn_blocking(move || log.close()).await.unwrap();
    }

    /// Writes until the write succeeds.
    async fn write(&self, key: &str) {
        let put = Action::Put(Value { content_type: Value::JSON.to_owned(), bytes: Bytes::from_static(b"1") });
        let write = GuardedWrite {
            operations: vec![Operation { space: Space::Kv, key: key.to_owned(), action: put }],
            preconditions: Vec::new(),
            hook_epoch: None,
            proposed_at_ms: 1,
            idempotency: None,
        };
        eventually("the write is taken", async || {
            self.handle.propose(&write, None, Instant::now() + Duration::from_secs(2)).await.is_ok()
        })
        .await;
    }

    fn has(&self, key: &str) -> bool {
        self.data.get(Space::Kv, key).unwrap().is_some()
    }

    fn leads(&self) -> bool {
        self.handle.status().state == "leader"
    }
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < LIMIT, "{what}: not within {LIMIT:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Three nodes that have formed a cluster, with their disks.
async fn cluster(net: &Arc<Net>, dirs: &[TempDir; 3]) -> [Node; 3] {
    let start = |at: usize| Node::start(net, URLS[at], dirs[at].path());
    let nodes: [Node; 3] = tokio::join!(start(0), start(1), start(2)).into();
    eventually("the cluster is formed", async || nodes.iter().all(|node| node.handle.status().ready)).await;
    nodes
}

async fn stop_all(nodes: impl IntoIterator<Item = Node>, net: &Net) {
    for node in nodes {
        node.stop(net).await;
    }
}

fn dirs() -> [TempDir; 3] {
    [(); 3].map(|()| tempfile::tempdir().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_start_at_once_form_one_cluster() {
    for _ in 0..5 {
        let (net, dirs) = (Arc::default(), dirs());
        let nodes = cluster(&net, &dirs).await;
        let ids: BTreeSet<Option<ClusterId>> = nodes.iter().map(|node| node.handle.status().cluster).collect();
        assert!(ids.len() == 1 && !ids.contains(&None), "{ids:?}");
        stop_all(nodes, &net).await;
    }
}

/// Two of three nodes lose their disks and form a new cluster while the third is away: under the same URLs and, since the
/// ids of founders are derived from URLs, under the same node ids. If the third could talk to them, either its cluster or
/// theirs would be overwritten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_clusters_of_the_same_urls_never_mix() {
    let (net, dirs, new_dirs) = (Arc::default(), dirs(), self::dirs());
    let [a, b, c] = cluster(&net, &dirs).await;
    a.write("old").await;
    eventually("all have it", async || a.has("old") && b.has("old") && c.has("old")).await;
    let old = a.handle.status().cluster;
    stop_all([a, b, c], &net).await;
    let b = Node::start(&net, URLS[1], new_dirs[1].path()).await;
    let c = Node::start(&net, URLS[2], new_dirs[2].path()).await;
    eventually("they form a cluster", async || b.handle.status().ready && c.handle.status().ready).await;
    assert_eq!((b.handle.status().self_id, c.handle.status().self_id), (node_id(URLS[1]), node_id(URLS[2])));
    b.write("new").await;

    let a = Node::start(&net, URLS[0], dirs[0].path()).await;
    for round in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        b.write(&format!("new/{round}")).await;
        let (seen_by_a, seen_by_b) = (a.handle.status(), b.handle.status());
        assert_eq!((seen_by_a.cluster, seen_by_a.has_quorum, seen_by_a.healthy_nodes), (old, false, 1));
        assert!(seen_by_b.cluster != old && seen_by_b.has_quorum, "{seen_by_b:?}");
    }
    assert!(a.has("old") && !a.has("new"));
    assert!(b.has("new") && !b.has("old") && c.has("new") && !c.has("old"));
    stop_all([a, b, c], &net).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_names_no_cluster_is_refused_by_a_member() {
    let (net, dirs) = (Arc::default(), dirs());
    let nodes = cluster(&net, &dirs).await;
    let to = nodes[0].handle.status().self_id;
    for call in [Call::Append, Call::Vote, Call::PreVote, Call::TransferLeader, Call::Propose, Call::ReadIndex] {
        for (cluster, why) in [(None, "which cluster"), (ClusterId::new(1), "belongs to cluster")] {
            let refused = nodes[0].handle.serve(call, Envelope { to, cluster }, Bytes::new()).await;
            assert!(matches!(&refused, Err(Error::Refused(reason)) if reason.contains(why)), "{call:?}: {refused:?}");
        }
    }
    stop_all(nodes, &net).await;
}

/// The leader is lost in the middle of a change from three voters to two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joint_membership_is_completed_by_the_next_leader() {
    let (net, dirs) = (Arc::default(), dirs());
    let mut nodes = Vec::from(cluster(&net, &dirs).await);
    eventually("one leads", async || nodes.iter().any(Node::leads)).await;
    let leader = nodes.remove(nodes.iter().position(Node::leads).unwrap());
    let all: BTreeSet<u64> = URLS.iter().map(|url| node_id(url)).collect();
    let rest: BTreeSet<u64> = nodes.iter().map(|node| node.handle.status().self_id).collect();
    let (raft, members) =
        (leader.handle.0.server.view.raft.raft(), leader.handle.0.server.view.raft.metrics().membership_config);
    let known: BTreeMap<u64, openraft::BasicNode> =
        members.membership().nodes().map(|(id, node)| (*id, node.clone())).collect();
    let joint = openraft::Membership::new(vec![all, rest.clone()], known).unwrap();
    raft.append_membership(joint, openraft::EntryPayload::<_, _, _>::Blank, []).await.unwrap();
    leader.stop(&net).await;

    eventually("the joint membership is completed", async || {
        let metrics = nodes[0].handle.0.server.view.raft.metrics();
        metrics.membership_config.membership().get_joint_config() == &vec![rest.clone()]
    })
    .await;
    nodes[0].write("after").await;
    stop_all(nodes, &net).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_restarts_neither_votes_nor_stands_for_a_lease() {
    let (net, dirs) = (Arc::default(), dirs());
    let nodes = cluster(&net, &dirs).await;
    nodes[0].write("x").await;
    let at = nodes.iter().position(|node| !node.leads()).unwrap();
    stop_all(nodes, &net).await;
    net.sent.lock().clear();
    let began = Instant::now();
    let a = Node::start(&net, URLS[at], dirs[at].path()).await;
    let promised = Timing::LAN.election_max + RESTART_MARGIN;
    let (metrics, cluster) = (a.handle.0.server.view.raft.metrics(), a.handle.status().cluster);
    assert!(metrics.vote.leader_id.term > 0);
    assert_eq!(a.handle.status().leader, None, "it voted for one before it was restarted, and has heard none since");

    let envelope = Envelope { to: metrics.id, cluster };
    let vote = encode(&openraft::raft::VoteRequest::<TypeConfig>::new(Vote::new(99, node_id(URLS[1])), None)).unwrap();
    let is_silent = |answer: &Result<Bytes, Error>| matches!(answer, Err(Error::Refused(reason)) if reason.contains("just restarted"));
    for call in [Call::Vote, Call::PreVote, Call::TransferLeader] {
        let answer = a.handle.serve(call, envelope, vote.clone()).await;
        assert!(is_silent(&answer) || began.elapsed() > promised, "{call:?}: {answer:?}");
    }
    let stood = || net.sent.lock().iter().any(|(_, call)| matches!(call, Call::Vote | Call::PreVote));
    while began.elapsed() < promised {
        assert!(!stood() || began.elapsed() > promised, "it stood after {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    eventually("then it stands", async || stood()).await;
    assert!(!is_silent(&a.handle.serve(Call::PreVote, envelope, vote).await));
    a.stop(&net).await;
}
