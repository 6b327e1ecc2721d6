//! The options of `brink plugin run` and `bench` for the write that a plugin is tried with.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value as Json;

use super::super::failure::Failure;
use super::super::input::{self, read_file, text_or_file};
use super::cases;
use super::local::{self, Store, Target, Trial};
use crate::storage::command::Value;

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

impl WriteArgs {
    /// The write with its configuration and store.
    pub(super) fn trial(&self, target: &Target) -> Result<Trial, Failure> {
        let example = match &self.key {
            None => Some(cases::example(target)?),
            Some(_) => None,
        };
        let config = self.config.as_deref().map(input::config).transpose()?;
        match (example, &self.key) {
            (Some(example), _) if self.entry.is_empty() => {
                Ok(Trial { config: config.unwrap_or(example.config), ..example })
            }
            (_, None) => Err(Failure::Usage("--entry needs --key".to_owned())),
            (_, Some(key)) => {
                let write = local::write(key, self.value()?);
                let store = Arc::new(Store::new(self.entries()?));
                Ok(Trial { config: config.unwrap_or(Json::Null), write, store })
            }
        }
    }

    fn value(&self) -> Result<Option<Value>, Failure> {
        if let Some(given) = &self.json {
            return json_value("--json", given).map(Some);
        }
        if let Some(text) = &self.text {
            return Ok(Some(local::other_value(local::TEXT, text.clone())));
        }
        if let Some(file) = &self.bytes {
            return Ok(Some(local::other_value("application/octet-stream", read_file(file)?)));
        }
        match self.delete {
            true => Ok(None),
            false => Err(Failure::Usage("a write needs one of --json, --text, --bytes and --delete".to_owned())),
        }
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
    local::json_value(text_or_file(argument)?)
        .map_err(|error| Failure::Usage(format!("{flag}: {argument}: it is not JSON ({error})")))
}
