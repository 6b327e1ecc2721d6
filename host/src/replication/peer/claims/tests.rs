//! Tests of what peers may claim.

use std::collections::BTreeMap;

use openraft::{BasicNode, LogId as EntryId};

use super::*;
use crate::replication::types::{LogEntry, SnapshotMeta, StoredMembership, decode, encode};

const OWN_ID: u64 = 7;
const PEER: u64 = 3;
const TERM: u64 = 10;

fn known() -> Known {
    let committed = Some(at(TERM - 1, 5));
    Known { own_id: OWN_ID, vote: elected(TERM, PEER), committed, applied: committed }
}

fn elected(term: u64, id: u64) -> Vote {
    Vote::new_committed(term, id)
}

fn at(term: u64, index: u64) -> LogId {
    EntryId::new(Vote::new(term, PEER).leader_id, index)
}

fn header(vote: Vote, meta: SnapshotMeta) -> Header {
    Header { id: 1, offset: 0, vote, meta }
}

fn blank(term: u64, index: u64) -> LogEntry {
    LogEntry { log_id: at(term, index), payload: EntryPayload::Blank }
}

/// A membership as it arrives: openraft does not check what it decodes.
fn arrived(voters: &[&[u64]], urls: &[(u64, &str)]) -> Membership {
    let voters: Vec<BTreeSet<u64>> = voters.iter().map(|set| set.iter().copied().collect()).collect();
    let nodes: BTreeMap<u64, BasicNode> = urls.iter().map(|(id, url)| (*id, BasicNode::new(*url))).collect();
    decode(&encode(&(voters, nodes)).unwrap()).unwrap()
}

const URL: &str = "http://a:8000/kv-store/v1";

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(checked: Result<T, Error>, what: &str) {
    let error = checked.unwrap_err();
    assert!(error.to_string().contains(what), "{error} instead of {what}");
}

#[test]
fn a_term_near_the_end_of_numbers_is_refused() {
    for (own, found, is_sound) in [
        (TERM, TERM + TERMS_AHEAD_MAX, true),
        (TERM, TERM + TERMS_AHEAD_MAX + 1, false),
        (TERM, u64::MAX, false),
        (0, NUMBER_MAX, true),
        (0, NUMBER_MAX + 1, false),
        (NUMBER_MAX, NUMBER_MAX, true),
        (NUMBER_MAX, NUMBER_MAX + 1, false),
    ] {
        let known = Known { vote: elected(own, PEER), ..known() };
        let asked = vote(&VoteRequest::new(Vote::new(found, PEER), None), &known);
        let mut request = append_of(elected(found, PEER), None, vec![]);
        let header = header(elected(found, PEER), SnapshotMeta::default());
        let checked = [
            asked,
            append(&mut request, &known),
            transfer(&TransferLeaderRequest::new(elected(found, PEER), OWN_ID, None), &known),
            snapshot(&header, false, &known),
            higher_vote(elected(found, PEER), &known.vote, PEER).map(drop),
            vote_answer(&VoteResponse::new(elected(found, PEER), None, false), &known.vote),
        ];
        for (kind, checked) in checked.into_iter().enumerate() {
            assert_eq!(checked.is_ok(), is_sound, "{found} after {own}, kind {kind}");
        }
    }
}

#[test]
fn a_call_in_the_name_of_this_node_and_a_vote_of_the_wrong_kind_are_refused() {
    let known = known();
    let ask = |of| vote(&VoteRequest::new(of, None), &known);
    let lead = |of| append(&mut append_of(of, None, vec![]), &known);
    let send = |of| snapshot(&header(of, SnapshotMeta::default()), false, &known);
    let hand_over = |of| transfer(&TransferLeaderRequest::new(of, OWN_ID, None), &known);
    assert!(ask(Vote::new(TERM, PEER)).is_ok());
    // It has lost its vote with a part of its log.
    assert!(vote(&VoteRequest::new(Vote::new(TERM, PEER), Some(at(TERM + 9, 5))), &known).is_ok());
    assert_refused(ask(Vote::new(TERM, OWN_ID)), "name of this node");
    assert_refused(ask(elected(TERM, PEER)), "elected already");
    for checked in [&lead, &send, &hand_over] as [&dyn Fn(Vote) -> Result<(), Error>; 3] {
        assert!(checked(elected(TERM, PEER)).is_ok());
        assert_refused(checked(elected(TERM, OWN_ID)), "name of this node");
        assert_refused(checked(Vote::new(TERM, PEER)), "not elected");
    }
}

