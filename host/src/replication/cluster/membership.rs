//! Changes of the membership.
//!
//! The leader changes the membership by Raft's joint consensus (Ongaro's thesis, section 4.3), in small steps that can be
//! repeated. Whoever requests a change requests it again until it is done, so a change survives the loss of the leader. If
//! a leader is lost in the middle of a change, the next leader completes the joint membership by itself
//! ([`Membership::finish_changes`]), since two majorities are needed while it lasts. A leader that
//! loses its own vote by that hands over. A node becomes a voter only once it has caught up, so the quorum never rests on an empty disk.

use std::collections::{BTreeMap, BTreeSet};
use std::{sync::Arc, time::Duration};

use openraft::error::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{BasicNode, ChangeMembers, Precondition, ServerState};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::change::{Change, Members, Progress, Role, is_joint};
use super::{hello::Greeter, identity::Identity, leadership::Leadership, peer_table::Hello, view::ClusterView};
use crate::limits::MEMBERS_MAX;
use crate::replication::error::{Error, WriteOutcome};
use crate::replication::peer::protocol::{Call, Failure, Transport};
use crate::replication::types::{Metrics, decode, encode};

/// Maximum duration of a step; a longer one is requested again.
pub(super) const STEP_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause between the steps of a change.
const STEP_PAUSE: Duration = Duration::from_millis(50);

/// Time to reach a node that is to be admitted: a node that has just started breaks off connections when it begins to take part.
const NEWCOMER_PATIENCE: Duration = Duration::from_secs(1);

/// Interval at which a leader looks for a change that was left behind.
const FINISH_CHANGES_INTERVAL: Duration = Duration::from_millis(250);

pub(crate) struct Membership {
    pub(crate) identity: Arc<Identity>,
    pub(crate) view: Arc<ClusterView>,
    pub(crate) greeter: Arc<Greeter>,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) transport: Arc<dyn Transport>,
    /// Held during a change, so that only one is under way at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

