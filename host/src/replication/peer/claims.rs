//! What other nodes claim, checked before this node acts on it.
//!
//! # Problem
//!
//! openraft trusts its peers. A term near the end of the numbers is stored, and the next election overflows, at every start. Entries
//! with a gap end the node at its log, a snapshot that contradicts itself ends it by an assertion, and an answer can make it a
//! leader that nobody elected. One message of a node that is broken, or in wrong hands, must not do that.
//!
//! # Approach
//!
//! The rules here hold for every message of a node that follows the protocol. They compare integers, and look at nothing but the
//! message and what this node knows; `doorkeeper` adds what needs the log. What breaks a rule is refused, and changes nothing.
//!
//! # Limits
//!
//! Raft is not Byzantine. A node that has a place in the cluster is believed to lead if it says so, and to have stored what it
//! acknowledges.

use std::collections::BTreeSet;

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse};
use openraft::{EntryPayload, entry::RaftEntry};

use super::snapshot::Header;
use crate::limits::MEMBER_URL_BYTES_MAX;
use crate::replication::error::Error;
use crate::replication::types::{LogId, Metrics, TypeConfig, Vote};

/// A leader, by term and id.
pub(crate) type LeaderId = openraft::alias::LeaderIdOf<TypeConfig>;
type Membership = openraft::Membership<u64, openraft::BasicNode>;

/// The highest term and the highest index. What comes after them is far from the end of the numbers.
const NUMBER_MAX: u64 = 1 << 62;

/// The most by which a term may be ahead of this node's: 34 years of four elections a second. A node that was away for less is
/// not shut out, and nobody uses up the terms without 2^30 votes that each are synced.
const TERMS_AHEAD_MAX: u64 = 1 << 32;

/// Most nodes of a membership. This node lets in fewer (`MEMBERS_MAX`), but must take what an earlier version has committed.
const NODES_MAX: usize = 4_096;

/// Most sets of voters in a membership: two while it changes.
const VOTER_SETS_MAX: usize = 2;

/// What this node knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    pub(crate) own_id: u64,
    pub(crate) vote: Vote,
    /// The last entry that it knows to be committed. While it installs a snapshot, it is the snapshot's last one already.
    pub(crate) committed: Option<LogId>,
    /// The last entry that it has applied.
    pub(crate) applied: Option<LogId>,
}

impl Known {
    pub(crate) fn of(metrics: &Metrics) -> Self {
        let (committed, applied) = (metrics.local_committed, metrics.last_applied);
        Self { own_id: metrics.id, vote: metrics.vote, committed, applied }
    }

    /// Whether a leader has been succeeded already. openraft answers it with the vote of its successor.
    pub(crate) fn is_past(&self, leader: LeaderId) -> bool {
        leader < self.vote.leader_id
    }
}

/// Checks a request for a vote, binding or not.
pub(crate) fn vote(request: &VoteRequest<TypeConfig>, known: &Known) -> Result<(), Error> {
    caller(&request.vote, false, known)?;
    // Its last entry may be of a later leader: a node whose log was set back, and its vote with it, learns of later terms by the answer.
    index(request.last_log_id)
}

/// Checks a request to take over.
pub(crate) fn transfer(request: &TransferLeaderRequest<TypeConfig>, known: &Known) -> Result<(), Error> {
    let leader = request.from_leader();
    caller(leader, true, known)?;
    position(request.last_log_id().copied(), leader.leader_id)
}

/// Checks an append, and leaves out a commit position that this node could not check.
pub(crate) fn append(request: &mut AppendEntriesRequest<TypeConfig>, known: &Known) -> Result<(), Error> {
    let leader = request.vote.leader_id;
    caller(&request.vote, true, known)?;
    position(request.prev_log_id, leader)?;
    position(request.leader_commit, leader)?;
    let mut before = request.prev_log_id;
    for entry in &request.entries {
        let log_id = entry.log_id();
        let follows = match before {
            Some(before) => log_id.index == before.index + 1 && log_id.leader_id >= before.leader_id,
            None => log_id.index == 0,
        };
        if !follows {
            return refused("entries that do not follow each other");
        }
        if let EntryPayload::Membership(changed) = &entry.payload {
            membership(changed)?;
        }
        before = Some(log_id);
    }
    position(before, leader)?;
    // The entry of an earlier leader may have another index in this node's log, which it would apply up to there. A leader commits
    // an entry of its own at once, and what it says of that needs no check: this node applies no more than it has from it.
    request.leader_commit = request.leader_commit.filter(|commit| commit.leader_id == leader);
    Ok(())
}

