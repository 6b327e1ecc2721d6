//! The names of metrics, labels and spans. Dashboards and alerts rely on them.

use opentelemetry::KeyValue;

/// Duration of each stage of a write in seconds, by `stage`.
pub const WRITE_DURATION: &str = "brink.write.duration";
/// Seconds between sending an append to a follower and its answer, by `peer`.
pub const REPLICATION_RTT: &str = "brink.replication.rtt";
/// Log entries that a node is behind, by `peer`.
pub const REPLICATION_LAG: &str = "brink.replication.lag";
/// Entries in this node's log.
pub const LOG_ENTRIES: &str = "brink.log.entries";
/// Duration of a sync of the log in seconds.
pub const LOG_FSYNC_DURATION: &str = "brink.log.fsync.duration";
/// Log entries per sync.
pub const LOG_FSYNC_ENTRIES: &str = "brink.log.fsync.entries";
/// Duration of a read in seconds, by `consistency`.
pub const READ_DURATION: &str = "brink.read.duration";
/// Raft's term.
pub const RAFT_TERM: &str = "brink.raft.term";
/// Changes of the leader seen by this node.
pub const RAFT_LEADER_CHANGES: &str = "brink.raft.leader_changes";
/// Writes waiting to be proposed on this node.
pub const RAFT_PENDING: &str = "brink.raft.pending";
/// 1 while this node reaches a leader and a majority, otherwise 0.
pub const QUORUM_HEALTHY: &str = "brink.quorum.healthy";
/// Duration of a plugin's call in seconds, by `hook`, `plugin` and `result`.
pub const HOOK_DURATION: &str = "brink.hook.duration";
/// Plugin calls that rejected a write, by `hook` and `plugin`.
pub const HOOK_REJECTIONS: &str = "brink.hook.rejections";
/// Plugin calls that failed, by `hook`, `plugin` and `reason`.
pub const HOOK_TRAPS: &str = "brink.hook.traps";
/// Linear memory at the end of a plugin's call in bytes, by `hook` and `plugin`.
pub const HOOK_MEMORY: &str = "brink.hook.memory";
/// Duration of a request in seconds, by method, route and status.
pub const HTTP_DURATION: &str = "http.server.request.duration";

/// All metrics.
pub const METRICS: [&str; 16] = [
    WRITE_DURATION,
    REPLICATION_RTT,
    REPLICATION_LAG,
    LOG_ENTRIES,
    LOG_FSYNC_DURATION,
    LOG_FSYNC_ENTRIES,
    READ_DURATION,
    RAFT_TERM,
    RAFT_LEADER_CHANGES,
    RAFT_PENDING,
    QUORUM_HEALTHY,
    HOOK_DURATION,
    HOOK_REJECTIONS,
    HOOK_TRAPS,
    HOOK_MEMORY,
    HTTP_DURATION,
];

/// The target of spans that exist only while traces are exported.
pub const TRACE_TARGET: &str = "brink::trace";
/// The target of the span around each request. It always exists, since log lines get their trace id from it.
pub const REQUEST_TARGET: &str = "brink::request";

/// The request of a client.
pub const SPAN_REQUEST: &str = "http.request";
/// Judging a write by its hooks.
pub const SPAN_HOOKS: &str = "hooks.judge";
/// One plugin's call, within [`SPAN_HOOKS`].
pub const SPAN_HOOK: &str = "hook";
/// A write from its proposal until the leader has applied it.
pub const SPAN_PROPOSE: &str = "replication.propose";
/// A proposal round on its way to the leader and back.
pub const SPAN_FORWARD: &str = "replication.forward";
/// A log append on one node, including its sync.
pub const SPAN_LOG_APPEND: &str = "raft.append";
/// An entry on the leader, from its proposal to its commit.
pub const SPAN_COMMIT: &str = "raft.commit";
/// Applying an entry on one node.
pub const SPAN_APPLY: &str = "storage.apply";

/// All spans.
pub const SPANS: [&str; 8] =
    [SPAN_REQUEST, SPAN_HOOKS, SPAN_HOOK, SPAN_PROPOSE, SPAN_FORWARD, SPAN_LOG_APPEND, SPAN_COMMIT, SPAN_APPLY];

/// The span attribute for a log index.
pub fn log_index(index: u64) -> KeyValue {
    KeyValue::new("brink.log.index", i64::try_from(index).unwrap_or(i64::MAX))
}

/// The span around proposing a write.
pub fn propose_span() -> tracing::Span {
    tracing::info_span!(target: TRACE_TARGET, SPAN_PROPOSE)
}

/// The span around judging a write.
pub fn hooks_span() -> tracing::Span {
    tracing::info_span!(target: TRACE_TARGET, SPAN_HOOKS)
}

/// The span around one call of a plugin. `result` is recorded at its end.
pub fn hook_span(hook: &str, plugin: &str, digest: &str) -> tracing::Span {
    tracing::info_span!(target: TRACE_TARGET, SPAN_HOOK, hook, plugin, digest, result = tracing::field::Empty)
}

/// The label for the stage of a write.
pub(super) const STAGE: &str = "stage";
/// The label for the URL of another node.
pub(super) const PEER: &str = "peer";
/// The label for the consistency of a read.
pub(super) const CONSISTENCY: &str = "consistency";
/// The label for a hook.
pub(super) const HOOK: &str = "hook";
/// The label for a plugin.
pub(super) const PLUGIN: &str = "plugin";
/// The label for the result of a plugin's call.
pub(super) const RESULT: &str = "result";
/// The label for the way in which a plugin's call failed.
pub(super) const REASON: &str = "reason";
/// The label for the method of a request.
pub(super) const HTTP_METHOD: &str = "http.request.method";
/// The label for the route of a request.
pub(super) const HTTP_ROUTE: &str = "http.route";
/// The label for the status of a response.
pub(super) const HTTP_STATUS: &str = "http.response.status_code";

/// The result of a plugin's call that accepted all writes.
pub const ACCEPTED: &str = "accepted";
/// The result of a plugin's call that rejected a write. All other results are failures.
pub(super) const REJECTED: &str = "rejected";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_name_stands_for_two_things() {
        let names: BTreeSet<&str> = METRICS.iter().chain(&SPANS).copied().collect();
        assert_eq!(names.len(), METRICS.len() + SPANS.len());
    }
}
