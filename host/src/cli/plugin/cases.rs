//! Test cases of a plugin: a TOML file of writes with the verdicts that are expected.
//!
//! ```toml
//! config = '{"required": ["email"]}'      # the hook's configuration, as JSON; a case may have its own
//!
//! [[entry]]                               # entries in the store, for plugins that read other keys
//! key = "users/ann"
//! json = '{"email": "ann@example.org"}'
//!
//! [[case]]
//! name = "a user without an email is refused"
//! key = "users/ben"
//! json = '{"name": "Ben"}'                # or: text = "…", or: delete = true
//! expect = "reject"                       # accept, reject, fail or refuse-config
//! code = "required"
//! violations = [{ path = "/email" }]      # fields that are absent are not compared
//! ```

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value as Json;

use super::super::failure::Failure;
use super::local::{self, Store, Target, Trial};
use crate::storage::command::Value;

/// The file of cases in a project.
pub(super) const FILE_NAME: &str = "cases.toml";

/// A file of cases.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cases {
    /// The configuration for cases without their own, as JSON.
    config: Option<String>,
    #[serde(default)]
    entry: Vec<Given>,
    #[serde(rename = "case")]
    pub(super) list: Vec<Case>,
}

/// An entry of the store.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    key: String,
    json: Option<String>,
    text: Option<String>,
}

/// A write, and the verdict that is expected.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    pub(super) name: String,
    /// The hook's configuration, as JSON; that of the file if absent.
    config: Option<String>,
    #[serde(default)]
    pub(super) key: String,
    pub(super) json: Option<String>,
    text: Option<String>,
    #[serde(default)]
    delete: bool,
    pub(super) expect: Expect,
    /// For `accept`: the value as a transformer leaves it.
    pub(super) becomes: Option<String>,
    /// For `reject` and `fail`.
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
    /// For `refuse-config`: where the configuration is wrong.
    pub(super) path: Option<String>,
    /// For `reject`.
    pub(super) violations: Option<Vec<Violation>>,
}

/// Expected verdicts.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Expect {
    /// The plugin accepts the write.
    Accept,
    /// The plugin rejects the write.
    Reject,
    /// The plugin fails: it panics, or exceeds its time or memory.
    Fail,
    /// The plugin refuses its configuration.
    RefuseConfig,
}

impl Expect {
    /// The name in the file.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Reject => "reject",
            Self::Fail => "fail",
            Self::RefuseConfig => "refuse-config",
        }
    }
}

/// An expected violation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Violation {
    pub(super) path: Option<String>,
    pub(super) code: Option<String>,
    pub(super) message: Option<String>,
}

impl Cases {
    /// Reads a file of cases.
    pub(super) fn read(file: &Path) -> Result<Self, Failure> {
        let text = fs::read_to_string(file).map_err(|source| Failure::File { path: file.to_owned(), source })?;
        let cases: Self =
            toml::from_str(&text).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
        match cases.list.is_empty() {
            true => Err(Failure::Usage(format!("{}: it has no [[case]]", file.display()))),
            false => Ok(cases),
        }
    }

    /// The store of all cases.
    pub(super) fn store(&self) -> Result<Arc<Store>, String> {
        let entries = self.entry.iter().map(|given| Ok((given.key.clone(), given.value()?)));
        Ok(Arc::new(Store::new(entries.collect::<Result<Vec<_>, String>>()?)))
    }

    /// The configuration of a case.
    pub(super) fn config(&self, case: &Case) -> Result<Json, String> {
        let config = case.config.as_deref().or(self.config.as_deref()).unwrap_or("null");
        serde_json::from_str(config).map_err(|error| format!("`config` is not JSON: {error}"))
    }
}

impl Case {
    /// The value that is written; `None` for a deletion.
    pub(super) fn value(&self) -> Result<Option<Value>, String> {
        let value = value(self.json.as_deref(), self.text.as_deref())?;
        match (&value, self.delete) {
            (None, false) if !matches!(self.expect, Expect::RefuseConfig) => {
                Err("it needs one of `json`, `text` and `delete = true`".to_owned())
            }
            (Some(_), true) => Err("it has a value and `delete = true`".to_owned()),
            _ => Ok(value),
        }
    }
}

impl Given {
    fn value(&self) -> Result<Value, String> {
        let value =
            value(self.json.as_deref(), self.text.as_deref()).map_err(|reason| format!("{}: {reason}", self.key))?;
        value.ok_or_else(|| format!("entry {:?} has neither `json` nor `text`", self.key))
    }
}

fn value(json: Option<&str>, text: Option<&str>) -> Result<Option<Value>, String> {
    match (json, text) {
        (Some(json), None) => {
            local::json_value(json.to_owned()).map(Some).map_err(|error| format!("`json` is not JSON: {error}"))
        }
        (None, Some(text)) => Ok(Some(local::other_value(local::TEXT, text.to_owned()))),
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err("it has both `json` and `text`".to_owned()),
    }
}

/// The first accepted case of a project.
pub(super) fn example(target: &Target) -> Result<Trial, Failure> {
    let Some(project) = target.project() else {
        return Err(Failure::Usage("a component has no cases: give a write with --key and --json".to_owned()));
    };
    let file = project.join(FILE_NAME);
    let cases = Cases::read(&file)?;
    let wrong = |reason: String| Failure::Usage(format!("{}: {reason}", file.display()));
    let case = cases.list.iter().find(|case| matches!(case.expect, Expect::Accept));
    let case = case.ok_or_else(|| wrong("no case expects `accept`; give a write with --key and --json".to_owned()))?;
    let config = cases.config(case).map_err(wrong)?;
    let write = local::write(&case.key, case.value().map_err(wrong)?);
    Ok(Trial { config, write, store: cases.store().map_err(wrong)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_field_is_named() {
        let error = toml::from_str::<Cases>("[[case]]\nname = 'n'\nkey = 'k'\nexpects = 'accept'").unwrap_err();
        assert!(error.to_string().contains("expects"), "{error}");
    }
}
