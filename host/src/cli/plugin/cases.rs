//! `brink plugin test`: cases in a file, each a write and what the plugin is to say to it.
//!
//! ```toml
//! config = '{"required": ["email"]}'      # the hook's configuration, as JSON; a case may have its own
//!
//! [[entry]]                               # what the store holds, for plugins that read other keys
//! key = "users/ann"
//! json = '{"email": "ann@example.org"}'
//!
//! [[case]]
//! name = "a user without an email is refused"
//! key = "users/ben"
//! json = '{"name": "Ben"}'                # or: text = "…", or: delete = true
//! expect = "reject"                       # accept, reject, fail or refuse-config
//! code = "required"
//! violations = [{ path = "/email" }]      # what is left out here is not compared
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use similar::{ChangeTag, TextDiff};

use super::super::client::Failure;
use super::super::output;
use super::local::{self, Local, Store, Target};
use super::trial::Trial;
use crate::hooks::{self, Hook, Judged, Unobserved};
use crate::storage::command::{Action, Value};

/// The file of cases in a project.
const CASES: &str = "cases.toml";

/// What is tested, and by which cases.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    target: Target,
    /// The cases; the project's cases.toml if absent
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    config: Option<String>,
    #[serde(default)]
    entry: Vec<Given>,
    case: Vec<Case>,
}

/// A key with its value.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    key: String,
    json: Option<String>,
    text: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    config: Option<String>,
    #[serde(default)]
    key: String,
    json: Option<String>,
    text: Option<String>,
    #[serde(default)]
    delete: bool,
    expect: Expect,
    /// Of an acceptance: the value that is written, where a transformer changes it.
    becomes: Option<String>,
    /// Of a refusal or a failure.
    code: Option<String>,
    message: Option<String>,
    /// Of a refused configuration: where it is wrong.
    path: Option<String>,
    violations: Option<Vec<Violation>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Expect {
    /// The write passes.
    Accept,
    /// The plugin refuses it.
    Reject,
    /// The plugin fails: it panics, takes too long, needs too much memory.
    Fail,
    /// The plugin refuses its configuration.
    RefuseConfig,
}

impl Expect {
    fn word(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Reject => "reject",
            Self::Fail => "fail",
            Self::RefuseConfig => "refuse-config",
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Violation {
    path: Option<String>,
    code: Option<String>,
    message: Option<String>,
}

/// Runs the cases. Fails if one of them does.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let file = match (&args.cases, args.target.project()) {
        (Some(file), _) => file.clone(),
        (None, Some(project)) => project.join(CASES),
        (None, None) => {
            return Err(Failure::Usage("a component has no cases of its own: name a file with --cases".to_owned()));
        }
    };
    let cases = read(&file)?;
    let wrong = |what: String| Failure::Usage(format!("{}: {what}", file.display()));
    let local = args.target.load(Arc::new(Unobserved))?;
    let store = cases.store().map_err(wrong)?;

    let mut failed = 0;
    for case in &cases.case {
        let named = |what: String| wrong(format!("case {:?}: {what}", case.name));
        let found = case.observe(&local, cases.config.as_deref(), &store).map_err(named)?;
        let expected = case.expected(&found).map_err(named)?;
        if found == expected {
            output::line(&format!("ok    {}", case.name))?;
        } else {
            failed += 1;
            output::line(&format!("FAIL  {}\n{}", case.name, diff(&expected, &found)))?;
        }
    }
    output::line(&format!("{} cases, {failed} failed", cases.case.len()))?;
    if failed == 0 { Ok(()) } else { Err(Failure::Cases { failed }) }
}