fn append_of(vote: Vote, previous: Option<LogId>, entries: Vec<LogEntry>) -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest { vote, prev_log_id: previous, entries, leader_commit: None }
}

#[test]
fn entries_that_do_not_follow_each_other_are_refused() {
    let lead = |previous, entries| append(&mut append_of(elected(TERM, PEER), previous, entries), &known());
    assert!(lead(None, vec![]).is_ok() && lead(Some(at(TERM, 9)), vec![]).is_ok());
    assert!(lead(None, vec![blank(1, 0), blank(1, 1), blank(TERM, 2)]).is_ok());
    for (previous, entries) in [
        (None, vec![blank(1, 1)]),
        (Some(at(1, 4)), vec![blank(1, 6)]),
        (Some(at(1, 4)), vec![blank(1, 4)]),
        (Some(at(1, 4)), vec![blank(1, 5), blank(1, 7)]),
        (Some(at(1, 4)), vec![blank(1, 5), blank(1, 5)]),
        (Some(at(2, 4)), vec![blank(1, 5)]),
        (Some(at(2, 4)), vec![blank(3, 5), blank(2, 6)]),
    ] {
        assert_refused(lead(previous, entries), "do not follow");
    }
    assert_refused(lead(Some(at(TERM + 1, 4)), vec![]), "later leader");
    assert_refused(lead(Some(at(1, 4)), vec![blank(TERM + 1, 5)]), "later leader");
    assert_refused(lead(Some(at(1, NUMBER_MAX + 1)), vec![]), "absurd log position");
    assert_refused(lead(Some(at(1, NUMBER_MAX)), vec![blank(1, NUMBER_MAX + 1)]), "absurd log position");
}

#[test]
fn a_commit_position_counts_if_it_is_an_entry_of_its_leader() {
    let taken = |commit| {
        let mut request = append_of(elected(TERM, PEER), None, vec![]);
        request.leader_commit = Some(commit);
        append(&mut request, &known()).map(|()| request.leader_commit)
    };
    assert_eq!(taken(at(TERM, 8)).unwrap(), Some(at(TERM, 8)));
    assert_eq!(taken(at(TERM - 1, 1_000)).unwrap(), None);
    assert_refused(taken(at(TERM + 1, 8)), "later leader");
    assert_refused(taken(at(TERM, u64::MAX)), "absurd log position");
}

#[test]
fn a_membership_that_no_cluster_has_is_refused() {
    let change = |membership| {
        let entry = LogEntry { log_id: at(TERM, 0), payload: EntryPayload::Membership(membership) };
        append(&mut append_of(elected(TERM, PEER), None, vec![entry]), &known())
    };
    let many: Vec<(u64, &str)> = (0..=NODES_MAX as u64).map(|id| (id, URL)).collect();
    assert!(change(arrived(&[&[1]], &many[..NODES_MAX])).is_ok());
    assert!(change(arrived(&[&[1], &[1, 2]], &[(1, URL), (2, "http://LOCALHOST:1/kv-store/v1")])).is_ok());
    for (voters, urls) in [
        (&[][..], &[(1, URL)][..]),
        (&[&[]], &[(1, URL)]),
        (&[&[1, 2]], &[(1, URL)]),
        (&[&[1], &[1], &[1]], &[(1, URL)]),
        (&[&[1]], &many),
    ] as [(&[&[u64]], &[(u64, &str)]); 5]
    {
        assert_refused(change(arrived(voters, urls)), "no cluster has");
    }
    let long = format!("http://{}/kv-store/v1", "a".repeat(MEMBER_URL_BYTES_MAX));
    for url in ["", "http://a/ b", "http://a/\u{1b}[2J", &long] {
        assert_refused(change(arrived(&[&[1]], &[(1, url)])), "without a URL");
    }
}

