//! Who belongs to the cluster: letting nodes in, replacing, removing them, and handing over the leadership.
//!
//! The leader changes the membership, by Raft's joint consensus (Ongaro's thesis, section 4.3), in small steps that may
//! be repeated: whoever wants a change asks for it again until it is done, so a change survives the loss of the leader
//! half-way. A joint membership that such a leader left behind is ended by the next one by itself ([`tend`]): while it
//! lasts, two majorities are needed. A node becomes a voter only once it has caught up, so the quorum never rests on an
//! empty disk.
//!
//! A leader that hands over stops at once to take writes and to vouch for reads, and leads no more in its term whatever
//! comes of it. So it hands over only to a voter that answers, has nearly all of the log, and may stand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers, ServerState};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::error::{Error, WriteOutcome};
use super::peers;
use super::shared::Shared;
use super::transport::Call;
use super::types::{TypeConfig, decode, encode};

/// How long one step may take; a longer one is asked for again.
const STEP_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause between the steps of a change.
const STEP_PAUSE: Duration = Duration::from_millis(50);

/// How often a leader looks whether an earlier one has left something to be ended.
const TEND_INTERVAL: Duration = Duration::from_millis(250);

/// Log entries that a node may lack and still become a voter: it has them by the time that is decided.
const CATCH_UP_ENTRIES: u64 = 128;

/// What is to change.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) enum Change {
    /// A node that lost its disk, or is new, asks to be let in under its own id.
    Join { id: u64, url: String },
    /// An operator adds a node, or gives it another role.
    Add { url: String, role: Role },
    /// An operator removes a node.
    Remove { url: String },
    /// An operator, or a leader that is about to stop, wants another leader.
    Transfer { url: String },
}

impl Change {
    fn url(&self) -> &str {
        match self {
            Self::Join { url, .. } | Self::Add { url, .. } | Self::Remove { url } | Self::Transfer { url } => url,
        }
    }
}

/// The part that a node plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Counts for the quorum, and may lead.
    Voter,
    /// Gets every write, later than the voters, and serves reads.
    Learner,
}

/// How far a change is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Progress {
    /// The change is in force.
    Done,
    /// Ask again.
    Pending,
    /// The node asked does not lead.
    NotLeader,
    /// The node's URL is not one of the cluster: an operator must add it.
    Unknown,
    /// The change cannot be made, and why.
    Refused(String),
}

/// Has a change made, step by step, by whichever node leads.
pub(super) async fn change(shared: &Arc<Shared>, change: &Change, deadline: Instant) -> Result<(), Error> {
    let mut began = false;
    loop {
        let progress = match shared.leader() {
            Some((leader, _)) if leader == shared.id() => step(shared, change).await,
            Some((leader, url)) => ask(shared, leader, &url, change).await.unwrap_or(Progress::Pending),
            None => Progress::NotLeader,
        };
        match progress {
            Progress::Done => return Ok(()),
            // An earlier step has done it, and its answer was lost.
            Progress::Unknown if began && matches!(change, Change::Remove { .. }) => return Ok(()),
            Progress::Refused(reason) => return Err(Error::MembershipRefused(reason)),
            Progress::Unknown => return Err(Error::NotAMember { url: change.url().to_owned() }),
            Progress::Pending | Progress::NotLeader if Instant::now() >= deadline => {
                return Err(match shared.quorum_is_out_of_reach() {
                    true => Error::NoQuorum { successful: shared.reachable(), outcome: WriteOutcome::Unknown },
                    false => Error::MembershipPending,
                });
            }
            Progress::Pending | Progress::NotLeader => {
                began = true;
                tokio::time::sleep(STEP_PAUSE).await;
            }
        }
    }
}

/// Asks a node for a step.
pub(super) async fn ask(shared: &Shared, to: u64, url: &str, change: &Change) -> Result<Progress, Error> {
    let answer = shared.transport.call(to, url, Call::Members, encode(change)?, 2 * STEP_TIMEOUT).await;
    decode(&answer.map_err(|error| Error::Refused(error.to_string()))?)
}

