//! Ranges of keys: `brink kv list`, and `brink kv export`, which writes lines of JSON that `brink kv import` reads.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::super::{Client, Common, Failure, Format, Request, io, query};
use crate::limits::PAGE_ENTRIES_MAX;

/// Entries of a page of an export.
const EXPORT_PAGE_ENTRIES: usize = 1_000;

/// A range of keys, and how it is read.
#[derive(Debug, clap::Args)]
struct Range {
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
#[derive(Debug, Clone, Copy, clap::ValueEnum, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub(in crate::cli) enum Consistency {
    /// Linearizable, or an error
    Strong,
    /// What the node has applied, without asking others
    Local,
}

/// List entries in key order
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ListArgs {
    #[command(flatten)]
    range: Range,
    /// Maximum number of entries
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Descending key order
    #[arg(long)]
    reverse: bool,
    /// Keys without their values
    #[arg(long)]
    keys_only: bool,
    #[command(flatten)]
    common: Common,
}

/// Write entries as lines of JSON: {"key", "value"}, or {"key", "value_base64", "content_type"}
///
/// Each page of 1,000 entries is consistent; writes between two pages may show.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct ExportArgs {
    /// The output file; standard output if absent or -
    file: Option<PathBuf>,
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    common: Common,
}

pub(super) async fn list(args: ListArgs) -> Result<(), Failure> {
    let client = Client::new(&args.common)?;
    let flags = [("reverse", args.reverse), ("keys_only", args.keys_only)];
    let mut rows = Vec::new();
    let show = |page: Entries| {
        for entry in page {
            if args.common.output == Format::Json {
                io::json(entry.get())?;
                continue;
            }
            let entry: Value = serde_json::from_str(entry.get()).unwrap_or_default();
            let [key, version, revision, updated] = io::texts(&entry, ["key", "version", "revision", "updated_at"]);
            let value = if args.keys_only { String::new() } else { io::cell(&entry) };
            rows.push([key, version, revision, updated, value]);
        }
        Ok(())
    };
    args.range.read(&client, args.limit.unwrap_or(usize::MAX), PAGE_ENTRIES_MAX, &flags, show).await?;
    let value = if args.keys_only { "" } else { "VALUE" };
    match args.common.output {
        Format::Json => Ok(()),
        Format::Table => io::table(["KEY", "VERSION", "REVISION", "UPDATED", value], rows),
    }
}

pub(super) async fn export(args: ExportArgs) -> Result<(), Failure> {
    let client = Client::new(&args.common)?;
    let file = args.file.filter(|file| file.as_os_str() != "-");
    let is_file = file.is_some();
    let mut out = io::JsonLines::create(file)?;
    let bar = io::progress(0, "entries");
    let mut count = 0;
    let write = |page: Entries| {
        for entry in &page {
            let line: Line<'_> = serde_json::from_str(entry.get())
                .map_err(|error| Failure::Failed(format!("an entry is not as it should be: {error}")))?;
            out.write(&line)?;
        }
        count += page.len();
        bar.set_message(format!("{count} entries"));
        bar.tick();
        Ok(())
    };
    args.range.read(&client, usize::MAX, EXPORT_PAGE_ENTRIES, &[], write).await?;
    out.finish()?;
    bar.finish_and_clear();
    if is_file {
        io::line(&format!("{count} entries exported"))?;
    }
    Ok(())
}

/// A line of the export: the fields of an entry that a batch item has.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    key: &'a RawValue,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    value: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    value_base64: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a RawValue>,
}

/// The entries of a page. They stay text, so that no digit of a number is lost.
type Entries = Vec<Box<RawValue>>;

#[derive(Deserialize)]
struct Page {
    results: Entries,
    next_cursor: Option<String>,
}

impl Range {
    /// Reads at most `limit` entries, page by page, and passes on each page.
    async fn read(
        &self,
        client: &Client,
        limit: usize,
        page_entries: usize,
        flags: &[(&'static str, bool)],
        mut pass_on: impl FnMut(Entries) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let (mut left, mut cursor) = (limit, None);
        while left > 0 {
            let mut parameters = vec![
                ("prefix", self.prefix.clone()),
                ("start", self.start.clone()),
                ("end", self.end.clone()),
                ("consistency", self.consistency.map(|consistency| consistency.to_string())),
                ("limit", Some(left.min(page_entries).to_string())),
                ("cursor", cursor),
            ];
            parameters.extend(flags.iter().map(|(flag, is_set)| (*flag, is_set.then(|| "true".to_owned()))));
            let answer = client.send(&Request::get(format!("/kv/?{}", query(&parameters)))).await?;
            let page: Page = serde_json::from_slice(&answer.body)
                .map_err(|error| Failure::BadAnswer { url: answer.url, reason: error.to_string() })?;
            left = left.saturating_sub(page.results.len());
            pass_on(page.results)?;
            cursor = page.next_cursor;
            if cursor.is_none() {
                break;
            }
        }
        Ok(())
    }
}
