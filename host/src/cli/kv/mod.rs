//! `brink kv`: reads and writes keys.
//!
//! - `range`: the pages of a key range.
//! - `import`, `export`: many entries from and to files.

mod export;
mod import;
mod range;

use std::path::PathBuf;

use reqwest::Method;
use serde_json::value::RawValue;
use serde_json::{Value, json};

pub(super) use self::range::Consistency;
use self::range::{Pages, Range};
use super::client::{Client, Common};
use super::failure::Failure;
use super::input::read_file;
use super::output::{self, Format};
use super::request::{Request, key_path, query};

/// The commands.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the value of a key
    Get {
        /// The key
        key: String,
        /// Consistency of the read; by default strong if the node can do it promptly, else local
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
    /// List entries in key order
    List {
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
    },
    Import(import::Args),
    Export(export::Args),
}

/// Set the value of a key
#[derive(Debug, clap::Args)]
pub(super) struct PutArgs {
    /// The key
    key: String,
    /// The value: JSON, or any text with --content-type
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    value: Option<String>,
    /// Read the value from a file; - is standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Store the value's bytes unchanged under this content type
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Write only if the entry has this revision
    #[arg(long, value_name = "REVISION", conflicts_with = "if_absent")]
    if_revision: Option<u64>,
    /// Write only if the key does not exist
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
            // Sent unchanged, so that no digit of a number is lost.
            let text = std::str::from_utf8(&value).ok().filter(|text| is_json(text)).ok_or_else(|| {
                let hint = "quote text as '\"text\"', or store it unchanged with --content-type text/plain";
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
    while let Some(page) = pages.next_page(left).await? {
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

fn is_json(text: &str) -> bool {
    serde_json::from_str::<&RawValue>(text).is_ok()
}
