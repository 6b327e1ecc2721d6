//! The names of metrics, labels and spans. Dashboards and alerts rely on them.

use opentelemetry::KeyValue;

/// Declares a constant for each name, and an array of all.
macro_rules! names {
    ($all:ident: $($(#[$about:meta])* $name:ident = $text:literal;)+) => {
        $($(#[$about])* pub const $name: &str = $text;)+
        /// All of them.
        pub const $all: &[&str] = &[$($name),+];
    };
}

names! {
    METRICS:
    /// Duration of each stage of a write in seconds, by `stage`.
    WRITE_DURATION = "brink.write.duration";
    /// Seconds between sending an append to a follower and its answer, by `peer`.
    REPLICATION_RTT = "brink.replication.rtt";
    /// Log entries that a node is behind, by `peer`.
    REPLICATION_LAG = "brink.replication.lag";
    /// Entries in this node's log.
    LOG_ENTRIES = "brink.log.entries";
    /// Duration of a sync of the log in seconds.
    LOG_FSYNC_DURATION = "brink.log.fsync.duration";
    /// Log entries per sync.
    LOG_FSYNC_ENTRIES = "brink.log.fsync.entries";
    /// Duration of a read in seconds, by `consistency`.
    READ_DURATION = "brink.read.duration";
    /// Raft's term.
    RAFT_TERM = "brink.raft.term";
    /// Changes of the leader seen by this node.
    RAFT_LEADER_CHANGES = "brink.raft.leader_changes";
    /// Writes waiting to be proposed on this node.
    RAFT_PENDING = "brink.raft.pending";
    /// 1 while this node reaches a leader and a majority, otherwise 0.
    QUORUM_HEALTHY = "brink.quorum.healthy";
    /// Seconds that this node's clock is ahead of the middle of the other nodes' clocks.
    CLOCK_OFFSET = "brink.clock.offset";
    /// Duration of a plugin's call in seconds, by `hook`, `plugin` and `result`.
    HOOK_DURATION = "brink.hook.duration";
    /// Plugin calls that rejected a write, by `hook` and `plugin`.
    HOOK_REJECTIONS = "brink.hook.rejections";
    /// Plugin calls that failed, by `hook`, `plugin` and `reason`.
    HOOK_TRAPS = "brink.hook.traps";
    /// Linear memory at the end of a plugin's call in bytes, by `hook` and `plugin`.
    HOOK_MEMORY = "brink.hook.memory";
    /// Log lines that were dropped because nobody read them in time.
    LINES_DROPPED = "brink.lines.dropped";
    /// Duration of a request in seconds, by method, route and status.
    HTTP_DURATION = "http.server.request.duration";
}

names! {
    SPANS:
    /// The request of a client.
    SPAN_REQUEST = "http.request";
    /// Judging a write by its hooks.
    SPAN_HOOKS = "hooks.judge";
    /// One plugin's call, within [`SPAN_HOOKS`].
    SPAN_HOOK = "hook";
    /// A write from its proposal until the leader has applied it.
    SPAN_PROPOSE = "replication.propose";
    /// A proposal round on its way to the leader and back.
    SPAN_FORWARD = "replication.forward";
    /// A log append on one node, including its sync.
    SPAN_LOG_APPEND = "raft.append";
    /// An entry on the leader, from its proposal to its commit.
    SPAN_COMMIT = "raft.commit";
    /// Applying an entry on one node.
    SPAN_APPLY = "storage.apply";
}

/// The target of all spans. They exist only while traces are exported.
pub const TRACE_TARGET: &str = "brink::trace";

/// The span attribute for a log index.
pub(crate) fn log_index(index: u64) -> KeyValue {
    KeyValue::new("brink.log.index", i64::try_from(index).unwrap_or(i64::MAX))
}

pub(crate) fn request_span(method: &http::Method, route: &str) -> tracing::Span {
    tracing::info_span!(target: TRACE_TARGET, SPAN_REQUEST, %method, route)
}

pub(crate) fn propose_span() -> tracing::Span {
    tracing::info_span!(target: TRACE_TARGET, SPAN_PROPOSE)
}

pub(crate) fn hooks_span() -> tracing::Span {
    tracing::info_span!(target: TRACE_TARGET, SPAN_HOOKS)
}

/// The span around one call of a plugin. `result` is recorded at its end.
pub(crate) fn hook_span(hook: &str, plugin: &str, digest: &str) -> tracing::Span {
    tracing::info_span!(target: TRACE_TARGET, SPAN_HOOK, hook, plugin, digest, result = tracing::field::Empty)
}

pub(super) const STAGE: &str = "stage";
/// The label for the URL of another node.
pub(super) const PEER: &str = "peer";
pub(super) const CONSISTENCY: &str = "consistency";
pub(super) const HOOK: &str = "hook";
pub(super) const PLUGIN: &str = "plugin";
/// The label for the result of a plugin's call: [`ACCEPTED`], [`REJECTED`], or the way in which it failed.
pub(super) const RESULT: &str = "result";
/// The label for the way in which a plugin's call failed.
pub(super) const REASON: &str = "reason";
pub(super) const HTTP_METHOD: &str = "http.request.method";
pub(super) const HTTP_ROUTE: &str = "http.route";
pub(super) const HTTP_STATUS: &str = "http.response.status_code";

/// The result of a plugin's call that accepted all writes.
pub const ACCEPTED: &str = "accepted";
pub(super) const REJECTED: &str = "rejected";

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_name_stands_for_two_things() {
        let names: BTreeSet<&str> = METRICS.iter().chain(SPANS).copied().collect();
        assert_eq!(names.len(), METRICS.len() + SPANS.len());
    }
}
