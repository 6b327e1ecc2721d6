//! Who this node is: how it finds its cluster, forms it with others, or joins it under an id of its own.
//!
//! # Problem
//!
//! There is no init command: every node is started with the URLs of the others. And a node that lost its disk must
//! never vote as the one it was, since it has forgotten what it promised and what it holds (P8).
//!
//! # Approach
//!
//! An id belongs to a disk, not to a URL; it is kept in the log's database before the node takes any part. A cluster has
//! an id too, a random number; it is kept beside the node's, and every call between nodes names it.
//!
//! - Nodes that belong to no cluster and see none form one. They agree on the new cluster's id by a round of Paxos
//!   (Lamport, "Paxos Made Simple", 2001) among all nodes of the list: promises, then acceptances, each on disk, each
//!   from a majority. So however many begin at once, one id alone is chosen. Those that accepted it found the cluster:
//!   they go by the ids that follow from their URLs, and initialise it with the whole list, which several may do at once.
//! - A node that is started without others founds a cluster of its own, under random ids: nobody else needs to know them.
//! - A node with an empty disk that sees a cluster takes a random id and asks to be let in. If the cluster has a node of
//!   its URL, the leader puts the new one in its place once it has caught up; else an operator adds it. It belongs to the
//!   first cluster whose leader sends it the log, for good.
//! - A founder that did not accept the id that was chosen, since it was away, joins like any other.
//! - One that had data, and set it aside since it was damaged, does the same. It never forms a cluster, for it has one.
//!
//! # Guarantees
//!
//! - Before its id is decided a node neither votes nor takes log entries, so an empty disk never counts as a copy.
//! - A node decides to be a founder only of a cluster whose id it has itself accepted, on this disk; and one that is
//!   decided takes part in no formation any more, so that nobody learns from it an id that was chosen before. So one that
//!   lost its disk never takes its old id up again as long as it meets a node of its cluster, even if the nodes that lost
//!   theirs form a new cluster of the same URLs, under the same ids of nodes, at that moment.
//! - A call from another cluster is refused before anything else is looked at.
//!
//! # Failure model
//!
//! A majority that loses its disks is beyond help: what remains does not form a cluster by itself. And a node with an
//! empty disk cannot tell a cluster that was never formed from one of which no node can be reached: if a majority of the
//! nodes have empty disks while those that hold data are away, they form a new cluster. Those that come back with the
//! data of the old one stay apart from it, and say so. Worse, if one of these accepted the old cluster's id and stopped
//! before it heard that it was chosen, they found that cluster again; one that comes back then follows what they decide.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::error::{Error, WriteOutcome};
use super::membership::{self, Change, Progress};
use super::shared::Shared;
use super::transport::{ANYONE, Call};
use super::types::{decode, encode, node_id};
use crate::storage::Log;

/// The key of the identity in the log's database.
const IDENTITY: &str = "identity";

/// The key of what this node promised and accepted while a cluster was formed.
const FORMATION: &str = "formation";

/// How often a node that has no cluster yet looks for one.
const SEARCH_INTERVAL: Duration = Duration::from_millis(25);

/// How long nodes that are a majority wait for the rest before they form the cluster. Those that come later join it,
/// which takes a little longer.
const FORM_PATIENCE: Duration = Duration::from_millis(500);

/// How long the first of the nodes that are there is left to form the cluster before the others try as well.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// How long a node may take to answer in a formation.
const FORM_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest pause before a formation that failed is tried again; it is random, so that two nodes get out of each other's
/// way.
const FORM_PAUSE_MAX: Duration = Duration::from_millis(100);

/// How often a node asks to be let in.
const JOIN_INTERVAL: Duration = Duration::from_millis(100);

/// The id of a cluster: drawn at random by whoever forms it, and the same on all its nodes for ever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterId(NonZeroU64);

impl ClusterId {
    fn random() -> Self {
        Self(NonZeroU64::MIN.saturating_add(fastrand::u64(..u64::MAX)))
    }

    /// The id as a number.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The id of a number that [`ClusterId::get`] gave.
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who a node is, as its disk says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    pub(super) id: u64,
    /// None for a node that waits to be let in.
    pub(super) cluster: Option<ClusterId>,
}

/// The identity that is on disk.
pub(super) fn stored(log: &Log) -> Result<Option<Identity>, Error> {
    log.meta(IDENTITY)?.map(|bytes| decode(&bytes)).transpose()
}

/// Puts a value on disk.
async fn keep<T: Serialize>(log: &Log, key: &'static str, value: &T) -> Result<(), Error> {
    let (done, kept) = oneshot::channel();
    log.save_meta(key, Some(encode(value)?), true, Box::new(|result| drop(done.send(result))));
    Ok(kept.await.map_err(|_| Error::Stopped { outcome: WriteOutcome::NotWritten })??)
}

