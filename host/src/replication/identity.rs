//! Who this node is: how it finds its cluster, forms it with others, or joins it under an id of its own.
//!
//! # Problem
//!
//! There is no init command: every node is started with the URLs of the others. And a node that lost its disk must
//! never vote as the one it was, since it has forgotten what it promised and what it holds (P8).
//!
//! # Approach
//!
//! An id belongs to a disk, not to a URL; it is kept in the log's database before the node takes any part.
//!
//! - Nodes that belong to no cluster and see none form one: each promises the others, durably, to go by the id that
//!   follows from its URL. Once a majority has promised, the cluster is initialised with the whole list. Several nodes
//!   may do so at once, with the same list, which is safe.
//! - A node that is started without others forms a cluster of its own, under a random id: nobody else needs to know it.
//! - A node with an empty disk that sees a cluster takes a random id and asks to be let in. If the cluster has a node of
//!   its URL, the leader puts the new one in its place once it has caught up; else an operator adds it.
//!
//! # Guarantees
//!
//! Before its id is decided a node neither votes nor takes log entries, so an empty disk never counts as a copy.
//!
//! # Failure model
//!
//! A majority that loses its disks is beyond help: what remains does not form a cluster by itself. And a node with an
//! empty disk cannot tell a cluster that was never formed from one of which no node can be reached: if a majority of the
//! nodes have empty disks while those that hold data are away, they form a new cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::error::{Error, WriteOutcome};
use super::membership::{self, Change, Progress};
use super::shared::Shared;
use super::transport::{ANYONE, Call};
use super::types::{decode, encode, node_id};
use crate::storage::Log;

/// The key of the id in the log's database.
const IDENTITY: &str = "identity";

/// How often a node that has no cluster yet looks for one.
const SEARCH_INTERVAL: Duration = Duration::from_millis(25);

/// How long nodes that are a majority wait for the rest before they form the cluster. Those that come later join it,
/// which takes a little longer.
const FORM_PATIENCE: Duration = Duration::from_millis(500);

/// How long a node may take to promise that it takes part in a formation.
const PROMISE_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a node asks to be let in.
const JOIN_INTERVAL: Duration = Duration::from_millis(100);

/// The id that is on disk.
pub(super) fn stored(log: &Log) -> Result<Option<u64>, Error> {
    log.meta(IDENTITY)?.map(|bytes| decode(&bytes)).transpose()
}

/// Puts the id on disk.
pub(super) async fn keep(log: &Log, id: u64) -> Result<(), Error> {
    let (done, kept) = oneshot::channel();
    log.save_meta(IDENTITY, Some(encode(&id)?), true, Box::new(|result| drop(done.send(result))));
    Ok(kept.await.map_err(|_| Error::Stopped { outcome: WriteOutcome::NotWritten })??)
}

/// The id of a node that forms a cluster alone. Not one that follows from its URL: should it lose its disk after the
/// cluster has grown, and be started alone again, it must not be taken for the one it was.
pub(super) async fn found_alone(log: &Log) -> Result<u64, Error> {
    let id = new_id();
    keep(log, id).await?;
    Ok(id)
}

fn new_id() -> u64 {
    fastrand::u64(1..)
}

/// Looks for the cluster until this node is part of it.
pub(super) async fn find_cluster(shared: Arc<Shared>) {
    let began = Instant::now();
    let stopped = shared.stopped();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            biased;
            () = &mut stopped => return,
            () = tokio::time::sleep(SEARCH_INTERVAL) => {}
        }
        if shared.has_its_place() {
            return;
        }
        if let Err(error) = look_around(&shared, began).await {
            tracing::debug!(%error, "no cluster found yet");
        }
    }
}

async fn look_around(shared: &Arc<Shared>, began: Instant) -> Result<(), Error> {
    let (without_cluster, in_cluster) = shared.survey();
    let may_found = !shared.is_decided() || shared.id() == founding_id(shared);
    if !in_cluster.is_empty() {
        if !shared.is_decided() {
            take_new_id(shared).await?;
        }
        // One that has promised to found the cluster waits for the leader to bring it the log.
        return if shared.id() == founding_id(shared) { Ok(()) } else { ask_to_join(shared, &in_cluster).await };
    }
    let (there, all) = (without_cluster.len() + 1, shared.founders.len());
    if may_found && !shared.is_initialized() && there > all / 2 && (there == all || began.elapsed() > FORM_PATIENCE) {
        form(shared, &without_cluster).await?;
    }
    Ok(())
}

