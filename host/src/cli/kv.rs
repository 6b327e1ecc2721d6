//! `brink kv`: keys.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use reqwest::Method;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::client::{Client, Failure, Request, key_path, query};
use super::output::{self, Format};
use super::{Common, export, import};
use crate::limits::PAGE_ENTRIES_MAX;

/// What can be done with keys.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the value of a key
    Get {
        /// The key
        key: String,
        /// How fresh the answer must be; strong if that can be had promptly, else local, unless said
        #[arg(long, value_name = "CONSISTENCY")]
        consistency: Option<Consistency>,
        #[command(flatten)]
        common: Common,
    },
    Put(PutArgs),
    /// Delete keys
    Del {
        /// The keys
        #[arg(required = true)]
        keys: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
    /// List entries in the order of their keys
    List {
        #[command(flatten)]
        range: Range,
        /// How many entries at most
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// Last key first
        #[arg(long)]
        reverse: bool,
        /// Only keys, without values
        #[arg(long)]
        keys_only: bool,
        #[command(flatten)]
        common: Common,
    },
    Import(import::Args),
    Export(export::Args),
}

/// Which keys.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Range {
    /// Keys that start with this
    #[arg(long)]
    prefix: Option<String>,
    /// The first key, inclusive
    #[arg(long)]
    start: Option<String>,
    /// The last key, inclusive
    #[arg(long)]
    end: Option<String>,
    /// How fresh the answer must be
    #[arg(long, value_name = "CONSISTENCY")]
    consistency: Option<Consistency>,
}

/// How fresh a read must be.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Consistency {
    /// Linearizable, or an error
    Strong,
    /// What the node has, at once
    Local,
}

impl Consistency {
    /// As the API writes it.
    pub(super) fn word(self) -> String {
        match self {
            Self::Strong => "strong".to_owned(),
            Self::Local => "local".to_owned(),
        }
    }
}

/// Set the value of a key
#[derive(Debug, clap::Args)]
pub(super) struct PutArgs {
    /// The key
    key: String,
    /// The value, as JSON; with --content-type, as it is
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    value: Option<String>,
    /// Read the value from a file, or from standard input if it is -
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Store the bytes as they are, with this content type
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Only if the entry has this revision
    #[arg(long, value_name = "REVISION", conflicts_with = "if_absent")]
    if_revision: Option<u64>,
    /// Only if there is no entry
    #[arg(long)]
    if_absent: bool,
    #[command(flatten)]
    common: Common,
}

/// Runs a command.
pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Get { key, consistency, common } => get(&key, consistency, &common).await,
        Command::Put(args) => put(args).await,
        Command::Del { keys, common } => delete(&keys, &common).await,
        Command::List { range, limit, reverse, keys_only, common } => {
            list(range, limit, reverse, keys_only, &common).await
        }
        Command::Import(args) => import::run(args).await,
        Command::Export(args) => export::run(args).await,
    }
}

async fn get(key: &str, consistency: Option<Consistency>, common: &Common) -> Result<(), Failure> {
    let query = query(&[("consistency", consistency.map(Consistency::word))]);
    let request = Request::new(Method::GET, format!("{}?{query}", key_path(key)));
    let client = Client::new(common)?;
    match common.output {
        Format::Json => output::line(&String::from_utf8_lossy(&client.send(&request).await?.body)),
        Format::Table => {
            let answer = client.send(&request.header("accept", "application/octet-stream")).await?;
            output::bytes(&answer.body)?;
            let is_json = answer.headers.get("content-type").is_some_and(|found| found == "application/json");
            if is_json { output::line("") } else { Ok(()) }
        }
    }
}

