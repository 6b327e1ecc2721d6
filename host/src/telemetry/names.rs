//! Every name that dashboards, alerts and traces rely on.

use opentelemetry::KeyValue;

/// Seconds each stage of a write takes, by `stage`.
pub const WRITE_DURATION: &str = "brink.write.duration";
/// Seconds from sending an append to a follower to its answer, by `peer`.
pub const REPLICATION_RTT: &str = "brink.replication.rtt";
/// Log entries a node lacks, by `peer`.
pub const REPLICATION_LAG: &str = "brink.replication.lag";
/// Entries in this node's log.
pub const LOG_ENTRIES: &str = "brink.log.entries";
/// Seconds a sync of the log takes.
pub const LOG_FSYNC_DURATION: &str = "brink.log.fsync.duration";
/// Log entries that shared a sync.
pub const LOG_FSYNC_ENTRIES: &str = "brink.log.fsync.entries";
/// Seconds a read takes, by `consistency`.
pub const READ_DURATION: &str = "brink.read.duration";
/// Raft's term.
pub const RAFT_TERM: &str = "brink.raft.term";
/// How often this node saw the leader change.
pub const RAFT_LEADER_CHANGES: &str = "brink.raft.leader_changes";
/// Writes waiting to be proposed on this node.
pub const RAFT_PENDING: &str = "brink.raft.pending";
/// 1 while this node reaches a leader and a majority, else 0.
pub const QUORUM_HEALTHY: &str = "brink.quorum.healthy";
/// Seconds a call of a plugin takes, by `hook`, `plugin` and `result`.
pub const HOOK_DURATION: &str = "brink.hook.duration";
/// Writes a hook refused, by `hook` and `plugin`.
pub const HOOK_REJECTIONS: &str = "brink.hook.rejections";
/// Calls of a plugin that failed, by `hook`, `plugin` and `reason`.
pub const HOOK_TRAPS: &str = "brink.hook.traps";
/// Bytes of linear memory a call of a plugin had at its end, by `hook` and `plugin`.
pub const HOOK_MEMORY: &str = "brink.hook.memory";
/// Seconds a request takes, by method, route and status.
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
/// The target of the span around each request, which also gives log lines their trace id.
pub const REQUEST_TARGET: &str = "brink::request";

/// A request of a client.
pub const SPAN_REQUEST: &str = "http.request";
/// The judgement of a write by its hooks.
pub const SPAN_HOOKS: &str = "hooks.judge";
/// One call of one plugin, within that.
pub const SPAN_HOOK: &str = "hook";
/// A write from being proposed to being applied by the leader.
pub const SPAN_PROPOSE: &str = "replication.propose";
/// A round on its way to the leader and back.
pub const SPAN_FORWARD: &str = "replication.forward";
/// A log append on one node, up to the end of its sync.
pub const SPAN_LOG_APPEND: &str = "raft.append";
/// On the leader: from the proposal of an entry to its commit.
pub const SPAN_COMMIT: &str = "raft.commit";
/// Applying an entry to one node's state.
pub const SPAN_APPLY: &str = "storage.apply";

/// All spans.
pub const SPANS: [&str; 8] =
    [SPAN_REQUEST, SPAN_HOOKS, SPAN_HOOK, SPAN_PROPOSE, SPAN_FORWARD, SPAN_LOG_APPEND, SPAN_COMMIT, SPAN_APPLY];

/// The attribute that names a log position.
pub fn log_index(index: u64) -> KeyValue {
    KeyValue::new("brink.log.index", i64::try_from(index).unwrap_or(i64::MAX))
}

/// The span around proposing a write.
pub fn propose_span() -> tracing::Span {
    tracing::info_span!(target: "brink::trace", "replication.propose")
}

/// How most calls of plugins end.
pub const ACCEPTED: &str = "accepted";

/// The span around one call of a plugin. `result` is recorded at its end.
pub fn hook_span(hook: &str, plugin: &str, digest: &str) -> tracing::Span {
    tracing::info_span!(target: "brink::trace", "hook", hook, plugin, digest, result = tracing::field::Empty)
}

/// The span around judging a write.
pub fn hooks_span() -> tracing::Span {
    tracing::info_span!(target: "brink::trace", "hooks.judge")
}

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
