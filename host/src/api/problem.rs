//! Errors as clients see them (RFC 9457). HTTP status and problem type of an error are chosen here and nowhere else.
//!
//! Every problem has a `type` that `docs/problems.md` explains, a `detail` for people and the `trace_id` of the request.
//! The problem of a write also states the `outcome` of the write. Messages of the node's storage and of its peers go to
//! the log and never to a client.

use std::fmt::Display;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::limits::COMMAND_BYTES_MAX;
use crate::replication::{self, WriteOutcome};
use crate::{hooks, registry, storage, write_path};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Kind {
    r#type: &'static str,
    title: &'static str,
    #[serde(serialize_with = "as_number")]
    status: StatusCode,
}

fn as_number<S: Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

macro_rules! kinds {
    ($($name:ident = $slug:literal $status:ident $title:literal;)*) => {
        impl Kind {
            $(pub(crate) const $name: Self = Self {
                r#type: concat!("urn:brink:problem:", $slug),
                title: $title,
                status: StatusCode::$status,
            };)*
            #[cfg(test)]
            const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

kinds! {
    BAD_KEY = "bad-key" BAD_REQUEST "The key is not allowed";
    BAD_PATH = "bad-path" BAD_REQUEST "The path is malformed";
    BAD_PARAMETER = "bad-parameter" BAD_REQUEST "A query parameter is not allowed";
    BAD_HEADER = "bad-header" BAD_REQUEST "A header has a value that is not allowed";
    BAD_BODY = "bad-body" BAD_REQUEST "The body is malformed";
    DUPLICATE_KEY = "duplicate-key" BAD_REQUEST "A key occurs twice";
    UNAUTHORIZED = "unauthorized" UNAUTHORIZED "The request needs a credential";
    FORBIDDEN = "forbidden" FORBIDDEN "The caller may not do this";
    NOT_FOUND = "not-found" NOT_FOUND "There is nothing here";
    REQUEST_TIMEOUT = "request-timeout" REQUEST_TIMEOUT "The request did not arrive in time";
    METHOD_NOT_ALLOWED = "method-not-allowed" METHOD_NOT_ALLOWED "The method is not allowed here";
    TOO_LARGE = "too-large" PAYLOAD_TOO_LARGE "The request is too large";
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type" UNSUPPORTED_MEDIA_TYPE "The content type is not supported";
    FOREIGN_ORIGIN = "foreign-origin" FORBIDDEN "Pages of other sites may not do this";
    WRONG_HOST = "wrong-host" MISDIRECTED_REQUEST "The node does not have this name";
    PRECONDITION_FAILED = "precondition-failed" PRECONDITION_FAILED "A precondition does not hold";
    IDEMPOTENCY_KEY_REUSED = "idempotency-key-reused" UNPROCESSABLE_ENTITY "The idempotency key belongs to another request";
    CONTENDED = "contended" CONFLICT "Others kept changing what the write depends on";
    WRITE_TOO_LARGE = "write-too-large" UNPROCESSABLE_ENTITY "The write is too large after its hooks";
    REJECTED = "rejected" UNPROCESSABLE_ENTITY "A plugin refused the write";
    PLUGIN_TIMED_OUT = "plugin-timed-out" INTERNAL_SERVER_ERROR "A plugin did not answer in time";
    PLUGIN_TRAPPED = "plugin-trapped" INTERNAL_SERVER_ERROR "A plugin failed";
    PLUGIN_MEMORY_LIMIT = "plugin-memory-limit" INTERNAL_SERVER_ERROR "A plugin wanted too much memory";
    PLUGIN_OUTPUT_LIMIT = "plugin-output-limit" INTERNAL_SERVER_ERROR "A plugin returned too much";
    PLUGIN_BAD_OUTPUT = "plugin-bad-output" INTERNAL_SERVER_ERROR "A plugin gave an answer that cannot be used";
    NOT_A_PLUGIN = "not-a-plugin" UNPROCESSABLE_ENTITY "The upload is not a plugin";
    PLUGIN_MISSING = "plugin-missing" UNPROCESSABLE_ENTITY "The plugin does not exist";
    PLUGIN_IN_USE = "plugin-in-use" CONFLICT "The plugin is in use";
    CONFIG_REFUSED = "config-refused" UNPROCESSABLE_ENTITY "The plugin refuses the configuration";
    BAD_HOOK = "bad-hook" BAD_REQUEST "The hook is malformed";
    TOO_MANY_HOOKS = "too-many-hooks" CONFLICT "There are too many hooks";
    TOO_MANY_PLUGINS = "too-many-plugins" CONFLICT "There are too many plugins";
    NO_SUCH_STATE = "no-such-state" UNPROCESSABLE_ENTITY "The history does not tell what the hook was";
    NOT_A_MEMBER = "not-a-member" NOT_FOUND "The cluster has no such node";
    MEMBERSHIP_REFUSED = "membership-refused" CONFLICT "The cluster cannot be changed like that";
    MEMBERSHIP_PENDING = "membership-pending" SERVICE_UNAVAILABLE "The cluster is still changing";
    BUSY = "busy" SERVICE_UNAVAILABLE "The node has too much to do";
    DISK_FULL = "disk-full" SERVICE_UNAVAILABLE "The node's disk is full";
    NOT_TAKING_PART = "not-taking-part" SERVICE_UNAVAILABLE "The node takes no part in its cluster";
    HOOKS_NOT_READY = "hooks-not-ready" SERVICE_UNAVAILABLE "The node is still preparing its hooks";
    REPLICATION_FAILED = "replication-failed" INTERNAL_SERVER_ERROR "No majority of the nodes took the write";
    QUORUM_UNAVAILABLE = "quorum-unavailable" SERVICE_UNAVAILABLE "A linearizable read is not possible now";
    LEADER_LOST = "leader-lost" SERVICE_UNAVAILABLE "The leader was lost while the write was in flight";
    STARTING = "starting" SERVICE_UNAVAILABLE "The node is starting";
    STOPPING = "stopping" SERVICE_UNAVAILABLE "The node is stopping";
    STORAGE_FAILED = "storage-failed" INTERNAL_SERVER_ERROR "The node's storage failed";
    INTERNAL = "internal" INTERNAL_SERVER_ERROR "The node failed";
}

/// A problem on its way to a client; its fields are members in this order.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Problem {
    #[serde(flatten)]
    kind: Kind,
    detail: String,
    /// Whether the write happened, if the request was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<WriteOutcome>,
    /// Further members, in their order. Boxed, since a problem is the error of most functions here and moves often.
    #[serde(flatten)]
    extra: Box<Map<String, Value>>,
}

impl Problem {
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), outcome: None, extra: Box::default() }
    }

    /// A failure of the node itself. The error goes to the log only.
    pub(crate) fn internal(error: impl Display) -> Self {
        tracing::error!(%error, "a request failed");
        Self::new(Kind::INTERNAL, "the node failed; its log says why")
    }

    /// States that the request wrote nothing, unless its outcome is stated already.
    pub(crate) fn not_written(self) -> Self {
        Self { outcome: Some(self.outcome.unwrap_or(WriteOutcome::NotWritten)), ..self }
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }

    /// The problem as JSON text. The trace id becomes the last member.
    pub(super) fn text(self, trace_id: &str) -> String {
        // Strings, numbers and JSON values can always be written.
        serde_json::to_string(&self.with("trace_id", trace_id)).unwrap_or_default()
    }

    /// The whole response.
    pub(crate) fn render(self, trace_id: &str) -> Response {
        let kind = self.kind;
        let text = self.text(trace_id);
        let mut response = (kind.status, [(header::CONTENT_TYPE, "application/problem+json")], text).into_response();
        if [Kind::BUSY, Kind::DISK_FULL, Kind::MEMBERSHIP_PENDING, Kind::STARTING].contains(&kind) {
            // In seconds.
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if kind == Kind::UNAUTHORIZED {
            // RFC 9110, section 11.6.1.
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

fn write_too_large(detail: String, bytes: usize) -> Problem {
    Problem::new(Kind::WRITE_TOO_LARGE, detail).with("bytes", bytes).with("bytes_max", COMMAND_BYTES_MAX)
}

/// The response carries the problem to `observe`, which knows the trace id and renders it.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.kind.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<write_path::Error> for Problem {
    fn from(error: write_path::Error) -> Self {
        let detail = error.to_string();
        match error {
            write_path::Error::PreconditionFailed { key, current } => {
                Self::new(Kind::PRECONDITION_FAILED, detail).with("key", key).with("current_revision", current)
            }
            write_path::Error::IdempotencyKeyReused => Self::new(Kind::IDEMPOTENCY_KEY_REUSED, detail),
            write_path::Error::Contended { .. } => Self::new(Kind::CONTENDED, detail),
            write_path::Error::Hook(error) => Self::from(error),
            write_path::Error::Replication(error) => Self::from(error),
            write_path::Error::Storage(error) => Self::from(error),
        }
        .not_written()
    }
}

impl From<replication::Error> for Problem {
    fn from(error: replication::Error) -> Self {
        let outcome = error.outcome();
        let detail = error.to_string();
        let problem = match error {
            replication::Error::NoQuorum { .. } => Self::new(Kind::REPLICATION_FAILED, detail),
            replication::Error::Lagging { .. } => Self::new(Kind::QUORUM_UNAVAILABLE, detail),
            replication::Error::NotAMember { .. } => Self::new(Kind::NOT_A_MEMBER, detail),
            replication::Error::MembershipRefused(_) => Self::new(Kind::MEMBERSHIP_REFUSED, detail),
            replication::Error::MembershipPending => Self::new(Kind::MEMBERSHIP_PENDING, detail),
            replication::Error::LeaderLost => Self::new(Kind::LEADER_LOST, detail),
            replication::Error::Busy { .. } => Self::new(Kind::BUSY, detail),
            replication::Error::TooLarge { bytes } => write_too_large(detail, bytes),
            replication::Error::DiskFull(disk_full) => Self::new(Kind::DISK_FULL, detail)
                .with("path", disk_full.path)
                .with("free_bytes", disk_full.free_bytes)
                .with("reserve_bytes", disk_full.reserve_bytes),
            replication::Error::Barred(_) => Self::new(Kind::NOT_TAKING_PART, detail),
            replication::Error::Stopped { .. } => Self::new(Kind::STOPPING, detail),
            replication::Error::Storage(error) => Self::from(error),
            error @ (replication::Error::Codec(_) | replication::Error::Refused(_) | replication::Error::Unusable) => {
                Self::internal(error)
            }
        };
        Self { outcome: Some(outcome), ..problem }
    }
}

impl From<storage::Error> for Problem {
    fn from(error: storage::Error) -> Self {
        tracing::error!(%error, "storage failed");
        Self::new(Kind::STORAGE_FAILED, "the node's storage failed; its log says why")
    }
}

impl From<hooks::Error> for Problem {
    fn from(error: hooks::Error) -> Self {
        use hooks::{Error, Failure};
        let detail = error.to_string();
        let about = |problem: Self, hook: String, plugin: String| problem.with("hook", hook).with("plugin", plugin);
        match error {
            Error::Rejected(rejection) => Self::new(Kind::REJECTED, detail)
                .with("plugin", rejection.plugin)
                .with("hook", rejection.hook)
                .with("code", rejection.code)
                .with("message", rejection.message)
                .with("violations", json!(rejection.violations)),
            Error::Failed { hook, plugin, failure } => match failure {
                Failure::TimedOut { .. } => about(Self::new(Kind::PLUGIN_TIMED_OUT, detail), hook, plugin),
                Failure::Trapped { .. } => about(Self::new(Kind::PLUGIN_TRAPPED, detail), hook, plugin),
                Failure::MemoryLimit { .. } => about(Self::new(Kind::PLUGIN_MEMORY_LIMIT, detail), hook, plugin),
                Failure::OutputLimit { .. } => about(Self::new(Kind::PLUGIN_OUTPUT_LIMIT, detail), hook, plugin),
                Failure::NotAComponent { .. } | Failure::WorldMismatch { .. } => Self::new(Kind::NOT_A_PLUGIN, detail),
                Failure::Shape { .. } | Failure::CompileLimit { .. } => Self::new(Kind::NOT_A_PLUGIN, detail),
                Failure::TooLarge { .. } => Self::new(Kind::TOO_LARGE, detail),
                Failure::ConfigRefused { path, .. } => Self::new(Kind::CONFIG_REFUSED, detail).with("path", path),
                Failure::Busy | Failure::CompileDeadline => Self::new(Kind::BUSY, detail),
                Failure::CompileCancelled => Self::new(Kind::STOPPING, detail),
                Failure::Compiler { .. } => Self::internal(detail),
            },
            Error::BadOutput { hook, plugin, .. } => about(Self::new(Kind::PLUGIN_BAD_OUTPUT, detail), hook, plugin),
            Error::Enlarged { hook, plugin, bytes } => about(write_too_large(detail, bytes), hook, plugin),
            Error::PluginMissing { .. } => Self::new(Kind::PLUGIN_MISSING, detail),
            Error::BindingInvalid { .. } => Self::new(Kind::BAD_HOOK, detail),
            Error::Busy { .. } => Self::new(Kind::BUSY, detail),
            Error::EpochWait { .. } => Self::new(Kind::HOOKS_NOT_READY, detail),
            error @ (Error::Store(_) | Error::Engine(_)) => Self::internal(error),
            Error::Interrupted { .. } => Self::new(Kind::STOPPING, detail),
        }
    }
}

impl From<registry::Error> for Problem {
    fn from(error: registry::Error) -> Self {
        let detail = error.to_string();
        match error {
            registry::Error::PluginInUse { hooks, .. } => Self::new(Kind::PLUGIN_IN_USE, detail).with("hooks", hooks),
            registry::Error::TooManyHooks => Self::new(Kind::TOO_MANY_HOOKS, detail),
            registry::Error::TooManyPlugins => Self::new(Kind::TOO_MANY_PLUGINS, detail),
            registry::Error::NoSuchState { .. } => Self::new(Kind::NO_SUCH_STATE, detail),
            registry::Error::Hook(error) => Self::from(error),
            registry::Error::TooManyUploads | registry::Error::TooManyPreparations => Self::new(Kind::BUSY, detail),
            registry::Error::Preliminary(error) => {
                Self { outcome: Some(WriteOutcome::NotWritten), ..Self::from(error) }
            }
            registry::Error::Write(error) => Self::from(error),
            registry::Error::Storage(error) => Self::from(error),
            registry::Error::Undecodable { .. } => Self::internal(error),
            registry::Error::Stopping => Self::new(Kind::STOPPING, detail),
        }
        .not_written()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_problem_is_documented() {
        let page = include_str!("../../../docs/problems.md");
        for kind in Kind::ALL {
            let slug = kind.r#type.strip_prefix("urn:brink:problem:").unwrap();
            let row = format!("| `{slug}` | {} |", kind.status.as_u16());
            assert!(page.contains(&row), "docs/problems.md lacks {row}");
        }
    }
}
