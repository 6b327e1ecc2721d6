//! `brink plugin test`: runs the cases of a plugin and compares its verdicts with the expected ones.
//!
//! Cases are a TOML file of writes with the verdicts that are expected:
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

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use similar::{ChangeTag, TextDiff};

use super::super::{Failure, io};
use super::local::{self, Local, Store, Target, Trial};
use crate::hooks::{self, Judged};
use crate::json;
use crate::limits::JSON_LEVELS_MAX;
use crate::storage::command::{Action, Value};

/// The file of cases in a project.
const FILE_NAME: &str = "cases.toml";

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    target: Target,
    /// The file of cases; the project's cases.toml if absent
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    /// The configuration for cases without their own, as JSON.
    config: Option<String>,
    #[serde(default)]
    entry: Vec<Given>,
    #[serde(rename = "case")]
    list: Vec<Case>,
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
struct Case {
    name: String,
    /// The hook's configuration, as JSON; that of the file if absent.
    config: Option<String>,
    #[serde(default)]
    key: String,
    json: Option<String>,
    text: Option<String>,
    #[serde(default)]
    delete: bool,
    expect: Expect,
    /// For `accept`: the value as a transformer leaves it.
    becomes: Option<String>,
    /// For `reject` and `fail`.
    code: Option<String>,
    message: Option<String>,
    /// For `refuse-config`: where the configuration is wrong.
    path: Option<String>,
    /// For `reject`.
    violations: Option<Vec<Violation>>,
}

#[derive(Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Expect {
    Accept,
    Reject,
    /// The plugin panics, or exceeds its time or memory.
    Fail,
    RefuseConfig,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Violation {
    path: Option<String>,
    code: Option<String>,
    message: Option<String>,
}

/// Runs the command, which fails if one of the cases does.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let file = match (&args.cases, args.target.project()) {
        (Some(file), _) => file.clone(),
        (None, Some(project)) => project.join(FILE_NAME),
        (None, None) => return Err(Failure::Usage("a component has no cases: give a file with --cases".to_owned())),
    };
    let cases = Cases::read(&file)?;
    let wrong = |reason: String| Failure::Usage(format!("{}: {reason}", file.display()));
    let local = args.target.load(Arc::new(()))?;
    let store = cases.store().map_err(wrong)?;

    let mut failed = 0;
    for case in &cases.list {
        let in_case = |reason: String| wrong(format!("case {:?}: {reason}", case.name));
        let config = cases.config(case).map_err(in_case)?;
        let found = observe(case, &config, &local, &store).map_err(in_case)?;
        let expected = expected(case, &found).map_err(in_case)?;
        if found == expected {
            io::line(&format!("ok    {}", case.name))?;
        } else {
            failed += 1;
            io::line(&format!("FAIL  {}\n{}", case.name, diff(&expected, &found)))?;
        }
    }
    io::line(&format!("{} cases, {failed} failed", cases.list.len()))?;
    if failed == 0 { Ok(()) } else { Err(Failure::Failed(format!("{failed} of its cases failed"))) }
}

/// The first accepted case of a project.
pub(super) fn example(target: &Target) -> Result<Trial, Failure> {
    let Some(project) = target.project() else {
        return Err(Failure::Usage("a component has no cases: give a write with --key and --json".to_owned()));
    };
    let file = project.join(FILE_NAME);
    let cases = Cases::read(&file)?;
    let wrong = |reason: String| Failure::Usage(format!("{}: {reason}", file.display()));
    let case = cases.list.iter().find(|case| case.expect == Expect::Accept);
    let case = case.ok_or_else(|| wrong("no case expects `accept`; give a write with --key and --json".to_owned()))?;
    let config = cases.config(case).map_err(wrong)?;
    let write = local::write(&case.key, case.value().map_err(wrong)?);
    Ok(Trial { config, write, store: cases.store().map_err(wrong)? })
}

