//! What a node that is broken, or in wrong hands, sends with the place of a member: it is refused, nobody stops, and the cluster
//! goes on. Without the rules most of these messages end a node, some at every start.

use futures::FutureExt;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest};
use openraft::{BasicNode, EntryPayload, LogId as EntryId, Membership};

use super::*;
use crate::replication::blocking::Blocking;
use crate::replication::peer::snapshot::{Outgoing, SnapshotSource};
use crate::replication::types::{LogEntry, LogId, SnapshotMeta};

/// The term of the hostile node: one that no other node reaches.
const TERMS_AHEAD: u64 = 1_000;

/// What a hostile node knows of the node that it attacks.
struct Target {
    /// The hostile node's own id.
    by: u64,
    own_id: u64,
    /// The last log entry of the attacked node, which it has committed.
    last: LogId,
    term: u64,
}

impl Target {
    /// The vote of the hostile node as a leader of a later term.
    fn lead(&self) -> Vote {
        Vote::new_committed(self.term + TERMS_AHEAD, self.by)
    }

    /// A position as the hostile leader gives it to its own entries, so far after the attacked node's last one.
    fn own(&self, after: u64) -> LogId {
        EntryId::new(self.lead().leader_id, self.last.index + after)
    }

    /// A position of the last leader's entries.
    fn others(&self, after: u64) -> LogId {
        EntryId::new(self.last.leader_id, self.last.index + after)
    }
}

fn blank(log_id: LogId) -> LogEntry {
    LogEntry { log_id, payload: EntryPayload::Blank }
}

fn append(vote: Vote, previous: LogId, entries: Vec<LogEntry>, commit: Option<LogId>) -> Bytes {
    let request =
        AppendEntriesRequest::<TypeConfig> { vote, prev_log_id: Some(previous), entries, leader_commit: commit };
    encode(&request).unwrap()
}

/// A change to a membership in which a voter has no URL.
fn without_url(log_id: LogId) -> LogEntry {
    let (voters, nodes) = (vec![BTreeSet::from([1_u64, 2])], BTreeMap::from([(1_u64, BasicNode::new(url(0)))]));
    let membership: Membership<u64, BasicNode> = decode(&encode(&(voters, nodes)).unwrap()).unwrap();
    LogEntry { log_id, payload: EntryPayload::Membership(membership) }
}

fn ask_for_vote(vote: Vote) -> Bytes {
    let mut request = VoteRequest::<TypeConfig>::new(vote, Some(EntryId::new(vote.leader_id, 1_000_000)));
    // It breaks the lease of the leader.
    request.leadership_transfer = true;
    encode(&request).unwrap()
}

/// Calls that are refused, each with the reason.
fn hostile(target: &Target) -> Vec<(Call, Bytes, &'static str)> {
    let (lead, last) = (target.lead(), target.last);
    let later = Vote::new(lead.leader_id.term + 1, target.by);
    let last_term = Vote::new(u64::MAX, target.by);
    let in_its_name = Vote::new_committed(lead.leader_id.term, target.own_id);
    let far = EntryId::new(lead.leader_id, u64::MAX);
    let append = |vote, previous, entries| append(vote, previous, entries, None);
    vec![
        (Call::Vote, ask_for_vote(last_term), "absurd term"),
        (Call::PreVote, ask_for_vote(last_term), "absurd term"),
        (Call::Vote, ask_for_vote(lead), "elected already"),
        (Call::Append, append(Vote::new_committed(u64::MAX, target.by), last, vec![]), "absurd term"),
        (Call::Append, append(in_its_name, last, vec![]), "name of this node"),
        (Call::Append, append(later, last, vec![]), "not elected"),
        (Call::Append, append(lead, last, vec![blank(target.own(2))]), "do not follow"),
        (Call::Append, append(lead, last, vec![blank(target.own(1)), blank(target.others(2))]), "do not follow"),
        (Call::Append, append(lead, last, vec![blank(EntryId::new(later.leader_id, last.index + 1))]), "later leader"),
        (Call::Append, append(lead, far, vec![]), "absurd log position"),
        (Call::Append, append(lead, target.own(0), vec![]), "contradicts a committed one"),
        (Call::Append, append(lead, last, vec![without_url(target.own(1))]), "no cluster has"),
        (
            Call::TransferLeader,
            encode(&TransferLeaderRequest::<TypeConfig>::new(in_its_name, target.own_id, None)).unwrap(),
            "name of this node",
        ),
    ]
}