/// On the leader: takes a change one step further.
pub(super) async fn step(shared: &Arc<Shared>, change: &Change) -> Progress {
    let metrics = shared.metrics();
    if metrics.state != ServerState::Leader {
        return Progress::NotLeader;
    }
    let members = Members::of(&metrics);
    if members.is_joint {
        return end_joint(shared).await;
    }
    match change {
        Change::Join { id, url } => match (members.nodes.contains_key(id), members.with_url(url)) {
            (_, former) if former.iter().any(|former| former != id) => {
                let role =
                    if former.iter().any(|id| members.voters.contains(id)) { Role::Voter } else { Role::Learner };
                admit(shared, &members, *id, url, role).await
            }
            (true, _) => Progress::Done,
            (false, _) => Progress::Unknown,
        },
        Change::Add { url, role } => add(shared, &members, url, *role).await,
        Change::Remove { url } => remove(shared, &members, url).await,
        Change::Transfer { url } => transfer(shared, &members, url).await,
    }
}

/// Ends joint memberships that leaders which were lost half-way have left behind, as long as the node runs and leads.
pub(super) async fn tend(shared: Arc<Shared>) {
    let stopped = shared.stopped();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            biased;
            () = &mut stopped => return,
            () = tokio::time::sleep(TEND_INTERVAL) => {}
        }
        let is_joint = {
            let metrics = shared.raft().metrics();
            let metrics = metrics.borrow_watched();
            metrics.state == ServerState::Leader && is_joint(&metrics)
        };
        if is_joint && end_joint(&shared).await == Progress::Pending {
            tracing::info!("a change of the membership that was under way is brought to its end");
        }
    }
}

/// Goes from a joint membership to the newer one of the two. Voters that it lacks stay as learners: it cannot be known
/// whether they were to be removed or to be learners, and whoever wanted either asks again.
async fn end_joint(shared: &Shared) -> Progress {
    make(shared, ChangeMembers::AddVoterIds(BTreeSet::new()), true, Progress::Pending).await
}

fn is_joint(metrics: &openraft::RaftMetrics<TypeConfig>) -> bool {
    metrics.membership_config.membership().get_joint_config().len() > 1
}

/// The membership in force.
struct Members {
    nodes: BTreeMap<u64, String>,
    voters: BTreeSet<u64>,
    /// How far each node's log is known to match the leader's.
    matched: BTreeMap<u64, u64>,
    last_log_index: u64,
    is_joint: bool,
}

impl Members {
    fn of(metrics: &openraft::RaftMetrics<TypeConfig>) -> Self {
        let membership = metrics.membership_config.membership();
        let matched = metrics.replication.iter().flatten();
        Self {
            nodes: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
            voters: membership.voter_ids().collect(),
            matched: matched.map(|(id, matched)| (*id, matched.map_or(0, |log_id| log_id.index()))).collect(),
            last_log_index: metrics.last_log_index.unwrap_or(0),
            is_joint: is_joint(metrics),
        }
    }

    fn with_url(&self, url: &str) -> Vec<u64> {
        self.nodes.iter().filter(|(_, found)| *found == url).map(|(id, _)| *id).collect()
    }

    fn has_caught_up(&self, id: u64) -> bool {
        self.matched.get(&id).is_some_and(|matched| matched + CATCH_UP_ENTRIES >= self.last_log_index && *matched > 0)
    }
}

/// Lets a node in, in place of those that had its URL.
async fn admit(shared: &Shared, members: &Members, id: u64, url: &str, role: Role) -> Progress {
    if !members.nodes.contains_key(&id) {
        let node = BTreeMap::from([(id, BasicNode::new(url))]);
        return apply(shared, ChangeMembers::AddNodes(node), Progress::Pending).await;
    }
    let former: BTreeSet<u64> = members.with_url(url).into_iter().filter(|former| *former != id).collect();
    if role == Role::Learner {
        return match former.is_empty() {
            true => Progress::Done,
            false => apply(shared, ChangeMembers::RemoveNodes(former), Progress::Done).await,
        };
    }
    if !members.has_caught_up(id) {
        return Progress::Pending;
    }
    let voters = members.voters.difference(&former).copied().chain([id]).collect();
    apply(shared, ChangeMembers::ReplaceAllVoters(voters), Progress::Done).await
}

