//! Bindings: which plugin judges which writes, with what configuration and limits.

use std::collections::HashSet;
use std::fmt::Display;

use serde::{Deserialize, Serialize};

use super::error::Error;
use crate::sandbox::cut;
use crate::storage::command::{Action, Operation, Space};
use crate::{json, limits};

/// A hook as users write it: the body of `PUT /hooks/<name>/`, and its stored form.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// The plugin's name.
    pub plugin: String,
    /// The plugin's version, as its digest. Always present in the stored form; in a request, absent means the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The hook matches keys that start with it; empty for all keys.
    #[serde(default)]
    pub prefix: String,
    /// The kinds of operations that the hook matches, without repetition.
    #[serde(default = "default_operations")]
    pub operations: Vec<Judges>,
    /// Hooks run by ascending order, then by name; all transformers run before all validators.
    #[serde(default)]
    pub order: i32,
    /// The plugin's configuration; `null` if it has none.
    #[serde(default)]
    pub config: serde_json::Value,
    /// Whether the hook decides.
    #[serde(default)]
    pub mode: Mode,
    /// What a failure of the plugin (not a refusal) means for the write.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// How long a call may run, in milliseconds; `configure` may run as long again before it.
    #[serde(default = "default_deadline_ms")]
    pub deadline_ms: u64,
    /// Linear memory of an instance, in bytes.
    #[serde(default = "default_memory_bytes")]
    pub memory_bytes: usize,
    /// What a call may return or otherwise pass to the host, in bytes.
    #[serde(default = "default_output_bytes")]
    pub output_bytes: usize,
}

/// A kind of operation that a hook judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Judges {
    /// Writes of a value.
    Put,
    /// Deletions.
    Delete,
}

/// Whether a hook decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Its refusals refuse and its replacements replace.
    #[default]
    Enforce,
    /// Its verdicts are logged and counted, and change nothing.
    Monitor,
}

/// What a failure of the plugin means for the write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// The write is refused.
    #[default]
    Reject,
    /// The write goes on as if the hook were not there.
    Skip,
}

fn default_operations() -> Vec<Judges> {
    vec![Judges::Put]
}

fn default_deadline_ms() -> u64 {
    limits::PLUGIN_DEADLINE.as_millis() as u64
}

fn default_memory_bytes() -> usize {
    limits::PLUGIN_MEMORY_BYTES_MAX
}

fn default_output_bytes() -> usize {
    limits::PLUGIN_OUTPUT_BYTES_MAX
}

impl Binding {
    /// Reads a binding from JSON and checks it. The error names the field, what it holds and what is allowed.
    ///
    /// The stored form is read without this check, so that a binding from before a rule still loads.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let malformed = |error: &dyn Display| {
            let allowed = "an object with `plugin` and, if wanted, `digest`, `prefix`, `operations`, `order`, \
                           `config`, `mode`, `on_failure`, `deadline_ms`, `memory_bytes`, `output_bytes`";
            invalid("hook", format!("not a hook ({error})"), allowed)
        };
        let binding: Self = serde_json::from_slice(text).map_err(|error| malformed(&error))?;
        // serde_json keeps the last of two members of `config`.
        json::check(text, limits::JSON_LEVELS_MAX).map_err(|error| malformed(&error))?;
        binding.check()?;
        Ok(binding)
    }

    /// Checks every field that does not need the plugin.
    pub fn check(&self) -> Result<(), Error> {
        check_name("plugin", &self.plugin)?;
        if let Some(digest) = &self.digest
            && !(digest.len() == 64 && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
        {
            return Err(invalid("digest", format!("`{digest}`"), "64 lower-case hexadecimal digits"));
        }
        if self.prefix.len() > limits::KEY_BYTES_MAX {
            let found = format!("{} bytes long", self.prefix.len());
            return Err(invalid("prefix", found, format!("at most {} bytes", limits::KEY_BYTES_MAX)));
        }
        let distinct: HashSet<_> = self.operations.iter().collect();
        if self.operations.is_empty() || distinct.len() != self.operations.len() {
            let found = serde_json::to_string(&self.operations).unwrap_or_default();
            return Err(invalid("operations", found, "one or both of \"put\" and \"delete\", each once"));
        }
        let config_bytes = self.config_text().len();
        if config_bytes > limits::HOOK_CONFIG_BYTES_MAX {
            let allowed = format!("at most {} bytes", limits::HOOK_CONFIG_BYTES_MAX);
            return Err(invalid("config", format!("{config_bytes} bytes of JSON"), allowed));
        }
        let max_ms = limits::PLUGIN_DEADLINE_MAX.as_millis() as u64;
        let memory = limits::PLUGIN_MEMORY_BYTES_MIN as u64..=limits::PLUGIN_MEMORY_BYTES_MAX as u64;
        let output = limits::PLUGIN_OUTPUT_BYTES_MIN as u64..=limits::PLUGIN_OUTPUT_BYTES_MAX as u64;
        for (field, found, allowed) in [
            ("deadline_ms", self.deadline_ms, 1..=max_ms),
            ("memory_bytes", self.memory_bytes as u64, memory),
            ("output_bytes", self.output_bytes as u64, output),
        ] {
            if !allowed.contains(&found) {
                return Err(invalid(field, found.to_string(), format!("{} to {}", allowed.start(), allowed.end())));
            }
        }
        Ok(())
    }

    /// The plugin's version; empty in a request that names none.
    pub fn digest(&self) -> &str {
        self.digest.as_deref().unwrap_or_default()
    }

    /// Whether the hook judges an operation.
    pub fn matches(&self, operation: &Operation) -> bool {
        let judges = match operation.action {
            Action::Put(_) => Judges::Put,
            Action::Delete => Judges::Delete,
        };
        operation.space == Space::Kv && operation.key.starts_with(&self.prefix) && self.operations.contains(&judges)
    }

    pub(super) fn config_text(&self) -> String {
        self.config.to_string()
    }
}

/// Checks the name of a plugin or a hook; `field` is what the error calls it.
pub fn check_name(field: &'static str, name: &str) -> Result<(), Error> {
    let is_allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.');
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if starts_well && name.len() <= limits::NAME_BYTES_MAX && name.bytes().all(is_allowed) {
        return Ok(());
    }
    let allowed =
        format!("1 to {} of a-z, 0-9, `-`, `_` and `.`, the first a letter or a digit", limits::NAME_BYTES_MAX);
    Err(invalid(field, format!("`{}`", cut(name, limits::NAME_BYTES_MAX * 2)), allowed))
}

pub(super) fn invalid(field: &'static str, found: impl Into<String>, allowed: impl Into<String>) -> Error {
    Error::BindingInvalid { field, found: found.into(), allowed: allowed.into() }
}