/// The first case of a project that passes: what it is asked if nothing else is said.
pub(super) fn example(target: &Target) -> Result<Trial, Failure> {
    let Some(project) = target.project() else {
        return Err(Failure::Usage(
            "which write? Name one with --key and --json (a project has cases of its own)".to_owned(),
        ));
    };
    let file = project.join(CASES);
    let cases = read(&file)?;
    let wrong = |what: String| Failure::Usage(format!("{}: {what}", file.display()));
    let case = cases.case.iter().find(|case| matches!(case.expect, Expect::Accept));
    let case = case.ok_or_else(|| wrong("no case is accepted; name a write with --key and --json".to_owned()))?;
    let config = case.config(cases.config.as_deref()).map_err(wrong)?;
    let value = value(case.json.as_deref(), case.text.as_deref()).map_err(wrong)?;
    Ok(Trial { config, write: local::write(&case.key, value), store: cases.store().map_err(wrong)? })
}

impl Cases {
    fn store(&self) -> Result<Arc<Store>, String> {
        let entries = self.entry.iter().map(|given| Ok((given.key.clone(), given.value()?)));
        Ok(Arc::new(Store::new(entries.collect::<Result<Vec<_>, String>>()?)))
    }
}

fn read(file: &Path) -> Result<Cases, Failure> {
    let text = fs::read_to_string(file).map_err(|source| Failure::File { path: file.to_owned(), source })?;
    let cases: Cases = toml::from_str(&text).map_err(|error| Failure::Usage(format!("{}: {error}", file.display())))?;
    match cases.case.is_empty() {
        true => Err(Failure::Usage(format!("{}: it has no [[case]]", file.display()))),
        false => Ok(cases),
    }
}

impl Given {
    fn value(&self) -> Result<Value, String> {
        let value =
            value(self.json.as_deref(), self.text.as_deref()).map_err(|what| format!("{}: {what}", self.key))?;
        value.ok_or_else(|| format!("entry {:?} has neither `json` nor `text`", self.key))
    }
}

fn value(json: Option<&str>, text: Option<&str>) -> Result<Option<Value>, String> {
    match (json, text) {
        (Some(json), None) => local::json_value(json).map(Some).map_err(|error| format!("`json` is not JSON: {error}")),
        (None, Some(text)) => Ok(Some(local::other_value(local::TEXT, text.to_owned()))),
        (None, None) => Ok(None),
        (Some(_), Some(_)) => Err("it has both `json` and `text`".to_owned()),
    }
}

impl Case {
    /// What the plugin says, as JSON.
    fn observe(&self, local: &Local, common: Option<&str>, store: &Arc<Store>) -> Result<Json, String> {
        let value = value(self.json.as_deref(), self.text.as_deref())?;
        match (&value, self.delete) {
            (None, false) if !matches!(self.expect, Expect::RefuseConfig) => {
                return Err("it needs one of `json`, `text` and `delete = true`".to_owned());
            }
            (Some(_), true) => return Err("it deletes and has a value".to_owned()),
            _ => {}
        }
        match local.bind(&self.config(common)?) {
            Ok(hook) => Ok(self.judge(&hook, value, store)),
            Err(Failure::Plugin(error)) => Ok(describe(&error)),
            Err(failure) => Err(failure.to_string()),
        }
    }

    fn config(&self, common: Option<&str>) -> Result<Json, String> {
        let config = self.config.as_deref().or(common).unwrap_or("null");
        serde_json::from_str(config).map_err(|error| format!("`config` is not JSON: {error}"))
    }

    fn judge(&self, hook: &Hook, value: Option<Value>, store: &Arc<Store>) -> Json {
        match local::judge(hook, local::write(&self.key, value), store) {
            Ok(judged) => accepted(&judged),
            Err(error) => describe(&error),
        }
    }

    /// What the plugin is to say: what the case names, and for the rest what was `found`, which is thus not compared.
    fn expected(&self, found: &Json) -> Result<Json, String> {
        let mut expected = Map::new();
        expected.insert("verdict".to_owned(), json!(self.expect.word()));
        let becomes = self.becomes.as_deref().map(|text| match (&self.json, serde_json::from_str(text)) {
            (Some(_), Ok(value)) => Ok(value),
            (Some(_), Err(error)) => Err(format!("`becomes` is not JSON: {error}")),
            (None, _) => Ok(json!(text)),
        });
        let named = [
            ("value", becomes.transpose()?),
            ("code", self.code.as_ref().map(|code| json!(code))),
            ("message", self.message.as_ref().map(|message| json!(message))),
            ("path", self.path.as_ref().map(|path| json!(path))),
            ("violations", self.violations.as_ref().map(|list| violations(list, &found["violations"]))),
        ];
        for (field, named) in named {
            let is_same_verdict = found["verdict"] == self.expect.word();
            let unnamed = || is_same_verdict.then(|| found.get(field).cloned()).flatten();
            if let Some(value) = named.or_else(unnamed) {
                expected.insert(field.to_owned(), value);
            }
        }
        Ok(Json::Object(expected))
    }
}

