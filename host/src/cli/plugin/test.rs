//! `brink plugin test`: runs the cases of a plugin and compares its verdicts with the expected ones.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};
use similar::{ChangeTag, TextDiff};

use super::super::failure::Failure;
use super::super::output;
use super::cases::{Case, Cases, Expect, FILE_NAME, Violation};
use super::local::{self, Local, Store, Target};
use crate::hooks::{self, Judged};
use crate::storage::command::Action;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    target: Target,
    /// The file of cases; the project's cases.toml if absent
    #[arg(long, value_name = "FILE")]
    cases: Option<PathBuf>,
}

/// Runs the command, which fails if one of the cases does.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let file = match (&args.cases, args.target.project()) {
        (Some(file), _) => file.clone(),
        (None, Some(project)) => project.join(FILE_NAME),
        (None, None) => {
            return Err(Failure::Usage("a component has no cases: give a file with --cases".to_owned()));
        }
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
            output::line(&format!("ok    {}", case.name))?;
        } else {
            failed += 1;
            output::line(&format!("FAIL  {}\n{}", case.name, diff(&expected, &found)))?;
        }
    }
    output::line(&format!("{} cases, {failed} failed", cases.list.len()))?;
    if failed == 0 { Ok(()) } else { Err(Failure::Cases { failed }) }
}

/// The plugin's verdict on a case, as JSON.
fn observe(case: &Case, config: &Json, local: &Local, store: &Arc<Store>) -> Result<Json, String> {
    let value = case.value()?;
    match local.bind(config) {
        Ok(hook) => Ok(match local::judge(&local::set(&hook), local::write(&case.key, value), store) {
            Ok(judged) => accepted(&judged),
            Err(error) => describe(&error),
        }),
        Err(Failure::Plugin(error)) => Ok(describe(&error)),
        Err(failure) => Err(failure.to_string()),
    }
}

/// The expected verdict as JSON. Fields that the case does not name are taken from `found`, so that they are not compared.
fn expected(case: &Case, found: &Json) -> Result<Json, String> {
    let mut expected = Map::new();
    expected.insert("verdict".to_owned(), json!(case.expect.word()));
    let becomes = case.becomes.as_deref().map(|text| match (&case.json, serde_json::from_str(text)) {
        (Some(_), Ok(value)) => Ok(value),
        (Some(_), Err(error)) => Err(format!("`becomes` is not JSON: {error}")),
        (None, _) => Ok(json!(text)),
    });
    let named = [
        ("value", becomes.transpose()?),
        ("code", case.code.as_ref().map(|code| json!(code))),
        ("message", case.message.as_ref().map(|message| json!(message))),
        ("path", case.path.as_ref().map(|path| json!(path))),
        ("violations", case.violations.as_ref().map(|list| violations(list, &found["violations"]))),
    ];
    for (field, named) in named {
        let is_same_verdict = found["verdict"] == case.expect.word();
        let unnamed = || is_same_verdict.then(|| found.get(field).cloned()).flatten();
        if let Some(value) = named.or_else(unnamed) {
            expected.insert(field.to_owned(), value);
        }
    }
    Ok(Json::Object(expected))
}

/// The expected violations. Fields that they do not name are taken from the ones found at their places.
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

    fn case(text: &str) -> Case {
        let cases: Cases = toml::from_str(text).unwrap();
        cases.list.into_iter().next().unwrap()
    }

    #[test]
    fn what_a_case_does_not_name_is_not_compared() {
        let found = json!({
            "verdict": "reject", "code": "required", "message": "fields are missing",
            "violations": [{"path": "/email", "code": "required", "message": "the field \"email\" is missing"}],
        });
        let loose =
            case("[[case]]\nname = 'n'\nkey = 'k'\njson = '{}'\nexpect = 'reject'\nviolations = [{ path = '/email' }]");
        assert_eq!(expected(&loose, &found).unwrap(), found);
    }

    #[test]
    fn what_a_case_names_is_compared() {
        let found = json!({"verdict": "accept", "value": {"a": 1}});
        for wrong in ["becomes = '{\"a\": 2}'", "violations = []", "code = 'c'"] {
            let case = case(&format!("[[case]]\nname = 'n'\nkey = 'k'\njson = '{{}}'\nexpect = 'accept'\n{wrong}"));
            assert_ne!(expected(&case, &found).unwrap(), found, "{wrong}");
        }
        let more = json!({"verdict": "reject", "violations": [{"path": "/a"}, {"path": "/b"}]});
        let fewer =
            case("[[case]]\nname = 'n'\nkey = 'k'\njson = '{}'\nexpect = 'reject'\nviolations = [{ path = '/a' }]");
        assert_ne!(expected(&fewer, &more).unwrap(), more);
    }

    #[test]
    fn a_difference_shows_both_sides() {
        let text = diff(&json!({"verdict": "accept"}), &json!({"verdict": "reject"}));
        assert!(text.contains("-   \"verdict\": \"accept\"") && text.contains("+   \"verdict\": \"reject\""), "{text}");
    }
}