async fn add(shared: &Shared, members: &Members, url: &str, role: Role) -> Progress {
    if let [id] = members.with_url(url)[..] {
        return match (members.voters.contains(&id), role) {
            (true, Role::Voter) | (false, Role::Learner) => Progress::Done,
            (false, Role::Voter) => admit(shared, members, id, url, role).await,
            (true, Role::Learner) => match without(shared, members, id).await {
                Ok(_) if id == shared.id() => give_way(shared, members).await,
                Ok(_) => apply(shared, ChangeMembers::RemoveVoters(BTreeSet::from([id])), Progress::Done).await,
                Err(refusal) => refusal,
            },
        };
    }
    let hello = match peers::ask(shared, url).await {
        Ok((hello, _)) => hello,
        Err(error) => return Progress::Refused(format!("the node must answer, so that it can be added: {error}")),
    };
    if hello.cluster.is_some() && hello.cluster != shared.cluster() {
        return Progress::Refused(format!(
            "{url} belongs to another cluster; it can be added with an empty --data-dir"
        ));
    }
    if hello.url != url {
        return Progress::Refused(format!("the node at {url} calls itself {}", hello.url));
    }
    if !hello.decided {
        // It takes its id once it sees this cluster. One that does not look for it never does.
        return match hello.knows.contains(&shared.options.self_url)
            || members.nodes.values().any(|member| hello.knows.contains(member))
        {
            true => Progress::Pending,
            false => Progress::Refused(format!("{url} must be started with a node of this cluster in REPLICA_NODES")),
        };
    }
    admit(shared, members, hello.id, url, role).await
}

async fn remove(shared: &Shared, members: &Members, url: &str) -> Progress {
    let ids = members.with_url(url);
    let Some(&id) = ids.first() else { return Progress::Unknown };
    if !members.voters.contains(&id) {
        return apply(shared, ChangeMembers::RemoveNodes(ids.into_iter().collect()), Progress::Done).await;
    }
    let voters = match without(shared, members, id).await {
        Ok(voters) => voters,
        Err(refusal) => return refusal,
    };
    if id == shared.id() {
        return give_way(shared, members).await;
    }
    apply(shared, ChangeMembers::ReplaceAllVoters(voters), Progress::Done).await
}

/// The voters without one of them; a refusal, if they could not decide anything.
async fn without(shared: &Shared, members: &Members, id: u64) -> Result<BTreeSet<u64>, Progress> {
    let others = members.nodes.iter().filter(|(other, _)| **other != id && members.voters.contains(other));
    let others: BTreeMap<u64, &str> = others.map(|(id, url)| (*id, url.as_str())).collect();
    // Asked now: what is known of a node that has just come may be old.
    let is_there = async |id: u64, url: &str| {
        id == shared.id() || peers::ask(shared, url).await.is_ok_and(|(hello, _)| hello.id == id)
    };
    let asked = futures::future::join_all(others.iter().map(|(id, url)| is_there(*id, url))).await;
    let (there, all) = (asked.into_iter().filter(|there| *there).count(), others.len());
    match there > all / 2 {
        true => Ok(others.into_keys().collect()),
        false if all == 0 => Err(Progress::Refused("it is the only voter".to_owned())),
        false => Err(Progress::Refused(format!("only {there} of the {all} voters that remain can be reached"))),
    }
}

async fn transfer(shared: &Shared, members: &Members, url: &str) -> Progress {
    let ids = members.with_url(url);
    match ids.iter().find(|id| members.voters.contains(id)) {
        None if ids.is_empty() => Progress::Unknown,
        None => Progress::Refused("it is not a voter".to_owned()),
        Some(id) if *id == shared.id() => Progress::Done,
        Some(id) => match fitness(shared, members, *id) {
            Fitness::Ready => hand_to(shared, *id).await,
            Fitness::NotYet => Progress::Pending,
            Fitness::Away => Progress::Refused(format!("{url} cannot be reached")),
        },
    }
}

/// Hands the leadership to the fittest voter: of those that can take over, one that has space for writes, if there is one,
/// and the longest log.
async fn give_way(shared: &Shared, members: &Members) -> Progress {
    match heirs(shared, members).max_by_key(|heir| (!heir.is_full, heir.matched)) {
        Some(heir) => hand_to(shared, heir.id).await,
        None if others(shared, members).any(|id| fitness(shared, members, id) == Fitness::NotYet) => Progress::Pending,
        None => Progress::Refused("no other voter can be reached".to_owned()),
    }
}