impl Cases {
    fn read(file: &Path) -> Result<Self, Failure> {
        let text = fs::read_to_string(file).map_err(Failure::of_file(file))?;
        let cases: Self =
            toml::from_str(&text).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
        match cases.list.is_empty() {
            true => Err(Failure::Usage(format!("{}: it has no [[case]]", file.display()))),
            false => Ok(cases),
        }
    }

    /// The store of all cases.
    fn store(&self) -> Result<Arc<Store>, String> {
        let entry = |Given { key, json, text }: &Given| {
            let value = value(json.as_deref(), text.as_deref()).map_err(|reason| format!("{key}: {reason}"))?;
            Ok((key.clone(), value.ok_or_else(|| format!("entry {key:?} has neither `json` nor `text`"))?))
        };
        Ok(Arc::new(Store::new(self.entry.iter().map(entry).collect::<Result<Vec<_>, String>>()?)))
    }

    fn config(&self, case: &Case) -> Result<Json, String> {
        let config = case.config.as_deref().or(self.config.as_deref()).unwrap_or("null");
        let wrong = |error: &dyn Display| format!("`config` is not JSON: {error}");
        json::check(config.as_bytes(), JSON_LEVELS_MAX).map_err(|error| wrong(&error))?;
        serde_json::from_str(config).map_err(|error| wrong(&error))
    }
}