/// The identity of a node that forms a cluster alone. Its id is not the one that follows from its URL: should it lose
/// its disk after the cluster has grown, and be started alone again, it must not be taken for the one it was.
pub(super) async fn found_alone(log: &Log) -> Result<Identity, Error> {
    let identity = Identity { id: new_id(), cluster: Some(ClusterId::random()) };
    keep(log, IDENTITY, &identity).await?;
    Ok(identity)
}

fn new_id() -> u64 {
    fastrand::u64(1..)
}

/// Looks for the cluster until this node is part of it.
pub(super) async fn find_cluster(shared: Arc<Shared>) {
    let mut search = Search { began: Instant::now(), highest: 0 };
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
        if let Err(error) = look_around(&shared, &mut search).await {
            tracing::debug!(%error, "no cluster found yet");
        }
    }
}

/// A node's search for its cluster.
struct Search {
    began: Instant,
    /// The highest number of a ballot that was heard of.
    highest: u64,
}

async fn look_around(shared: &Arc<Shared>, search: &mut Search) -> Result<(), Error> {
    let survey = shared.survey();
    let waited = search.began.elapsed();
    if !shared.is_decided() {
        return match survey.in_cluster.is_empty() {
            true => form_if_enough(shared, &survey.without_cluster, waited, &mut search.highest).await,
            false => decide_who_to_be(shared).await,
        };
    }
    let is_founder = shared.id() == founding_id(shared);
    if is_founder && !shared.is_initialized() && !survey.is_initialized {
        // Those that chose the cluster may all have stopped before one of them initialised it.
        let fellows = &survey.fellows;
        if enough_are_there(shared, fellows.len() + 1, waited) && is_its_turn(shared, fellows, waited) {
            initialize(shared, &shared.founders).await;
        }
        return Ok(());
    }
    // A founder is a member already, and the leader brings it the log; if not, others have taken its place.
    if survey.in_cluster.is_empty() || (is_founder && waited < FORM_PATIENCE + FIRST_PATIENCE) {
        return Ok(());
    }
    ask_to_join(shared, &survey.in_cluster).await
}

/// Forms the cluster with others that have none, once there are enough of them and it is this node's turn.
async fn form_if_enough(
    shared: &Arc<Shared>,
    others: &[String],
    waited: Duration,
    highest: &mut u64,
) -> Result<(), Error> {
    let is_due = enough_are_there(shared, others.len() + 1, waited) && is_its_turn(shared, others, waited);
    if shared.options.may_found && is_due {
        form(shared, others, highest).await?;
        if !shared.is_decided() {
            tokio::time::sleep(FORM_PAUSE_MAX.mul_f64(fastrand::f64())).await;
        }
    }
    Ok(())
}

fn enough_are_there(shared: &Shared, there: usize, waited: Duration) -> bool {
    let all = shared.founders.len();
    there == all || (there > all / 2 && waited > FORM_PATIENCE)
}

fn is_its_turn(shared: &Shared, others: &[String], waited: Duration) -> bool {
    others.iter().all(|url| shared.options.self_url < *url) || waited > FIRST_PATIENCE
}

fn founding_id(shared: &Shared) -> u64 {
    node_id(&shared.options.self_url)
}

/// A number and the proposer, so that no two ballots are the same.
type Ballot = (u64, u64);

/// What a node promised and accepted while a cluster was formed: an acceptor's state of Paxos.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Formation {
    promised: Ballot,
    accepted: Option<(Ballot, ClusterId)>,
}

/// What one node asks of the others, and of itself, to form a cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Proposal {
    founders: BTreeMap<u64, String>,
    ballot: Ballot,
    step: Step,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Step {
    /// Will you take no lower ballot, and what did you accept?
    Prepare,
    /// Accept this id.
    Accept(ClusterId),
    /// This id was chosen.
    Found(ClusterId),
}

/// The answer to a [`Proposal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// Yes; and what was accepted so far, with its ballot.
    Granted(Option<(Ballot, ClusterId)>),
    /// No; and the highest ballot that was promised.
    Refused(Ballot),
}

impl Formation {
    /// An acceptor's answer; the state must be on disk before the answer is given.
    fn answer(&mut self, ballot: Ballot, step: Step) -> Reply {
        match step {
            Step::Prepare | Step::Accept(_) if ballot < self.promised => return Reply::Refused(self.promised),
            Step::Prepare => self.promised = ballot,
            Step::Accept(cluster) => *self = Self { promised: ballot, accepted: Some((ballot, cluster)) },
            Step::Found(cluster) if !self.has_accepted(cluster) => return Reply::Refused(self.promised),
            Step::Found(_) => {}
        }
        Reply::Granted(self.accepted)
    }