async fn put(args: PutArgs) -> Result<(), Failure> {
    let value = match (args.value, &args.file) {
        (Some(value), _) => value.into_bytes(),
        (None, Some(file)) => read_file(file)?,
        (None, None) => return Err(Failure::Usage("there is no value".to_owned())),
    };
    let mut request = Request::new(Method::PUT, key_path(&args.key));
    request = match args.content_type {
        Some(content_type) => request.body(&content_type, value),
        None => {
            // Sent as it was written: the node keeps every digit.
            let text = std::str::from_utf8(&value).ok().filter(|text| is_json(text)).ok_or_else(|| {
                let hint = "quote a text as '\"text\"', or store it as it is with --content-type text/plain";
                Failure::Usage(format!("the value is not JSON; {hint}"))
            })?;
            request.body("application/json", format!("{{\"value\":{text}}}"))
        }
    };
    if let Some(revision) = args.if_revision {
        request = request.header("if-match", format!("\"{revision}\""));
    }
    if args.if_absent {
        request = request.header("if-none-match", "*");
    }
    let answer = Client::new(&args.common)?.send(&request).await?;
    match args.common.output {
        Format::Json => output::line(&String::from_utf8_lossy(&answer.body)),
        Format::Table => {
            let entry = answer.json()?;
            let (version, revision) = (&entry["version"], &entry["revision"]);
            output::line(&format!("{} version {version}, revision {revision}", args.key))
        }
    }
}

async fn delete(keys: &[String], common: &Common) -> Result<(), Failure> {
    let client = Client::new(common)?;
    for key in keys {
        client.send(&Request::new(Method::DELETE, key_path(key))).await?;
        match common.output {
            Format::Json => output::line(&json!({"key": key, "deleted": true}).to_string())?,
            Format::Table => output::line(&format!("{key} deleted"))?,
        }
    }
    Ok(())
}

async fn list(
    range: Range,
    limit: Option<usize>,
    reverse: bool,
    keys_only: bool,
    common: &Common,
) -> Result<(), Failure> {
    let mut pages = Pages::new(Client::new(common)?, range, reverse, keys_only);
    let mut left = limit.unwrap_or(usize::MAX);
    let mut rows = Vec::new();
    while let Some(page) = pages.next(left).await? {
        left -= page.len();
        for entry in page {
            match common.output {
                Format::Json => output::line(entry.get())?,
                Format::Table => {
                    let entry: Value = serde_json::from_str(entry.get()).unwrap_or_default();
                    let fields = ["key", "version", "revision", "updated_at"];
                    let mut row: Vec<String> = fields.iter().map(|field| output::text(&entry[*field])).collect();
                    row.push(output::cell(&entry));
                    rows.push(row);
                }
            }
        }
    }
    match (common.output, keys_only) {
        (Format::Json, _) => Ok(()),
        (Format::Table, true) => output::table(&["KEY", "VERSION", "REVISION", "UPDATED"], &rows),
        (Format::Table, false) => output::table(&["KEY", "VERSION", "REVISION", "UPDATED", "VALUE"], &rows),
    }
}

/// A page as the node answers it. Entries stay text, so that no digit of a number is lost.
#[derive(Deserialize)]
struct Page {
    results: Vec<Box<RawValue>>,
    next_cursor: Option<String>,
}

/// The pages of a range, one after the other.
pub(super) struct Pages {
    client: Client,
    range: Range,
    reverse: bool,
    keys_only: bool,
    /// Where the next page begins; none once there is no more.
    cursor: Option<Option<String>>,
}

impl Pages {
    /// The pages of a range.
    pub(super) fn new(client: Client, range: Range, reverse: bool, keys_only: bool) -> Self {
        Self { client, range, reverse, keys_only, cursor: Some(None) }
    }

    /// The next page, of at most `limit` entries; none at the end.
    pub(super) async fn next(&mut self, limit: usize) -> Result<Option<Vec<Box<RawValue>>>, Failure> {
        let Some(cursor) = self.cursor.take() else { return Ok(None) };
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
            .map_err(|error| Failure::Strange { url: answer.url, reason: error.to_string() })?;
        self.cursor = page.next_cursor.map(Some);
        Ok(Some(page.results))
    }
}

/// Reads a file, or standard input if it is `-`.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    read.map_err(|source| Failure::File { path: path.to_owned(), source })
}

fn is_json(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}