/// Checks the beginning of a snapshot. `is_here`: it has arrived, and would be installed next.
pub(crate) fn snapshot(header: &Header, is_here: bool, known: &Known) -> Result<(), Error> {
    let leader = header.vote.leader_id;
    caller(&header.vote, true, known)?;
    // A leader that this node follows has said which entries it needs, and later ones of earlier leaders come no more.
    if known.is_past(leader) || (is_here && known.vote.leader_id != leader) {
        return refused("a snapshot from a node that this one does not follow");
    }
    contents(header)?;
    match (header.meta.last_log_id, known.committed) {
        // openraft ends the node.
        (Some(last), Some(committed)) if last > committed && last.index <= committed.index => {
            refused("a snapshot that contradicts committed entries")
        }
        (Some(_), _) if header.meta.last_membership.log_id().is_none() => refused("a snapshot without members"),
        _ => Ok(()),
    }
}

/// Checks what a snapshot says of itself.
pub(crate) fn contents(header: &Header) -> Result<(), Error> {
    let (vote, last) = (&header.vote, header.meta.last_log_id);
    if vote.leader_id.term > NUMBER_MAX {
        return refused("an absurd term");
    }
    position(last, vote.leader_id)?;
    let stored = &header.meta.last_membership;
    if stored.log_id().is_none() && stored.nodes().next().is_none() {
        return Ok(());
    }
    if *stored.log_id() > last {
        return refused("a membership that is newer than its snapshot");
    }
    membership(stored.membership())
}

/// Checks the answer to an append, given the position before its first entry and that of its last. A vote that names this node is
/// replaced by one that only tells the term: it would make this node a leader that nobody elected.
pub(crate) fn append_answer(
    answer: AppendEntriesResponse<TypeConfig>,
    (own, by): (&Vote, u64),
    (previous, last): (Option<LogId>, Option<LogId>),
) -> Result<AppendEntriesResponse<TypeConfig>, Error> {
    match answer {
        AppendEntriesResponse::Success => Ok(answer),
        AppendEntriesResponse::PartialSuccess(matched) if (previous..=last).contains(&matched) => Ok(answer),
        AppendEntriesResponse::PartialSuccess(_) => refused("more entries than it was sent"),
        // openraft takes the position for granted.
        AppendEntriesResponse::Conflict if previous.is_some() => Ok(answer),
        AppendEntriesResponse::Conflict => refused("a conflict before the first entry"),
        AppendEntriesResponse::HigherVote(vote) => higher_vote(vote, own, by).map(AppendEntriesResponse::HigherVote),
    }
}

/// Checks the vote in an answer to a leader. `by`: who answered.
pub(crate) fn higher_vote(vote: Vote, own: &Vote, by: u64) -> Result<Vote, Error> {
    term(vote.leader_id.term, own.leader_id.term)?;
    let is_own = vote.leader_id.node_id == own.leader_id.node_id;
    Ok(if is_own && vote.leader_id != own.leader_id { Vote::new(vote.leader_id.term, by) } else { vote })
}

/// Checks the answer to a request for a vote. openraft takes no vote in it for that of an elected leader.
pub(crate) fn vote_answer(answer: &VoteResponse<TypeConfig>, own: &Vote) -> Result<(), Error> {
    term(answer.vote.leader_id.term, own.leader_id.term)?;
    index(answer.last_log_id)
}

/// Checks who a caller says it is. `is_elected`: whether this kind of call is a leader's.
fn caller(vote: &Vote, is_elected: bool, known: &Known) -> Result<(), Error> {
    term(vote.leader_id.term, known.vote.leader_id.term)?;
    if vote.leader_id.node_id == known.own_id {
        return refused("a call in the name of this node");
    }
    match (vote.committed, is_elected) {
        (true, false) => refused("a candidate that is elected already"),
        (false, true) => refused("a leader that is not elected"),
        _ => Ok(()),
    }
}