    fn has_accepted(&self, cluster: ClusterId) -> bool {
        self.accepted.is_some_and(|(_, accepted)| accepted == cluster)
    }

    fn stored(log: &Log) -> Result<Self, Error> {
        Ok(log.meta(FORMATION)?.map(|bytes| decode(&bytes)).transpose()?.unwrap_or_default())
    }
}

/// Forms the cluster, if a majority takes part.
async fn form(shared: &Arc<Shared>, others: &[String], highest: &mut u64) -> Result<(), Error> {
    let ballot = (*highest + 1, founding_id(shared));
    let Some(promises) = poll(shared, others, ballot, Step::Prepare, highest).await? else { return Ok(()) };
    let accepted = promises.into_iter().flatten().max();
    let cluster = accepted.map_or_else(ClusterId::random, |(_, cluster)| cluster);
    if poll(shared, others, ballot, Step::Accept(cluster), highest).await?.is_none() {
        return Ok(());
    }
    // Chosen. Those that do not hear of it now see it by the others' hellos.
    poll(shared, others, ballot, Step::Found(cluster), highest).await?;
    if shared.cluster() == Some(cluster) {
        initialize(shared, &shared.founders).await;
    }
    Ok(())
}

/// Asks all founders that are there, this node included; what they have accepted, if a majority grants it.
async fn poll(
    shared: &Arc<Shared>,
    others: &[String],
    ballot: Ballot,
    step: Step,
    highest: &mut u64,
) -> Result<Option<Vec<Option<(Ballot, ClusterId)>>>, Error> {
    let proposal = Proposal { founders: shared.founders.clone(), ballot, step };
    let request = encode(&proposal)?;
    let ask = |url: &String| {
        let (url, request, shared) = (url.clone(), request.clone(), shared.clone());
        async move {
            let answer = shared.transport.call(ANYONE, &url, Call::Form, request, FORM_TIMEOUT).await;
            answer.ok().and_then(|answer| decode::<Reply>(&answer).ok())
        }
    };
    let (own, theirs) = tokio::join!(take_part(shared, &proposal), futures::future::join_all(others.iter().map(ask)));
    let mut granted = Vec::new();
    for reply in theirs.into_iter().flatten().chain([own?]) {
        match reply {
            Reply::Granted(accepted) => granted.push(accepted),
            Reply::Refused((number, _)) => *highest = number.max(*highest),
        }
    }
    *highest = ballot.0.max(*highest);
    Ok((granted.len() > shared.founders.len() / 2).then_some(granted))
}

/// Takes part in the formation of a cluster, as far as this node can.
pub(super) async fn take_part(shared: &Shared, proposal: &Proposal) -> Result<Reply, Error> {
    let _deciding = shared.deciding.lock().await;
    let mut formation = Formation::stored(&shared.engine_parts.log)?;
    if proposal.founders != shared.founders {
        tracing::warn!(theirs = ?proposal.founders.values(), ours = ?shared.founders.values(), "lists of nodes differ");
        return Ok(Reply::Refused(formation.promised));
    }
    // To one that is decided the formation is over: whoever asks still is too late, or has lost its disk since (P8).
    if !shared.options.may_found || shared.is_decided() {
        return Ok(Reply::Refused(formation.promised));
    }
    let before = formation;
    let reply = formation.answer(proposal.ballot, proposal.step);
    if formation != before {
        keep(&shared.engine_parts.log, FORMATION, &formation).await?;
    }
    if let (Reply::Granted(_), Step::Found(cluster)) = (reply, proposal.step) {
        become_founder(shared, cluster).await?;
    }
    Ok(reply)
}

/// Goes by the founding id, in a cluster whose id was chosen and which this node has accepted. The caller holds
/// `deciding`, and the node is not decided yet.
async fn become_founder(shared: &Shared, cluster: ClusterId) -> Result<(), Error> {
    let identity = Identity { id: founding_id(shared), cluster: Some(cluster) };
    keep(&shared.engine_parts.log, IDENTITY, &identity).await?;
    shared.set_cluster(cluster);
    shared.decide();
    Ok(())
}

/// Belongs to a cluster from now on, whose leader has sent this node the log.
pub(super) async fn join(shared: &Shared, cluster: ClusterId) -> Result<(), Error> {
    let _deciding = shared.deciding.lock().await;
    match shared.cluster() {
        Some(own) if own == cluster => return Ok(()),
        Some(own) => return Err(Error::Refused(strange(own, cluster))),
        None => {}
    }
    keep(&shared.engine_parts.log, IDENTITY, &Identity { id: shared.id(), cluster: Some(cluster) }).await?;
    shared.set_cluster(cluster);
    tracing::info!(%cluster, "this node was let into a cluster");
    Ok(())
}