impl Case {
    /// The value that is written; `None` for a deletion.
    fn value(&self) -> Result<Option<Value>, String> {
        let value = value(self.json.as_deref(), self.text.as_deref())?;
        match (&value, self.delete) {
            (None, false) if self.expect != Expect::RefuseConfig => {
                Err("it needs one of `json`, `text` and `delete = true`".to_owned())
            }
            (Some(_), true) => Err("it has a value and `delete = true`".to_owned()),
            _ => Ok(value),
        }
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

/// The plugin's verdict on a case, as JSON.
fn observe(case: &Case, config: &Json, local: &Local, store: &Arc<Store>) -> Result<Json, String> {
    let value = case.value()?;
    let judged = match local.bind(config) {
        Ok(hook) => local::judge(&local::set(&hook), local::write(&case.key, value), store),
        Err(Failure::Plugin(error)) => Err(error),
        Err(failure) => return Err(failure.to_string()),
    };
    Ok(judged.map_or_else(|error| describe(&error), |judged| accepted(&judged)))
}

/// The expected verdict as JSON. Fields that the case does not name are taken from `found`, so that they are not compared.
fn expected(case: &Case, found: &Json) -> Result<Json, String> {
    let becomes = case.becomes.as_deref().map(|text| match (&case.json, serde_json::from_str(text)) {
        (Some(_), Ok(value)) => Ok(value),
        (Some(_), Err(error)) => Err(format!("`becomes` is not JSON: {error}")),
        (None, _) => Ok(json!(text)),
    });
    let verdict = json!(case.expect);
    let unnamed = if found["verdict"] == verdict { found } else { &Json::Null };
    let violation = |(index, expected): (usize, &Violation)| {
        let Violation { path, code, message } = expected;
        let named = [("path", text(path)), ("code", text(code)), ("message", text(message))];
        completed(named, &found["violations"][index])
    };
    let violations = case.violations.as_ref().map(|list| list.iter().enumerate().map(violation).collect());
    let named = [
        ("verdict", Some(verdict)),
        ("value", becomes.transpose()?),
        ("code", text(&case.code)),
        ("message", text(&case.message)),
        ("path", text(&case.path)),
        ("violations", violations),
    ];
    Ok(completed(named, unnamed))
}

fn text(text: &Option<String>) -> Option<Json> {
    text.clone().map(Json::String)
}

/// The object of these fields; those that are not named have the values that were found.
fn completed<const N: usize>(fields: [(&str, Option<Json>); N], found: &Json) -> Json {
    let fields = fields
        .into_iter()
        .filter_map(|(field, named)| Some((field.to_owned(), named.or_else(|| found.get(field).cloned())?)));
    Json::Object(fields.collect())
}

fn accepted(judged: &Judged) -> Json {
    let value = match judged.operations.first().map(|operation| &operation.action) {
        Some(Action::Put(value)) if value.is_json() => serde_json::from_slice(&value.bytes).unwrap_or(Json::Null),
        Some(Action::Put(value)) => json!(String::from_utf8_lossy(&value.bytes)),
        Some(Action::Delete) | None => return json!({"verdict": Expect::Accept}),
    };
    json!({"verdict": Expect::Accept, "value": value})
}

fn describe(error: &hooks::Error) -> Json {
    match error {
        hooks::Error::Rejected(rejection) => {
            let violations = rejection
                .violations
                .iter()
                .map(|violation| json!({"path": violation.path, "code": violation.code, "message": violation.message}));
            json!({
                "verdict": Expect::Reject, "code": rejection.code, "message": rejection.message,
                "violations": violations.collect::<Vec<_>>(),
            })
        }
        hooks::Error::Failed { failure: hooks::Failure::ConfigRefused { path, message }, .. } => {
            json!({"verdict": Expect::RefuseConfig, "path": path, "message": message})
        }
        error => json!({"verdict": Expect::Fail, "code": error.word(), "message": error.to_string()}),
    }
}

/// The differences line by line, with a legend.
fn diff(expected: &Json, found: &Json) -> String {
    let [expected, found] = [expected, found].map(|json| format!("{json:#}\n"));
    let diff = TextDiff::from_lines(&expected, &found);
    let lines = diff.iter_all_changes().map(|change| {
        let sign = match change.tag() {
            ChangeTag::Delete => '-',
            ChangeTag::Insert => '+',
            ChangeTag::Equal => ' ',
        };
        format!("      {sign} {}", change.value().trim_end())
    });
    let legend = ["      - expected".to_owned(), "      + found".to_owned()];
    legend.into_iter().chain(lines).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(expect: &str, named: &str) -> Case {
        let text = format!("[[case]]\nname = 'n'\nkey = 'k'\njson = '{{}}'\nexpect = '{expect}'\n{named}");
        toml::from_str::<Cases>(&text).unwrap().list.remove(0)
    }

    #[test]
    fn what_a_case_does_not_name_is_not_compared() {
        let found = json!({
            "verdict": "reject", "code": "required", "message": "fields are missing",
            "violations": [{"path": "/email", "code": "required", "message": "the field \"email\" is missing"}],
        });
        let loose = case("reject", "violations = [{ path = '/email' }]");
        assert_eq!(expected(&loose, &found).unwrap(), found);
    }

    #[test]
    fn what_a_case_names_is_compared() {
        let found = json!({"verdict": "accept", "value": {"a": 1}});
        for wrong in ["becomes = '{\"a\": 2}'", "violations = []", "code = 'c'"] {
            assert_ne!(expected(&case("accept", wrong), &found).unwrap(), found, "{wrong}");
        }
        let more = json!({"verdict": "reject", "violations": [{"path": "/a"}, {"path": "/b"}]});
        let fewer = case("reject", "violations = [{ path = '/a' }]");
        assert_ne!(expected(&fewer, &more).unwrap(), more);
    }

    #[test]
    fn a_difference_shows_both_sides() {
        let text = diff(&json!({"verdict": "accept"}), &json!({"verdict": "reject"}));
        assert!(text.contains("-   \"verdict\": \"accept\"") && text.contains("+   \"verdict\": \"reject\""), "{text}");
    }
    #[test]
    fn a_misspelled_field_is_named() {
        let error = toml::from_str::<Cases>("[[case]]\nname = 'n'\nkey = 'k'\nexpects = 'accept'").unwrap_err();
        assert!(error.to_string().contains("expects"), "{error}");
    }
}