impl Membership {
    /// Has a change made by the leader, step by step.
    pub(crate) async fn change(&self, change: &Change, deadline: Instant) -> Result<(), Error> {
        let mut began = false;
        loop {
            self.view.check_standing()?;
            let progress = match self.view.leader() {
                Some((leader, _)) if leader == self.view.raft.id() => self.step(change).await,
                Some((leader, url)) => self.ask(leader, &url, change).await.unwrap_or(Progress::Pending),
                None => Progress::NotLeader,
            };
            match progress {
                Progress::Done => return Ok(()),
                // An earlier step removed the node, and its answer was lost.
                Progress::Unknown if began && matches!(change, Change::Remove { .. }) => return Ok(()),
                Progress::Refused(reason) => return Err(Error::MembershipRefused(reason)),
                Progress::Unknown => return Err(Error::NotAMember { url: change.url().to_owned() }),
                Progress::Pending | Progress::NotLeader if Instant::now() >= deadline => {
                    return Err(match self.view.quorum_is_out_of_reach() {
                        true => self.view.no_quorum(WriteOutcome::Unknown),
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

    pub(super) async fn ask(&self, to: u64, url: &str, change: &Change) -> Result<Progress, Error> {
        let answer = self.transport.call(to, url, Call::Members, encode(change)?, 2 * STEP_TIMEOUT).await;
        decode(&answer.map_err(|error| Error::Refused(error.to_string()))?)
    }

    /// On the leader: takes the next step of a change.
    pub(crate) async fn step(&self, change: &Change) -> Progress {
        let members = self.view.raft.with_metrics(|metrics| leads(metrics).then(|| self.members(metrics)));
        let Some(members) = members else { return Progress::NotLeader };
        if members.is_joint {
            return self.complete_joint(&members).await;
        }
        match change {
            Change::Join { id, url } => self.let_in(&members, *id, url).await,
            Change::Add { url, role } => self.add(&members, url, *role).await,
            Change::Remove { url } => self.remove(&members, url).await,
            Change::Transfer { url } => self.leadership.transfer(&members, url).await,
            Change::Upgrade => self.raise_level().await,
        }
    }

    fn members(&self, metrics: &Metrics) -> Members {
        Members::of(metrics, &self.view.addresses)
    }

    /// While this node runs and leads: completes joint memberships left behind by earlier leaders, and hands over if it is no
    /// voter. A node that is about to lose its vote may be elected in the middle of that change.
    pub(crate) async fn finish_changes(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(FINISH_CHANGES_INTERVAL)).await.is_some() {
            let own = self.view.raft.id();
            let is_voter = |metrics: &Metrics| metrics.membership_config.voter_ids().any(|voter| voter == own);
            let left_behind = |metrics: &Metrics| leads(metrics) && (is_joint(metrics) || !is_voter(metrics));
            let members = |metrics: &_| left_behind(metrics).then(|| self.members(metrics));
            match self.view.raft.with_metrics(members) {
                Some(members) if members.is_joint => drop(self.complete_joint(&members).await),
                Some(members) => drop(self.leadership.give_way(&members).await),
                None => {}
            }
        }
    }

    /// Goes from a joint membership to the newer of its two halves. Voters that it lacks stay as learners: it is unknown
    /// whether they were to be removed or to become learners, and whoever wanted either requests it again.
    async fn complete_joint(&self, members: &Members) -> Progress {
        self.apply(members, ChangeMembers::AddVoterIds(BTreeSet::new()), Progress::Pending).await
    }

    /// A node asks for its place: its own under another URL, or that of the node that had its URL.
    async fn let_in(&self, members: &Members, id: u64, url: &str) -> Progress {
        let former: Vec<u64> = members.stored_at(url).filter(|former| *former != id).collect();
        match members.stored.get(&id) {
            Some(stored) if stored == url && former.is_empty() => return Progress::Done,
            Some(stored) if stored != url => return self.follow(members, id, url).await,
            None if former.is_empty() => return Progress::Unknown,
            Some(_) | None => {}
        }
        // A node that has moved makes room by moving in the membership, and is not replaced.
        let moved = former.iter().find_map(|former| Some((*former, self.moved_to(members, *former)?)));
        if let Some((former, now_at)) = moved {
            return self.follow(members, former, &now_at).await;
        }
        let is_voter = former.iter().any(|former| members.voters.contains(former));
        let role = if is_voter { Role::Voter } else { Role::Learner };
        match self.check_newcomer(url).await {
            Ok(hello) if hello.id == id => self.admit(members, id, url, role).await,
            Ok(_) => Progress::Refused(format!("another node answers at {url}")),
            Err(refusal) => refusal,
        }
    }

    /// Changes the URL of a member that has moved, and of those that must make room for it.
    async fn follow(&self, members: &Members, id: u64, url: &str) -> Progress {
        let mut moved = BTreeMap::from([(id, BasicNode::new(url))]);
        for other in members.stored_at(url).filter(|other| *other != id) {
            match self.moved_to(members, other) {
                Some(now_at) => drop(moved.insert(other, BasicNode::new(now_at))),
                None => {
                    return Progress::Refused(format!(
                        "{url} belongs to a member that does not answer elsewhere; `brink cluster remove {url}` removes it"
                    ));
                }
            }
        }
        let Ok(hello) = self.greeter.ask(url).await else {
            return Progress::Refused(format!("nothing answers at {url}"));
        };
        if hello.id != id || !hello.decided || hello.cluster != self.identity.stage().cluster() {
            return Progress::Refused(format!("another node answers at {url}"));
        }
        if let Some(stored) = members.stored.get(&id)
            && let Ok(former) = self.greeter.ask(stored).await
            && former.id == id
            && former.is_of_another_run(&hello)
        {
            return Progress::Refused(format!(
                "this member runs at {stored}; the node at {url} has a copy of its data directory, and must be started with an \
                 empty --data-dir"
            ));
        }
        self.apply(members, ChangeMembers::SetNodes(moved), Progress::Done).await
    }

    /// Where a member is heard now, if that is not where the membership says.
    fn moved_to(&self, members: &Members, id: u64) -> Option<String> {
        let now_at = members.nodes.get(&id).filter(|now_at| members.stored.get(&id) != Some(*now_at))?;
        self.view.peers.get(now_at).filter(|peer| peer.is_healthy_as(id)).map(|_| now_at.clone())
    }

    /// Asks a node that is to be admitted for its state. Returns the progress of the change if the node cannot be admitted, or not
    /// yet.
    async fn check_newcomer(&self, url: &str) -> Result<Hello, Progress> {
        let refuse = |reason| Err(Progress::Refused(reason));
        let began = Instant::now();
        let mut asked = self.greeter.ask(url).await;
        while asked.as_ref().is_err_and(|error| error.failure != Failure::Starting)
            && began.elapsed() < NEWCOMER_PATIENCE
        {
            tokio::time::sleep(STEP_PAUSE).await;
            asked = self.greeter.ask(url).await;
        }
        let hello = match asked {
            Ok(hello) => hello,
            Err(error) if error.failure == Failure::Starting => {
                tracing::info!(url, "the node is starting; it is added once it has started");
                return Err(Progress::Pending);
            }
            Err(error) => return refuse(format!("the node must answer, so that it can be added: {error}")),
        };
        let level = self.view.raft.applied().level();
        if hello.cluster.is_some() && hello.cluster != self.identity.stage().cluster() {
            return refuse(format!("{url} belongs to another cluster; it can be added with an empty --data-dir"));
        }
        if hello.url != url {
            return refuse(format!("the node at {url} calls itself {}", hello.url));
        }
        if hello.supports() < level {
            let supported = hello.supports();
            return refuse(format!(
                "the cluster has feature level {level}, and the version of brink at {url} supports {supported}: run a newer one"
            ));
        }
        Ok(hello)
    }

    /// Adds a node and removes the nodes that had its URL.
    async fn admit(&self, members: &Members, id: u64, url: &str, role: Role) -> Progress {
        if !members.nodes.contains_key(&id) {
            // Those that it takes the place of go next.
            if members.nodes.len() - members.stored_at(url).count() >= MEMBERS_MAX {
                return Progress::Refused(format!("a cluster has at most {MEMBERS_MAX} members, learners included"));
            }
            let node = BTreeMap::from([(id, BasicNode::new(url))]);
            return self.apply(members, ChangeMembers::AddNodes(node), Progress::Pending).await;
        }
        let former: BTreeSet<u64> = members.stored_at(url).filter(|former| *former != id).collect();
        if role == Role::Learner {
            return match former.is_empty() {
                true => Progress::Done,
                false => self.apply(members, ChangeMembers::RemoveNodes(former), Progress::Done).await,
            };
        }
        if !members.has_caught_up(id) {
            return Progress::Pending;
        }
        let voters = members.voters.difference(&former).copied().chain([id]).collect();
        self.apply(members, ChangeMembers::ReplaceAllVoters(voters), Progress::Done).await
    }

    async fn add(&self, members: &Members, url: &str, role: Role) -> Progress {
        if let [id] = members.with_url(url)[..] {
            return match (members.voters.contains(&id), role) {
                (true, Role::Voter) | (false, Role::Learner) => Progress::Done,
                (false, Role::Voter) => self.admit(members, id, url, role).await,
                (true, Role::Learner) => match self.without(members, id).await {
                    Ok(_) if id == self.view.raft.id() => self.leadership.give_way(members).await,
                    Ok(_) => {
                        let removed = ChangeMembers::RemoveVoters(BTreeSet::from([id]));
                        self.apply(members, removed, Progress::Done).await
                    }
                    Err(refusal) => refusal,
                },
            };
        }
        let hello = match self.check_newcomer(url).await {
            Ok(hello) => hello,
            Err(refusal) => return refusal,
        };
        if hello.decided && members.stored.contains_key(&hello.id) {
            return self.follow(members, hello.id, url).await;
        }
        if !hello.decided {
            // It takes an id once it sees this cluster, which it does only if it was started with one of its nodes.
            return match hello.knows.contains(&self.view.founders.own_url)
                || members.nodes.values().any(|member| hello.knows.contains(member))
            {
                true => Progress::Pending,
                false => {
                    Progress::Refused(format!("{url} must be started with a node of this cluster in REPLICA_NODES"))
                }
            };
        }
        self.admit(members, hello.id, url, role).await
    }

    async fn remove(&self, members: &Members, url: &str) -> Progress {
        let ids = members.with_url(url);
        if ids.is_empty() {
            return Progress::Unknown;
        }
        let Some(&id) = ids.iter().find(|id| members.voters.contains(id)) else {
            if ids.contains(&self.view.raft.id()) {
                return self.leadership.give_way(members).await;
            }
            let removed = ChangeMembers::RemoveNodes(ids.into_iter().collect());
            return self.apply(members, removed, Progress::Done).await;
        };
        let voters = match self.without(members, id).await {
            Ok(voters) => voters,
            Err(refusal) => return refusal,
        };
        if id == self.view.raft.id() {
            return self.leadership.give_way(members).await;
        }
        // If the node has lost its disk, its successor under the same URL goes next.
        let then = if ids.len() == 1 { Progress::Done } else { Progress::Pending };
        self.apply(members, ChangeMembers::ReplaceAllVoters(voters), then).await
    }

    /// The voters without one of them; a refusal if no majority of them can be reached.
    async fn without(&self, members: &Members, id: u64) -> Result<BTreeSet<u64>, Progress> {
        let others = members.nodes.iter().filter(|(other, _)| **other != id && members.voters.contains(other));
        let others: BTreeMap<u64, &str> = others.map(|(id, url)| (*id, url.as_str())).collect();
        // Asked now: the state recorded of a node that has just started may be old.
        let can_be_reached = async |id: u64, url: &str| {
            // A node that lost its disk answers under its former id until it has another one.
            let is_it = |hello: Hello| hello.id == id && hello.decided;
            id == self.view.raft.id() || self.greeter.ask(url).await.is_ok_and(is_it)
        };
        let asked = futures::future::join_all(others.iter().map(|(id, url)| can_be_reached(*id, url))).await;
        let (reached, all) = (asked.into_iter().filter(|reached| *reached).count(), others.len());
        match reached > all / 2 {
            true => Ok(others.into_keys().collect()),
            false if all == 0 => Err(Progress::Refused("it is the only voter".to_owned())),
            false => Err(Progress::Refused(format!("only {reached} of the {all} voters that remain can be reached"))),
        }
    }

    /// Makes one change of the membership that `members` shows, unless it has changed since; returns `then` if it succeeds.
    async fn apply(&self, members: &Members, change: ChangeMembers<u64, BasicNode>, then: Progress) -> Progress {
        // A former voter stays as a learner if that was requested, or may have been (see `complete_joint`).
        let retain = matches!(change, ChangeMembers::RemoveVoters(_) | ChangeMembers::AddVoterIds(_));
        let Ok(_changing) = self.changing.try_lock() else { return Progress::Pending };
        let raft = self.view.raft.raft();
        let is_current = Precondition::LastMembershipLogId { last_membership_log_id: members.log_id };
        let changed = raft.change_membership_if(change.clone(), retain, [is_current]);
        match tokio::time::timeout(STEP_TIMEOUT, changed).await {
            Ok(Ok(_)) => {
                tracing::info!(?change, "membership changed");
                then
            }
            Err(_) => Progress::Pending,
            Ok(Err(RaftError::Fatal(_))) => Progress::NotLeader,
            Ok(Err(RaftError::APIError(error))) => match error {
                ClientWriteError::ForwardToLeader(_) => Progress::NotLeader,
                ClientWriteError::LogEntryDiscarded(_)
                | ClientWriteError::PreconditionFailed(_)
                | ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)) => Progress::Pending,
                error => Progress::Refused(error.to_string()),
            },
        }
    }
}

pub(super) fn leads(metrics: &Metrics) -> bool {
    metrics.state == ServerState::Leader
}