/// Expected violations, completed by what was found in their places.
fn violations(expected: &[Violation], found: &Json) -> Json {
    let complete = |(index, violation): (usize, &Violation)| {
        let fields = [("path", &violation.path), ("code", &violation.code), ("message", &violation.message)];
        let fields = fields.into_iter().filter_map(|(field, named)| {
            let value = named.as_ref().map(|text| json!(text)).or_else(|| found[index].get(field).cloned());
            Some((field.to_owned(), value?))
        });
        Json::Object(fields.collect())
    };
    Json::Array(expected.iter().enumerate().map(complete).collect())
}

fn accepted(judged: &Judged) -> Json {
    let value = match judged.operations.first().map(|operation| &operation.action) {
        Some(Action::Put(value)) if value.is_json() => serde_json::from_slice(&value.bytes).unwrap_or(Json::Null),
        Some(Action::Put(value)) => json!(String::from_utf8_lossy(&value.bytes)),
        Some(Action::Delete) | None => return json!({"verdict": Expect::Accept.word()}),
    };
    json!({"verdict": Expect::Accept.word(), "value": value})
}

fn describe(error: &hooks::Error) -> Json {
    match error {
        hooks::Error::Rejected(rejection) => {
            let violations = rejection
                .violations
                .iter()
                .map(|violation| json!({"path": violation.path, "code": violation.code, "message": violation.message}));
            json!({
                "verdict": Expect::Reject.word(), "code": rejection.code, "message": rejection.message,
                "violations": violations.collect::<Vec<_>>(),
            })
        }
        hooks::Error::Failed { failure: hooks::Failure::ConfigRefused { path, message }, .. } => {
            json!({"verdict": Expect::RefuseConfig.word(), "path": path, "message": message})
        }
        error => json!({"verdict": Expect::Fail.word(), "code": error.word(), "message": error.to_string()}),
    }
}

/// The two, line by line: what is missing, and what is there instead.
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

    fn case(text: &str) -> Case {
        let cases: Cases = toml::from_str(text).unwrap();
        cases.case.into_iter().next().unwrap()
    }

    #[test]
    fn what_a_case_does_not_name_is_not_compared() {
        let found = json!({
            "verdict": "reject", "code": "required", "message": "fields are missing",
            "violations": [{"path": "/email", "code": "required", "message": "the field \"email\" is missing"}],
        });
        let loose =
            case("[[case]]\nname = 'n'\nkey = 'k'\njson = '{}'\nexpect = 'reject'\nviolations = [{ path = '/email' }]");
        assert_eq!(loose.expected(&found).unwrap(), found);
    }

    #[test]
    fn what_a_case_names_is_compared() {
        let found = json!({"verdict": "accept", "value": {"a": 1}});
        for wrong in ["becomes = '{\"a\": 2}'", "violations = []", "code = 'c'"] {
            let case = case(&format!("[[case]]\nname = 'n'\nkey = 'k'\njson = '{{}}'\nexpect = 'accept'\n{wrong}"));
            assert_ne!(case.expected(&found).unwrap(), found, "{wrong}");
        }
        let more = json!({"verdict": "reject", "violations": [{"path": "/a"}, {"path": "/b"}]});
        let fewer =
            case("[[case]]\nname = 'n'\nkey = 'k'\njson = '{}'\nexpect = 'reject'\nviolations = [{ path = '/a' }]");
        assert_ne!(fewer.expected(&more).unwrap(), more);
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