/// A voter that can take over.
struct Heir {
    id: u64,
    /// How far its log is known to match this node's.
    matched: u64,
    is_full: bool,
}

fn others(shared: &Shared, members: &Members) -> impl Iterator<Item = u64> {
    let own = shared.id();
    members.matched.keys().copied().filter(move |id| *id != own && members.voters.contains(id))
}

fn heirs(shared: &Shared, members: &Members) -> impl Iterator<Item = Heir> {
    others(shared, members).filter(|id| fitness(shared, members, *id) == Fitness::Ready).map(|id| Heir {
        id,
        matched: members.matched.get(&id).copied().unwrap_or(0),
        is_full: members.nodes.get(&id).and_then(|url| shared.peer(url)).is_some_and(|peer| peer.is_full),
    })
}

/// On the leader: the voter that would take over if this node's disk were full.
pub(super) fn heir_with_space(shared: &Shared) -> Option<u64> {
    let members = Members::of(&shared.metrics());
    let with_space = heirs(shared, &members).filter(|heir| !heir.is_full);
    with_space.max_by_key(|heir| heir.matched).map(|heir| heir.id)
}

/// On a leader whose disk is full: hands over, if there is someone to hand to.
pub(super) async fn hand_to_one_with_space(shared: &Shared) {
    if let Some(heir) = heir_with_space(shared) {
        tracing::info!(heir = format!("{heir:016x}"), "the disk is full: the leadership is handed over");
        hand_to(shared, heir).await;
    }
}

/// Whether a voter can take over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fitness {
    Ready,
    /// It has just restarted, or lacks too much of the log.
    NotYet,
    Away,
}

fn fitness(shared: &Shared, members: &Members, id: u64) -> Fitness {
    let peer = members.nodes.get(&id).and_then(|url| shared.peer(url));
    match peer.filter(|peer| peer.is_healthy_as(id)) {
        Some(peer) if !peer.silent && members.has_caught_up(id) => Fitness::Ready,
        Some(_) => Fitness::NotYet,
        None => Fitness::Away,
    }
}

async fn hand_to(shared: &Shared, heir: u64) -> Progress {
    let heir = shared.lease.give_up(shared.metrics().current_term, heir);
    match shared.raft().trigger().transfer_leader(heir).await {
        Ok(()) => Progress::Pending,
        Err(_) => Progress::NotLeader,
    }
}

/// On a leader that is about to stop: hands over, so that writes go on at once.
pub(super) async fn hand_over(shared: &Arc<Shared>, deadline: Instant) {
    while shared.metrics().state == ServerState::Leader && Instant::now() < deadline {
        let members = Members::of(&shared.metrics());
        if members.voters.len() < 2 || give_way(shared, &members).await != Progress::Pending {
            return;
        }
        tokio::time::sleep(STEP_PAUSE).await;
    }
}

/// Makes one change of the membership; `then` is what it comes to, if it is made.
async fn apply(shared: &Shared, change: ChangeMembers<u64, BasicNode>, then: Progress) -> Progress {
    // A voter that is to be none stays as a learner only if that was asked for.
    let retain = matches!(change, ChangeMembers::RemoveVoters(_));
    make(shared, change, retain, then).await
}

async fn make(shared: &Shared, change: ChangeMembers<u64, BasicNode>, retain: bool, then: Progress) -> Progress {
    let Ok(_changing) = shared.changing.try_lock() else { return Progress::Pending };
    let raft = shared.raft();
    let made = tokio::time::timeout(STEP_TIMEOUT, raft.change_membership(change.clone(), retain)).await;
    match made {
        Ok(Ok(_)) => {
            tracing::info!(?change, "membership changed");
            then
        }
        Err(_) | Ok(Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)))) => Progress::Pending,
        Ok(Err(RaftError::Fatal(_) | RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => Progress::NotLeader,
        Ok(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_))))) => {
            Progress::Pending
        }
        Ok(Err(RaftError::APIError(error))) => Progress::Refused(error.to_string()),
    }
}
