//! `brink kv`: reads and writes keys.

mod import;
mod range;

use std::path::PathBuf;

use serde_json::json;
use serde_json::value::RawValue;

pub(super) use self::range::Consistency;
use super::{Client, Common, Failure, Format, Method, Request, io, key_path, query};
use crate::text;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the value of a key
    Get {
        /// The key
        key: String,
        /// Print the value unchanged on a terminal too, which obeys what is in it; elsewhere it always is
        #[arg(long)]
        raw: bool,
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
    List(range::ListArgs),
    Import(import::Args),
    Export(range::ExportArgs),
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

pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Get { key, raw, consistency, common } => get(&key, raw, consistency, &common).await,
        Command::Put(args) => put(args).await,
        Command::Del { keys, common } => delete(&keys, &common).await,
        Command::List(args) => range::list(args).await,
        Command::Import(args) => import::run(args).await,
        Command::Export(args) => range::export(args).await,
    }
}

async fn get(key: &str, is_raw: bool, consistency: Option<Consistency>, common: &Common) -> Result<(), Failure> {
    let query = query(&[("consistency", consistency.map(|consistency| consistency.to_string()))]);
    let request = Request::get(format!("{}?{query}", key_path(key)));
    let client = Client::new(common)?;
    match common.output {
        Format::Json => io::value(&client.send(&request).await?.body, true, is_raw),
        Format::Table => {
            let answer = client.send(&request.header("accept", "application/octet-stream")).await?;
            let is_json = answer.headers.get("content-type").is_some_and(|found| found == "application/json");
            io::value(&answer.body, is_json, is_raw)
        }
    }
}

async fn put(args: PutArgs) -> Result<(), Failure> {
    let value = match (args.value, &args.file) {
        (Some(value), _) => value.into_bytes(),
        (None, Some(file)) => io::read_file(file)?,
        (None, None) => return Err(Failure::Usage("there is no value".to_owned())),
    };
    let mut request = Request::new(Method::PUT, key_path(&args.key));
    request = match args.content_type {
        Some(content_type) => request.body(&content_type, value),
        None => {
            // Sent unchanged, so that no digit of a number is lost.
            let text: &RawValue = serde_json::from_slice(&value).map_err(|_| {
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
        Format::Json => io::value(&answer.body, true, false),
        Format::Table => {
            let entry = answer.json()?;
            let (version, revision) = (&entry["version"], &entry["revision"]);
            io::line(&format!("{} version {version}, revision {revision}", text::safe(&args.key)))
        }
    }
}

async fn delete(keys: &[String], common: &Common) -> Result<(), Failure> {
    let client = Client::new(common)?;
    for key in keys {
        client.send(&Request::new(Method::DELETE, key_path(key))).await?;
        match common.output {
            Format::Json => io::json(&json!({"key": key, "deleted": true}).to_string())?,
            Format::Table => io::line(&format!("{} deleted", text::safe(key)))?,
        }
    }
    Ok(())
}
