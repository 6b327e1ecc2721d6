//! How nodes without a cluster form one.
//!
//! Nodes that belong to no cluster and see none agree on a new cluster's id by a round of Paxos (Lamport, "Paxos Made
//! Simple", 2001) among all founders: promises, then acceptances, each stored on disk, each from a majority. So exactly
//! one id is chosen, however many nodes begin at once. The nodes that accepted it found the cluster: they take the ids
//! derived from their URLs and initialise the cluster with the whole list, which several of them may do at once. A founder
//! that was away and did not accept the id joins later, like any other node.
//!
//! An identified node takes part in no formation, so that nobody learns from it an id that was chosen before: a node that
//! asks then is too late, or has lost its disk (P8).

use std::collections::{BTreeMap, BTreeSet};
use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::identity::{self, FOUNDED_AT, Identity, Stage};
use super::view::ClusterView;
use crate::replication::error::Error;
use crate::replication::peer::protocol::{ANYONE, Call, Transport};
use crate::replication::start_error::StartError;
use crate::replication::types::{ClusterId, decode, encode};
use crate::storage::{FeatureLevel, Log};

const ACCEPTOR: &str = "formation";

/// Maximum time for a node to answer.
const FORM_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of other lists to warn about.
const OTHER_LISTS_MAX: usize = 16;

/// A number and the proposer's id, so that no two ballots are equal.
type Ballot = (u64, u64);

/// The state of a Paxos acceptor: what this node promised and accepted while a cluster was formed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Acceptor {
    promised: Ballot,
    accepted: Option<(Ballot, ClusterId)>,
}

/// A step of the formation, sent to every founder and taken by the sender itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Proposal {
    founders: BTreeMap<u64, String>,
    ballot: Ballot,
    step: Step,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Step {
    /// Will you accept no lower ballot, and what did you accept so far?
    Prepare,
    Accept(ClusterId),
    Found(ClusterId),
}

/// The answer to a [`Proposal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// Yes, with the value accepted so far and its ballot.
    Granted(Option<(Ballot, ClusterId)>),
    /// No, with the highest ballot promised so far.
    Refused(Ballot),
}

impl Acceptor {
    /// Answers a step. The state must be on disk before the answer is sent.
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
        Ok(identity::stored(log, ACCEPTOR)?.unwrap_or_default())
    }
}

pub(crate) struct Formation {
    /// Whether the node may form a cluster at all.
    pub(crate) may_found: bool,
    pub(crate) identity: Arc<Identity>,
    pub(crate) view: Arc<ClusterView>,
    pub(crate) transport: Arc<dyn Transport>,
    /// Lists of other nodes that differ from this node's, and were warned about.
    pub(crate) other_lists: Mutex<BTreeSet<Vec<String>>>,
}

/// Name of the value that marks a cluster founded by one node without others.
const FOUNDED_ALONE: &str = "founded-alone";

impl Formation {
    /// The stage of a node that is started without others. It founds a cluster only if its disk has never been part of anything:
    /// otherwise others may go on with what it founded or joined before.
    pub(crate) async fn alone(log: &Log, may_found: bool) -> Result<Stage, StartError> {
        let stage = Stage::stored(log)?;
        let has_log = log.first_last().is_some() || log.purged_marker().is_some();
        let founded_alone = log.named(FOUNDED_ALONE).is_some();
        match stage {
            Stage::Unidentified if !may_found => Err(StartError::Alone("it has set damaged data aside")),
            Stage::Unidentified if Acceptor::stored(log)? != Acceptor::default() => {
                Err(StartError::Alone("it took part in forming a cluster"))
            }
            Stage::Unidentified => {
                identity::store(log, FOUNDED_ALONE, &()).await?;
                Ok(Stage::found_alone(log).await?)
            }
            Stage::Waiting { .. } => Err(StartError::Alone("it waits to be let into a cluster")),
            Stage::Member { .. } if !has_log && !founded_alone => {
                Err(StartError::Alone("it belongs to a cluster whose log it does not have yet"))
            }
            stage @ Stage::Member { .. } => Ok(stage),
        }
    }

    /// Forms a cluster with other founders, if a majority agrees. `highest` is the highest ballot number seen so far.
    pub(super) async fn form(&self, others: &[String], highest: &mut u64) -> Result<(), Error> {
        let ballot = (*highest + 1, self.view.founders.own_id());
        let Some(promises) = self.poll(others, ballot, Step::Prepare, highest).await? else { return Ok(()) };
        let accepted = promises.into_iter().flatten().max();
        let cluster = accepted.map_or_else(ClusterId::random, |(_, cluster)| cluster);
        if self.poll(others, ballot, Step::Accept(cluster), highest).await?.is_none() {
            return Ok(());
        }
        // The id is chosen. Nodes that miss this message see it in the others' hellos.
        self.poll(others, ballot, Step::Found(cluster), highest).await?;
        if self.identity.stage().cluster() == Some(cluster) {
            self.view.raft.initialize(&self.view.founders.nodes).await;
        }
        Ok(())
    }