fn founding_id(shared: &Shared) -> u64 {
    node_id(&shared.options.self_url)
}

/// Forms the cluster, if a majority promises to take part.
async fn form(shared: &Arc<Shared>, others: &[String]) -> Result<(), Error> {
    if !promise(shared, &shared.founders).await? {
        return Ok(());
    }
    let request = encode(&shared.founders)?;
    let ask = |url: &String| {
        let (url, request, shared) = (url.clone(), request.clone(), shared.clone());
        async move {
            let answer = shared.transport.call(ANYONE, &url, Call::Form, request, PROMISE_TIMEOUT).await;
            answer.ok().and_then(|answer| decode::<bool>(&answer).ok()).unwrap_or(false)
        }
    };
    let promised = futures::future::join_all(others.iter().map(ask)).await.into_iter().filter(|yes| *yes).count();
    if promised + 1 > shared.founders.len() / 2 {
        initialize(shared, &shared.founders).await;
    }
    Ok(())
}

/// Promises to take part in the formation of a cluster; false if this node cannot.
pub(super) async fn promise(shared: &Shared, founders: &BTreeMap<u64, String>) -> Result<bool, Error> {
    let _deciding = shared.deciding.lock().await;
    if *founders != shared.founders {
        tracing::warn!(theirs = ?founders.values(), ours = ?shared.founders.values(), "lists of nodes differ");
        return Ok(false);
    }
    let own = founding_id(shared);
    if shared.is_initialized() || (shared.is_decided() && shared.id() != own) {
        return Ok(false);
    }
    if !shared.is_decided() {
        keep(&shared.engine_parts.log, own).await?;
        shared.decide();
    }
    Ok(true)
}

/// Initialises the cluster of a node that has no others.
pub(super) async fn initialize_alone(shared: &Shared) {
    initialize(shared, &BTreeMap::from([(shared.id(), shared.options.self_url.clone())])).await;
}

/// Initialises the cluster with its first nodes.
async fn initialize(shared: &Shared, founders: &BTreeMap<u64, String>) {
    let nodes = founders.iter().map(|(id, url)| (*id, openraft::BasicNode::new(url)));
    match shared.raft().initialize(nodes.collect::<BTreeMap<_, _>>()).await {
        Ok(()) => tracing::info!(nodes = founders.len(), "cluster formed"),
        // Another was quicker: its log is here already.
        Err(error) => tracing::debug!(%error, "not initialised here"),
    }
}

/// Takes an id that nobody ever had.
async fn take_new_id(shared: &Shared) -> Result<(), Error> {
    let _deciding = shared.deciding.lock().await;
    if shared.is_decided() {
        return Ok(());
    }
    let id = new_id();
    keep(&shared.engine_parts.log, id).await?;
    let stopped = |_| Error::Stopped { outcome: WriteOutcome::NotWritten };
    if let Err(error) = shared.raft().shutdown().await {
        tracing::warn!(%error, "the engine of the former id did not stop cleanly");
    }
    shared.set_engine(shared.engine_parts.build(id, true).await.map_err(stopped)?);
    tracing::info!(id = format!("{id:016x}"), "this node has no data and sees a cluster: it joins as a new member");
    Ok(())
}

async fn ask_to_join(shared: &Arc<Shared>, members: &[String]) -> Result<(), Error> {
    let change = Change::Join { id: shared.id(), url: shared.options.self_url.clone() };
    for url in members {
        match membership::ask(shared, ANYONE, url, &change).await {
            Ok(Progress::NotLeader) | Err(_) => {}
            Ok(progress) => {
                shared.note_join(&progress);
                break;
            }
        }
    }
    tokio::time::sleep(JOIN_INTERVAL).await;
    Ok(())
}
