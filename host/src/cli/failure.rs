//! Why a command failed, and the exit code that goes with it.
//!
//! A message may have several lines; what nodes and plugins say in it has one each.

use std::error::Error;
use std::path::{Path, PathBuf};

use reqwest::StatusCode;
use serde_json::Value;

use crate::hooks;
use crate::text::safe;

#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// A flag or an argument is wrong.
    #[error("{0}")]
    Usage(String),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    /// No connection could be made: the request was not sent. `url` is the last node that was tried.
    #[error("{} could not be reached: {}", safe(url), safe(reason))]
    Unreachable { url: String, reason: String },
    /// The request was sent, and no valid answer came.
    #[error("no valid answer from {}: {}", safe(url), safe(reason))]
    BadAnswer { url: String, reason: String },
    /// A node answered with an error.
    #[error("{}", .0.describe())]
    Refused(Refusal),
    /// A record of an import was refused, after `imported` others were written.
    #[error("{place}: {}\n  {imported} records were imported", refusal.describe())]
    Record { place: String, refusal: Refusal, imported: usize },
    /// A plugin on this machine cannot be loaded, fails, or rejects the write.
    #[error("{}", describe_plugin_error(.0))]
    Plugin(#[from] hooks::Error),
    /// A build tool is missing or failed, or cases of `brink plugin test` failed.
    #[error("{0}")]
    Failed(String),
    #[error("the output cannot be written: {0}")]
    Output(#[from] std::io::Error),
}

impl Failure {
    pub(super) fn of_file(path: &Path) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::File { path: path.to_owned(), source }
    }

    /// The exit code; [`super`] has the table.
    pub(super) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::File { .. } => 2,
            Self::Unreachable { .. } | Self::BadAnswer { .. } | Self::Output(_) => 1,
            Self::Failed(_) | Self::Plugin(hooks::Error::Engine(_)) => 1,
            // The component may be fine.
            Self::Plugin(hooks::Error::Failed { failure, .. }) if failure.may_pass() => 1,
            Self::Plugin(_) => 4,
            Self::Refused(refusal) | Self::Record { refusal, .. } => match refusal.status {
                StatusCode::NOT_FOUND => 3,
                status if status.is_client_error() => 4,
                // A failed plugin is a 500, but it refuses the write as a rejection does.
                _ if refusal.slug().starts_with("plugin-") => 4,
                _ => 1,
            },
        }
    }
}

#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// The problem object (RFC 9457); null if the body was none.
    pub(super) problem: Value,
}

impl Refusal {
    pub(super) fn parse(status: StatusCode, body: &[u8]) -> Self {
        Self { status, problem: serde_json::from_slice(body).unwrap_or(Value::Null) }
    }

    /// The problem in a line of a stream's answer, which states its status.
    pub(super) fn of_line(line: &[u8]) -> Self {
        let problem: Value = serde_json::from_slice(line).unwrap_or(Value::Null);
        let status =
            problem["status"].as_u64().and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok());
        Self { status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), problem }
    }

    /// The last part of the problem's type, such as `rejected`.
    pub(super) fn slug(&self) -> &str {
        self.problem["type"].as_str().and_then(|kind| kind.rsplit(':').next()).unwrap_or_default()
    }

    /// The violations in a plugin's rejection.
    pub(super) fn violations(&self) -> impl Iterator<Item = &Value> {
        self.problem["violations"].as_array().into_iter().flatten()
    }

    /// Whether repeating the request is safe and may succeed.
    pub(super) fn is_retryable(&self) -> bool {
        self.status.is_server_error() && self.problem["outcome"] == "not_written" && !self.slug().starts_with("plugin-")
    }

    fn describe(&self) -> String {
        let detail = self.problem["detail"].as_str().map_or_else(|| self.status.to_string(), str::to_owned);
        let first = match self.slug() {
            "" => detail,
            slug => format!("{detail} ({slug}, {})", self.status.as_u16()),
        };
        let first = safe(&first);
        let violations = self.violations().map(|violation| {
            (violation["path"].as_str().unwrap_or_default(), violation["message"].as_str().unwrap_or_default())
        });
        let mut lines = with_violations(&first, violations);
        if self.problem["outcome"] == "unknown" {
            lines.push_str("\n  the outcome is unknown: the write may have happened, or may yet appear");
        }
        lines
    }
}

fn describe_plugin_error(error: &hooks::Error) -> String {
    let violations = match error {
        hooks::Error::Rejected(rejection) => rejection.violations.as_slice(),
        _ => &[],
    };
    let violations = violations.iter().map(|violation| (violation.path.as_str(), violation.message.as_str()));
    with_violations(&safe(&error.to_string()), violations)
}

/// A first line, and one for the path and message of each violation.
fn with_violations<'a>(first: &str, violations: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    violations.fold(first.to_owned(), |lines, (path, message)| {
        let path = if path.is_empty() { "the value" } else { path };
        format!("{lines}\n  {}: {}", safe(path), safe(message))
    })
}

/// The text of the last error in a chain of causes, which says most.
pub(super) fn root_cause(error: &(dyn Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| (*error).source()).last().map_or_else(String::new, ToString::to_string)
}