fn term(found: u64, own: u64) -> Result<(), Error> {
    // A node that has taken part in nothing yet may be far behind.
    if found > NUMBER_MAX || (own > 0 && found > own.saturating_add(TERMS_AHEAD_MAX)) {
        return refused("an absurd term");
    }
    Ok(())
}

fn index(log_id: Option<LogId>) -> Result<(), Error> {
    match log_id {
        Some(log_id) if log_id.index > NUMBER_MAX => refused("an absurd log position"),
        _ => Ok(()),
    }
}

/// Checks a position in the log, as a leader tells it.
fn position(log_id: Option<LogId>, leader: LeaderId) -> Result<(), Error> {
    index(log_id)?;
    match log_id {
        Some(log_id) if log_id.leader_id > leader => refused("an entry of a later leader"),
        _ => Ok(()),
    }
}

/// Checks a membership. openraft takes for granted that each voter has a URL.
fn membership(found: &Membership) -> Result<(), Error> {
    let nodes: BTreeSet<u64> = found.nodes().map(|(id, _)| *id).collect();
    let voters = found.get_joint_config();
    let are_sound = (1..=VOTER_SETS_MAX).contains(&voters.len())
        && voters.iter().all(|set| !set.is_empty() && set.is_subset(&nodes));
    if !are_sound || nodes.len() > NODES_MAX {
        return refused("a membership that no cluster has");
    }
    // A later version may know more kinds of URLs, and what is committed must be taken. One that leads nowhere is not called.
    let is_url =
        |url: &str| (1..=MEMBER_URL_BYTES_MAX).contains(&url.len()) && url.bytes().all(|byte| byte.is_ascii_graphic());
    if found.nodes().all(|(_, node)| is_url(&node.addr)) { Ok(()) } else { refused("a member without a URL") }
}

/// What the leader of one term has said of its own entries: where they begin. Messages of one leader must agree about that, in
/// whatever order they arrive: openraft expects that no leader takes back an entry of its own.
#[derive(Debug, Default)]
pub(crate) struct Said {
    leader: Option<LeaderId>,
    /// The highest position of an entry that was not its own.
    others: Option<u64>,
    /// The lowest position of an entry of its own.
    own: Option<u64>,
    /// The last position that it named.
    last: Option<LogId>,
}

impl Said {
    /// Whether this is about a leader, or a later one.
    pub(crate) fn is_of(&self, leader: LeaderId) -> bool {
        self.leader >= Some(leader)
    }

    /// Begins anew with a leader. `own`: the first of its entries that this node has.
    pub(crate) fn begin(&mut self, leader: LeaderId, own: Option<u64>) {
        if !self.is_of(leader) {
            *self = Self { leader: Some(leader), own, ..Self::default() };
        }
    }

    /// Whether a committed entry is certainly the one that its leader names: none after the leader's first is another's.
    pub(crate) fn is_its_own(&self, leader: LeaderId, log_id: LogId) -> bool {
        let began = self.own.is_some_and(|own| own <= log_id.index);
        self.leader == Some(leader) && log_id.leader_id == leader && began
    }

    /// Whether a leader's last message ended with this position.
    pub(crate) fn ended_with(&self, leader: LeaderId, log_id: LogId) -> bool {
        self.leader == Some(leader) && self.last == Some(log_id)
    }

    /// Adds positions that a leader names, in their order.
    pub(crate) fn add(&mut self, leader: LeaderId, named: impl Iterator<Item = LogId>) -> Result<(), Error> {
        if self.leader != Some(leader) {
            // openraft refuses the calls of a leader that was succeeded.
            return Ok(());
        }
        let Self { mut others, mut own, mut last, .. } = *self;
        for log_id in named {
            match log_id.leader_id == leader {
                true => own = Some(own.map_or(log_id.index, |own| own.min(log_id.index))),
                false => others = others.max(Some(log_id.index)),
            }
            last = Some(log_id);
        }
        if own.is_some_and(|own| others >= Some(own)) {
            return refused("a leader that takes back what it said");
        }
        *self = Self { leader: Some(leader), others, own, last };
        Ok(())
    }
}

pub(crate) fn refused<T>(what: &str) -> Result<T, Error> {
    tracing::debug!(what, "a message of another node was refused");
    Err(Error::Refused(format!("the message has {what}")))
}

#[cfg(test)]
mod tests;