/// Why a call from another cluster is refused.
pub(super) fn strange(own: ClusterId, theirs: ClusterId) -> String {
    format!("this node belongs to cluster {own}, and the call comes from cluster {theirs}")
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

/// Decides who to be, now that a cluster is there: one of its founders, or one that joins it.
async fn decide_who_to_be(shared: &Shared) -> Result<(), Error> {
    let _deciding = shared.deciding.lock().await;
    if shared.is_decided() {
        return Ok(());
    }
    let accepted = Formation::stored(&shared.engine_parts.log)?.accepted;
    match accepted.filter(|(_, cluster)| shared.sees_cluster(*cluster)) {
        Some((_, cluster)) => become_founder(shared, cluster).await,
        None => take_new_id(shared).await,
    }
}

/// Takes an id that nobody ever had. The caller holds `deciding`.
async fn take_new_id(shared: &Shared) -> Result<(), Error> {
    let id = new_id();
    keep(&shared.engine_parts.log, IDENTITY, &Identity { id, cluster: None }).await?;
    let stopped = |_| Error::Stopped { outcome: WriteOutcome::NotWritten };
    if let Err(error) = shared.raft().shutdown().await {
        tracing::warn!(%error, "the engine of the former id did not stop cleanly");
    }
    let engine = shared.engine_parts.build(id, true).await.map_err(stopped)?;
    // Nobody has heard of this id, so there is no promise to keep.
    engine.raft.runtime_config().elect(true);
    shared.set_engine(engine);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(number: u64) -> ClusterId {
        ClusterId::new(number).unwrap()
    }

    #[test]
    fn a_lower_ballot_than_promised_is_refused() {
        let mut acceptor = Formation::default();
        assert_eq!(acceptor.answer((2, 1), Step::Prepare), Reply::Granted(None));
        assert_eq!(acceptor.answer((1, 9), Step::Prepare), Reply::Refused((2, 1)));
        assert_eq!(acceptor.answer((1, 9), Step::Accept(cluster(5))), Reply::Refused((2, 1)));
        assert_eq!(acceptor.answer((2, 1), Step::Accept(cluster(6))), Reply::Granted(Some(((2, 1), cluster(6)))));
        // A later one learns what was accepted.
        assert_eq!(acceptor.answer((3, 2), Step::Prepare), Reply::Granted(Some(((2, 1), cluster(6)))));
    }

    #[test]
    fn a_node_founds_no_cluster_that_it_did_not_accept() {
        let mut acceptor = Formation::default();
        acceptor.answer((1, 1), Step::Prepare);
        assert_eq!(acceptor.answer((1, 1), Step::Found(cluster(5))), Reply::Refused((1, 1)));
        acceptor.answer((1, 1), Step::Accept(cluster(6)));
        assert_eq!(acceptor.answer((1, 1), Step::Found(cluster(5))), Reply::Refused((1, 1)));
        assert_eq!(acceptor.answer((1, 1), Step::Found(cluster(6))), Reply::Granted(Some(((1, 1), cluster(6)))));
    }

    /// Three proposers whose messages reach three acceptors in any order, or get lost.
    #[test]
    fn one_cluster_alone_is_chosen_however_many_begin_at_once() {
        let mut founded = 0;
        for seed in 0..5_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut acceptors = [Formation::default(); 3];
            let mut chosen = std::collections::BTreeSet::new();
            // What each proposer is about to do: its ballot, and the id it may ask to accept.
            let mut proposers: [(u64, Option<ClusterId>); 3] = [(1, None); 3];
            for turn in 0..24 {
                let proposer = random.usize(..3);
                let (number, value) = proposers[proposer];
                let ballot = (number, u64::try_from(proposer).unwrap());
                let step = value.map_or(Step::Prepare, Step::Accept);
                // Each message is lost with some luck.
                let reached = acceptors.iter_mut().filter(|_| random.u8(..4) > 0);
                let replies: Vec<Reply> = reached.map(|acceptor| acceptor.answer(ballot, step)).collect();
                let granted = replies.iter().filter_map(|reply| match reply {
                    Reply::Granted(accepted) => Some(*accepted),
                    Reply::Refused(_) => None,
                });
                let granted: Vec<_> = granted.collect();
                let accepted = granted.iter().flatten().max().map(|(_, cluster)| *cluster);
                proposers[proposer] = match (granted.len() >= 2, value) {
                    (true, None) => (number, Some(accepted.unwrap_or_else(|| cluster(turn + 1)))),
                    (true, Some(value)) => {
                        chosen.insert(value);
                        (number + 1, None)
                    }
                    (false, _) => (number + random.u64(1..3), None),
                };
            }
            assert!(chosen.len() <= 1, "seed {seed}: {chosen:?}");
            founded += chosen.len();
        }
        assert!(founded > 4_000, "most runs come to an end: {founded}");
    }
}