#[test]
fn an_answer_makes_nobody_a_leader_and_acknowledges_no_more_than_was_sent() {
    let own = elected(TERM, OWN_ID);
    let (previous, last) = (Some(at(2, 4)), Some(at(3, 6)));
    let answered = |answer, previous| append_answer(answer, (&own, PEER), (previous, last));
    let higher = |vote| answered(AppendEntriesResponse::HigherVote(vote), previous);
    assert_eq!(higher(elected(TERM + 1, PEER)).unwrap(), AppendEntriesResponse::HigherVote(elected(TERM + 1, PEER)));
    let stands_for = AppendEntriesResponse::HigherVote(Vote::new(TERM + 1, PEER));
    assert_eq!(higher(elected(TERM + 1, OWN_ID)).unwrap(), stands_for);
    assert_refused(higher(elected(u64::MAX, PEER)), "absurd term");
    let matched = |log_id| answered(AppendEntriesResponse::PartialSuccess(log_id), previous);
    for log_id in [at(2, 4), at(3, 5), at(3, 6)] {
        assert!(matched(Some(log_id)).is_ok());
    }
    for log_id in [None, Some(at(2, 3)), Some(at(3, 7)), Some(at(TERM, 1))] {
        assert_refused(matched(log_id), "more entries");
    }
    assert!(answered(AppendEntriesResponse::Conflict, previous).is_ok());
    assert_refused(answered(AppendEntriesResponse::Conflict, None), "conflict");
    let far = VoteResponse::new(own, Some(at(1, u64::MAX)), false);
    assert_refused(vote_answer(&far, &own), "absurd log position");
}

#[test]
fn a_snapshot_that_contradicts_itself_or_what_is_committed_is_refused() {
    let meta = |last: LogId, at: u64, membership| SnapshotMeta {
        last_log_id: Some(last),
        last_membership: StoredMembership::new(Some(EntryId::new(last.leader_id, at)), membership),
    };
    let one = || arrived(&[&[1]], &[(1, URL)]);
    let check = |vote, meta, is_here| snapshot(&header(vote, meta), is_here, &known());
    let leader = elected(TERM, PEER);
    assert!(check(leader, meta(at(TERM, 6), 2, one()), true).is_ok());
    // It is old, which openraft sees by itself.
    assert!(check(leader, meta(at(1, 4), 2, one()), true).is_ok());
    assert_refused(check(leader, meta(at(TERM, 5), 2, one()), false), "contradicts committed");
    assert_refused(check(leader, meta(at(TERM, 3), 2, one()), false), "contradicts committed");
    assert_refused(check(leader, meta(at(TERM + 1, 6), 2, one()), false), "later leader");
    assert_refused(check(leader, meta(at(TERM, 6), 7, one()), false), "newer than its snapshot");
    assert_refused(check(leader, meta(at(TERM, 6), 2, arrived(&[&[1, 2]], &[(1, URL)])), false), "no cluster has");
    let without = SnapshotMeta { last_log_id: Some(at(TERM, 6)), ..SnapshotMeta::default() };
    assert_refused(check(leader, without, false), "without members");
    assert_refused(check(elected(TERM - 1, PEER), SnapshotMeta::default(), false), "does not follow");
    assert!(check(elected(TERM + 1, PEER), SnapshotMeta::default(), false).is_ok());
    assert_refused(check(elected(TERM + 1, PEER), SnapshotMeta::default(), true), "does not follow");
}

#[test]
fn a_leader_never_takes_back_an_entry_of_its_own() {
    let leader = Vote::new(TERM, PEER).leader_id;
    let mut said = Said::default();
    said.begin(leader, None);
    let mut add = |positions: &[LogId]| said.add(leader, positions.iter().copied());
    add(&[at(1, 4), at(1, 5)]).unwrap();
    add(&[at(1, 5), at(TERM, 6), at(TERM, 7)]).unwrap();
    assert_refused(add(&[at(1, 6)]), "takes back");
    assert_refused(add(&[at(TERM, 5)]), "takes back");
    assert_refused(add(&[at(1, 3), at(1, 4), at(1, 5), at(1, 6), at(TERM, 7)]), "takes back");
    // A refused message has said nothing.
    add(&[at(1, 5), at(TERM, 6)]).unwrap();
    assert!(said.is_its_own(leader, at(TERM, 6)) && said.is_its_own(leader, at(TERM, 9)));
    assert!(!said.is_its_own(leader, at(TERM, 5)) && !said.is_its_own(leader, at(1, 6)));
    assert!(said.ended_with(leader, at(TERM, 6)) && !said.ended_with(leader, at(TERM, 7)));

    // A restarted node knows it by its log.
    let mut said = Said::default();
    said.begin(leader, Some(6));
    assert_refused(said.add(leader, [at(1, 6)].into_iter()), "takes back");
    let later = Vote::new(TERM + 1, PEER).leader_id;
    said.begin(later, None);
    said.begin(leader, Some(6));
    assert!(said.is_of(leader) && said.add(later, [at(1, 6)].into_iter()).is_ok());
}
