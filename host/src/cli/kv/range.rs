//! Ranges of keys, read page by page.

use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::client::Client;
use super::super::failure::Failure;
use super::super::request::{Request, query};
use crate::limits::PAGE_ENTRIES_MAX;

/// A range of keys, and how it is read.
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct Range {
    /// Only keys with this prefix
    #[arg(long)]
    prefix: Option<String>,
    /// The first key, inclusive
    #[arg(long)]
    start: Option<String>,
    /// The last key, inclusive
    #[arg(long)]
    end: Option<String>,
    /// Consistency of the reads
    #[arg(long, value_name = "CONSISTENCY")]
    consistency: Option<Consistency>,
}

/// Consistency of a read.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(in crate::cli) enum Consistency {
    /// Linearizable, or an error
    Strong,
    /// What the node has applied, without asking others
    Local,
}

impl Consistency {
    /// The value of the API's parameter `consistency`.
    pub(in crate::cli) fn word(self) -> String {
        match self {
            Self::Strong => "strong".to_owned(),
            Self::Local => "local".to_owned(),
        }
    }
}

/// A page in a node's answer. Entries stay text, so that no digit of a number is lost.
#[derive(Deserialize)]
struct Page {
    results: Vec<Box<RawValue>>,
    next_cursor: Option<String>,
}

/// Reads the pages of a range one after the other.
pub(super) struct Pages {
    client: Client,
    range: Range,
    reverse: bool,
    keys_only: bool,
    next: Next,
}

/// The next page of a range.
enum Next {
    First,
    /// The page after this cursor.
    After(String),
    None,
}

impl Pages {
    /// Reads nothing yet.
    pub(super) fn new(client: Client, range: Range, reverse: bool, keys_only: bool) -> Self {
        Self { client, range, reverse, keys_only, next: Next::First }
    }

    /// Reads the next page of at most `limit` entries; `None` after the last.
    pub(super) async fn next_page(&mut self, limit: usize) -> Result<Option<Vec<Box<RawValue>>>, Failure> {
        let cursor = match std::mem::replace(&mut self.next, Next::None) {
            Next::First => None,
            Next::After(cursor) => Some(cursor),
            Next::None => return Ok(None),
        };
        if limit == 0 {
            return Ok(None);
        }
        let limit = limit.min(PAGE_ENTRIES_MAX);
        let query = query(&[
            ("prefix", self.range.prefix.clone()),
            ("start", self.range.start.clone()),
            ("end", self.range.end.clone()),
            ("consistency", self.range.consistency.map(Consistency::word)),
            ("limit", Some(limit.to_string())),
            ("reverse", self.reverse.then(|| "true".to_owned())),
            ("keys_only", self.keys_only.then(|| "true".to_owned())),
            ("cursor", cursor),
        ]);
        let answer = self.client.send(&Request::new(Method::GET, format!("/kv/?{query}"))).await?;
        let page: Page = serde_json::from_slice(&answer.body)
            .map_err(|error| Failure::BadAnswer { url: answer.url, reason: error.to_string() })?;
        self.next = page.next_cursor.map_or(Next::None, Next::After);
        Ok(Some(page.results))
    }
}