    /// Sends a step to the founders that can be reached and takes it here. Returns the accepted values if a majority grants
    /// the step.
    async fn poll(
        &self,
        others: &[String],
        ballot: Ballot,
        step: Step,
        highest: &mut u64,
    ) -> Result<Option<Vec<Option<(Ballot, ClusterId)>>>, Error> {
        let proposal = Proposal { founders: self.view.founders.nodes.clone(), ballot, step };
        let request = encode(&proposal)?;
        let ask = |url: &String| {
            let answer = self.transport.call(ANYONE, url, Call::Form, request.clone(), FORM_TIMEOUT);
            async move { answer.await.ok().and_then(|answer| decode::<Reply>(&answer).ok()) }
        };
        let (own, theirs) = tokio::join!(self.answer(&proposal), futures::future::join_all(others.iter().map(ask)));
        let mut granted = Vec::new();
        for reply in theirs.into_iter().flatten().chain([own?]) {
            match reply {
                Reply::Granted(accepted) => granted.push(accepted),
                Reply::Refused((number, _)) => *highest = number.max(*highest),
            }
        }
        *highest = ballot.0.max(*highest);
        Ok(self.view.founders.is_majority(granted.len()).then_some(granted))
    }

    /// Warns of another list of nodes, the first time.
    fn warn_of_list(&self, theirs: Vec<String>) {
        let mut known = self.other_lists.lock();
        if known.len() < OTHER_LISTS_MAX && known.insert(theirs.clone()) {
            let ours = self.view.founders.nodes.values();
            tracing::warn!(
                ?theirs,
                ?ours,
                "lists of nodes differ: each node's REPLICA_NODES must name all others, by the URLs that they advertise"
            );
        }
    }

    /// Answers a step, as an acceptor.
    pub(crate) async fn answer(&self, proposal: &Proposal) -> Result<Reply, Error> {
        let decision = self.identity.decide().await;
        let mut acceptor = Acceptor::stored(&decision.identity.log)?;
        if proposal.founders != self.view.founders.nodes {
            self.warn_of_list(proposal.founders.values().cloned().collect());
            return Ok(Reply::Refused(acceptor.promised));
        }
        if !self.may_found || decision.identity.is_identified() {
            return Ok(Reply::Refused(acceptor.promised));
        }
        let before = acceptor;
        let reply = acceptor.answer(proposal.ballot, proposal.step);
        if acceptor != before {
            identity::store(&decision.identity.log, ACCEPTOR, &acceptor).await?;
        }
        if let (Reply::Granted(_), Step::Found(cluster)) = (reply, proposal.step) {
            identity::store(&decision.identity.log, FOUNDED_AT, &FeatureLevel::NEWEST).await?;
            decision.become_member(self.view.founders.own_id(), cluster).await?;
        }
        Ok(reply)
    }

    /// Identifies this node, now that a cluster can be seen: as one of its founders, or under a new id.
    pub(super) async fn identify(&self) -> Result<(), Error> {
        let decision = self.identity.decide().await;
        if decision.identity.is_identified() {
            return Ok(());
        }
        let accepted = Acceptor::stored(&decision.identity.log)?.accepted;
        match accepted.filter(|(_, cluster)| self.view.peers.sees_cluster(*cluster)) {
            Some((_, cluster)) => decision.become_member(self.view.founders.own_id(), cluster).await,
            None => decision.take_new_id(&self.view.raft).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(number: u64) -> ClusterId {
        ClusterId::new(number).unwrap()
    }

    #[test]
    fn a_lower_ballot_than_promised_is_refused() {
        let mut acceptor = Acceptor::default();
        assert_eq!(acceptor.answer((2, 1), Step::Prepare), Reply::Granted(None));
        assert_eq!(acceptor.answer((1, 9), Step::Prepare), Reply::Refused((2, 1)));
        assert_eq!(acceptor.answer((1, 9), Step::Accept(cluster(5))), Reply::Refused((2, 1)));
        assert_eq!(acceptor.answer((2, 1), Step::Accept(cluster(6))), Reply::Granted(Some(((2, 1), cluster(6)))));
        // A later proposer learns the accepted id.
        assert_eq!(acceptor.answer((3, 2), Step::Prepare), Reply::Granted(Some(((2, 1), cluster(6)))));
    }

    #[test]
    fn a_node_founds_no_cluster_that_it_did_not_accept() {
        let mut acceptor = Acceptor::default();
        acceptor.answer((1, 1), Step::Prepare);
        assert_eq!(acceptor.answer((1, 1), Step::Found(cluster(5))), Reply::Refused((1, 1)));
        acceptor.answer((1, 1), Step::Accept(cluster(6)));
        assert_eq!(acceptor.answer((1, 1), Step::Found(cluster(5))), Reply::Refused((1, 1)));
        assert_eq!(acceptor.answer((1, 1), Step::Found(cluster(6))), Reply::Granted(Some(((1, 1), cluster(6)))));
    }

    /// Three proposers whose messages reach three acceptors in any order, or are lost.
    #[test]
    fn exactly_one_cluster_is_chosen_however_many_nodes_begin_at_once() {
        let mut founded = 0;
        for seed in 0..5_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut acceptors = [Acceptor::default(); 3];
            let mut chosen = std::collections::BTreeSet::new();
            // The next step of each proposer: its ballot number, and the id to accept, if it has the promises for one.
            let mut proposers: [(u64, Option<ClusterId>); 3] = [(1, None); 3];
            for turn in 0..24 {
                let proposer = random.usize(..3);
                let (number, value) = proposers[proposer];
                let ballot = (number, u64::try_from(proposer).unwrap());
                let step = value.map_or(Step::Prepare, Step::Accept);
                // One message in four is lost.
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
        assert!(founded > 4_000, "most runs choose an id: {founded}");
    }
}
