//! `brink plugin run`: a plugin's verdict on one write. `brink plugin bench` has the same options for its write.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value as Json;

use super::super::{Failure, io};
use super::local::{self, Store, Target, Trial};
use super::test;
use crate::storage::command::{Action, Operation, Value};
use crate::telemetry::SafeFields;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    write: WriteArgs,
}

/// The write. Without --key, it is the first accepted case of the project.
#[derive(Debug, clap::Args)]
pub(super) struct WriteArgs {
    /// The key
    #[arg(long)]
    key: Option<String>,
    /// The value, as JSON or as @FILE
    #[arg(long, value_name = "JSON", requires = "key", group = "value")]
    json: Option<String>,
    /// The value, as text
    #[arg(long, requires = "key", group = "value")]
    text: Option<String>,
    /// A file with the value, as bytes
    #[arg(long, value_name = "FILE", requires = "key", group = "value")]
    bytes: Option<PathBuf>,
    /// Delete the key
    #[arg(long, requires = "key", group = "value")]
    delete: bool,
    /// The plugin's configuration, as JSON or as @FILE
    #[arg(long, value_name = "JSON")]
    config: Option<String>,
    /// An entry of the store, for plugins that read other keys; may be repeated
    #[arg(long, value_name = "KEY=JSON")]
    entry: Vec<String>,
}

/// Runs the command, which fails if the plugin rejects the write.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    // Log lines of plugins go to standard error. This fails only if it was called before.
    let _ = tracing_subscriber::fmt()
        .with_env_filter("plugin=debug")
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .fmt_fields(SafeFields)
        .try_init();
    let trial = args.write.trial(&args.target)?;
    let local = args.target.load(Arc::new(()))?;
    let hook = local.bind(&trial.config)?;
    let judged = local::judge(&local::set(&hook), trial.write.clone(), &trial.store)?;
    match judged.operations.first() {
        Some(Operation { action: Action::Put(value), .. }) if judged.operations.first() != Some(&trial.write) => {
            io::line("accepted, with another value:")?;
            io::value(&value.bytes, value.is_json(), false)?;
            if value.is_json() { Ok(()) } else { io::line("") }
        }
        _ => io::line("accepted"),
    }
}

impl WriteArgs {
    pub(super) fn trial(&self, target: &Target) -> Result<Trial, Failure> {
        let config = || self.config.as_deref().map(io::config).transpose();
        let Some(key) = &self.key else {
            let example = test::example(target)?;
            let config = config()?.unwrap_or(example.config);
            return match self.entry.is_empty() {
                true => Ok(Trial { config, ..example }),
                false => Err(Failure::Usage("--entry needs --key".to_owned())),
            };
        };
        let config = config()?.unwrap_or(Json::Null);
        let write = local::write(key, self.value()?);
        Ok(Trial { config, write, store: Arc::new(Store::new(self.entries()?)) })
    }

    fn value(&self) -> Result<Option<Value>, Failure> {
        Ok(Some(match self {
            Self { json: Some(json), .. } => json_value("--json", json)?,
            Self { text: Some(text), .. } => local::other_value(local::TEXT, text.clone()),
            Self { bytes: Some(file), .. } => local::other_value("application/octet-stream", io::read_file(file)?),
            Self { delete: true, .. } => return Ok(None),
            _ => {
                let needed = "a write needs one of --json, --text, --bytes and --delete";
                return Err(Failure::Usage(needed.to_owned()));
            }
        }))
    }

    fn entries(&self) -> Result<Vec<(String, Value)>, Failure> {
        let entry = |given: &String| {
            let (key, json) = given
                .split_once('=')
                .ok_or_else(|| Failure::Usage(format!("--entry: {given}: it must be a key, `=` and JSON")))?;
            Ok((key.to_owned(), json_value("--entry", json)?))
        };
        self.entry.iter().map(entry).collect()
    }
}

/// A JSON value from a flag: JSON, or `@FILE` with JSON.
fn json_value(flag: &str, argument: &str) -> Result<Value, Failure> {
    local::json_value(io::text_or_file(argument)?)
        .map_err(|error| Failure::Usage(format!("{flag}: {argument}: it is not JSON ({error})")))
}