/// A cluster, and a follower that another follower will attack.
fn besieged(seed: u64) -> (World, usize, Target) {
    let (mut world, led_by) = cluster(seed, [1_000; 3]);
    let (victim, by) = ((led_by + 1) % 3, (led_by + 2) % 3);
    write(&mut world, led_by, "x/before");
    let is_settled = |world: &World| {
        let metrics = metrics(world, victim);
        has(world, victim, "x/before")
            && metrics.local_committed.is_some()
            && metrics.local_committed.map(|committed| committed.index) == metrics.last_log_index
    };
    steps(&mut world, 500);
    until(&mut world, is_settled);
    let found = metrics(&world, victim);
    let target = Target {
        by: metrics(&world, by).id,
        own_id: found.id,
        last: found.local_committed.unwrap(),
        term: found.current_term,
    };
    (world, victim, target)
}

/// The cluster takes a write, also on the attacked node, and keeps all promises.
fn goes_on(mut world: World, victim: usize) {
    until(&mut world, |world| leader(world).is_some());
    let led_by = leader(&world).unwrap();
    write(&mut world, led_by, "x/after");
    until(&mut world, |world| has(world, victim, "x/after"));
    finish_quietly(&mut world);
}

#[test]
fn a_malformed_call_of_a_member_is_refused_and_ends_no_node() {
    let count = hostile(&besieged(1).2).len();
    for number in 0..count {
        let (mut world, victim, target) = besieged(1 + number as u64);
        let (call, body, reason) = hostile(&target).swap_remove(number);
        let to = envelope(&world, victim);
        let answer = ask(&mut world, victim, call, to, body);
        let text = answer.map(drop).unwrap_err().to_string();
        assert!(text.contains(reason), "{text} instead of {reason}");
        goes_on(world, victim);
    }
}

/// The follower's log has no entry at that position, or one of another leader.
#[test]
fn a_commit_position_of_an_earlier_leader_makes_no_node_apply_what_it_does_not_have() {
    let (mut world, victim, target) = besieged(1);
    let to = envelope(&world, victim);
    let commit = Some(target.others(1_000));
    let body = append(target.lead(), target.last, vec![blank(target.own(1))], commit);
    assert!(ask(&mut world, victim, Call::Append, to, body).is_ok());
    goes_on(world, victim);
}

/// A snapshot of another node's state, said to end with a position; it is answered with an error.
fn send_snapshot(world: &mut World, victim: usize, vote: Vote, last: LogId) -> String {
    let (to, state) = (envelope(world, victim), world.nodes[(victim + 1) % 3].data().snapshot());
    let last_membership = (*metrics(world, victim).membership_config).clone();
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership };
    let answer = Arc::new(Mutex::new(None));
    let slot = answer.clone();
    world.nodes[victim].spawn(async move |handle| {
        let blocking = Blocking::InPlace(|| futures::future::ready(()).boxed());
        let body = Outgoing::new(vote, meta, SnapshotSource::Live(state)).body(0, u64::MAX, &blocking).unwrap();
        let answered = handle.serve_snapshot(to, body).await;
        *slot.lock() = Some(answered.map(drop).unwrap_err().to_string());
    });
    until(world, |_| answer.lock().is_some());
    answer.lock().take().unwrap()
}

#[test]
fn a_snapshot_that_contradicts_what_is_committed_or_itself_is_refused_and_ends_no_node() {
    for (number, reason) in ["contradicts committed", "later leader", "another state"].into_iter().enumerate() {
        let (mut world, victim, target) = besieged(1);
        let lead = target.lead();
        let later = Vote::new(lead.leader_id.term + 1, target.by).leader_id;
        let last = [target.own(0), EntryId::new(later, target.last.index + 9), target.own(9)];
        let text = send_snapshot(&mut world, victim, lead, last[number]);
        assert!(text.contains(reason), "{text} instead of {reason}");
        goes_on(world, victim);
    }
}

/// openraft would believe in the entries that it had removed, and apply them once they are committed.
#[test]
fn a_leader_that_takes_back_an_entry_is_refused_also_after_a_restart() {
    for is_restarted in [false, true] {
        let (mut world, victim, target) = besieged(1);
        let to = envelope(&world, victim);
        let entries = vec![blank(target.own(1)), blank(target.own(2))];
        let body = append(target.lead(), target.last, entries, None);
        assert!(ask(&mut world, victim, Call::Append, to, body).is_ok());
        if is_restarted {
            // Nobody else may be heard before.
            cut_off(&mut world, victim);
            world.crash(victim, true);
            world.start(victim);
            until(&mut world, |world| world.nodes[victim].handle().is_some());
        }
        let body = append(target.lead(), target.others(1), vec![], None);
        let answer = ask(&mut world, victim, Call::Append, to, body);
        assert!(answer.map(drop).unwrap_err().to_string().contains("takes back"));
        let body = append(target.lead(), target.own(2), vec![], Some(target.own(2)));
        assert!(ask(&mut world, victim, Call::Append, to, body).is_ok());
        steps(&mut world, 100);
        world.cuts.heal();
        // What it made the node commit is blank, and in no other log.
        assert!(world.nodes[victim].handle().is_some());
    }
}
