//! Why a command failed, and the exit code that goes with it.

use std::path::PathBuf;
use std::process::ExitCode;

use reqwest::StatusCode;
use serde_json::Value;

use crate::hooks;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// A flag or an argument is wrong.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// No connection could be made: the request was not sent.
    #[error("{url} could not be reached: {reason}")]
    Unreachable {
        /// The last node that was tried.
        url: String,
        /// Why the connection failed.
        reason: String,
    },
    /// The request was sent, and no valid answer came.
    #[error("no valid answer from {url}: {reason}")]
    BadAnswer {
        /// The node.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// A node answered with an error.
    #[error("{}", .0.describe())]
    Refused(Refusal),
    /// A record of an import was refused.
    #[error("{place}: {refusal}")]
    Record {
        /// The record.
        place: String,
        /// Why it was refused.
        refusal: String,
        /// The exit code.
        code: u8,
    },
    /// A plugin on this machine cannot be loaded, fails, or rejects the write.
    #[error("{}", describe_plugin_error(.0))]
    Plugin(#[from] hooks::Error),
    /// Cases of `brink plugin test` failed.
    #[error("{failed} of its cases failed")]
    Cases {
        /// The number of failed cases.
        failed: usize,
    },
    /// A build tool is missing or failed.
    #[error("`{command}` failed: {reason}")]
    Tool {
        /// The tool with its arguments.
        command: String,
        /// How it ended.
        reason: String,
    },
    /// Standard output cannot be written.
    #[error("the output cannot be written: {0}")]
    Output(#[from] std::io::Error),
}

impl Failure {
    /// The exit code; [`super`] has the table.
    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    /// The exit code as a number.
    pub(super) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::File { .. } => 2,
            Self::Unreachable { .. } | Self::BadAnswer { .. } | Self::Output(_) => 1,
            Self::Tool { .. } | Self::Cases { .. } | Self::Plugin(hooks::Error::Engine(_)) => 1,
            Self::Plugin(_) => 4,
            Self::Refused(refusal) if refusal.status == StatusCode::NOT_FOUND => 3,
            Self::Refused(refusal) if refusal.status.is_client_error() => 4,
            // A failed plugin is a 500, but it refuses the write as a rejection does.
            Self::Refused(refusal) if refusal.slug().starts_with("plugin-") => 4,
            Self::Refused(_) => 1,
            Self::Record { code, .. } => *code,
        }
    }
}

/// A node's answer that is an error.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// The problem object (RFC 9457); null if the body was none.
    pub(super) problem: Value,
}

impl Refusal {
    /// The refusal in an answer's status and body.
    pub(super) fn parse(status: StatusCode, body: &[u8]) -> Self {
        Self { status, problem: serde_json::from_slice(body).unwrap_or(Value::Null) }
    }

    /// The last part of the problem's type, such as `rejected`.
    pub(super) fn slug(&self) -> &str {
        self.problem["type"].as_str().and_then(|kind| kind.rsplit(':').next()).unwrap_or_default()
    }

    /// One line for the problem, and one for each violation.
    fn describe(&self) -> String {
        let detail = self.problem["detail"].as_str().map_or_else(|| self.status.to_string(), str::to_owned);
        let mut text = match self.slug() {
            "" => detail,
            slug => format!("{detail} ({slug}, {})", self.status.as_u16()),
        };
        for violation in self.violations() {
            let [path, message] = ["path", "message"].map(|field| violation[field].as_str().unwrap_or_default());
            text.push('\n');
            text.push_str(&violation_line(path, message));
        }
        if self.problem["outcome"] == "unknown" {
            text.push_str("\n  the outcome is unknown: the write may have happened, or may yet appear");
        }
        text
    }

    /// The violations in a plugin's rejection.
    pub(super) fn violations(&self) -> impl Iterator<Item = &Value> {
        self.problem["violations"].as_array().into_iter().flatten()
    }

    /// Whether repeating the request is safe and may succeed.
    pub(super) fn is_retryable(&self) -> bool {
        self.status.is_server_error() && self.problem["outcome"] == "not_written" && !self.slug().starts_with("plugin-")
    }
}

/// One line for a plugin's error, and one for each violation.
fn describe_plugin_error(error: &hooks::Error) -> String {
    let violations = match error {
        hooks::Error::Rejected(rejection) => rejection.violations.as_slice(),
        _ => &[],
    };
    let lines = violations.iter().map(|violation| violation_line(&violation.path, &violation.message));
    std::iter::once(error.to_string()).chain(lines).collect::<Vec<_>>().join("\n")
}

fn violation_line(path: &str, message: &str) -> String {
    format!("  {}: {message}", if path.is_empty() { "the value" } else { path })
}

/// The text of the last error in a chain of causes, which says most.
pub(super) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
