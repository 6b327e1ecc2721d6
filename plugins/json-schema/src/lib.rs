//! A validator that checks JSON values against a JSON Schema. `README.md` describes its configuration.

use brink_guest::{Invalid, Rejection, Validator, Violation, Write};
use jsonschema::{Draft, PatternOptions};
use serde::Deserialize;
use serde_json::Value;

/// Maximum number of violations in a rejection; the node keeps no more.
const VIOLATIONS_MAX: usize = 100;

/// The schema, and the draft of the standard that it follows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// A JSON Schema.
    pub schema: Value,
    /// The draft. The default is the schema's `$schema`, else 2020-12.
    pub draft: Option<DraftName>,
}

/// The drafts of JSON Schema.
#[derive(Debug, Clone, Copy, Deserialize)]
pub enum DraftName {
    /// <https://json-schema.org/draft-04>
    #[serde(rename = "draft-04")]
    Draft4,
    /// <https://json-schema.org/draft-06>
    #[serde(rename = "draft-06")]
    Draft6,
    /// <https://json-schema.org/draft-07>
    #[serde(rename = "draft-07")]
    Draft7,
    /// <https://json-schema.org/draft/2019-09>
    #[serde(rename = "2019-09")]
    Draft201909,
    /// <https://json-schema.org/draft/2020-12>
    #[serde(rename = "2020-12")]
    Draft202012,
}

impl From<DraftName> for Draft {
    fn from(name: DraftName) -> Self {
        match name {
            DraftName::Draft4 => Self::Draft4,
            DraftName::Draft6 => Self::Draft6,
            DraftName::Draft7 => Self::Draft7,
            DraftName::Draft201909 => Self::Draft201909,
            DraftName::Draft202012 => Self::Draft202012,
        }
    }
}

/// The plugin.
#[derive(Debug)]
pub struct JsonSchema {
    validator: jsonschema::Validator,
}

impl Validator for JsonSchema {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, Invalid> {
        // Patterns come from users: this engine matches in linear time.
        let mut options = jsonschema::options().offline().with_pattern_options(PatternOptions::regex());
        if let Some(draft) = config.draft {
            options = options.with_draft(draft.into());
        }
        let validator = options
            .build(&config.schema)
            .map_err(|error| Invalid::new(format!("/schema{}", error.instance_path()), error.to_string()))?;
        Ok(Self { validator })
    }

    fn validate(&self, writes: &[Write]) -> Result<(), Rejection> {
        let mut violations = Vec::new();
        for write in writes {
            let Some(value) = write.json::<Value>()? else { continue };
            // Most values match, and this check is cheaper than the search for violations.
            if self.validator.is_valid(&value) {
                continue;
            }
            let room = VIOLATIONS_MAX - violations.len();
            violations.extend(self.violations(write, &value).take(room));
        }
        if violations.is_empty() {
            return Ok(());
        }
        let message = "the value does not match the schema of its prefix";
        Err(violations.into_iter().fold(Rejection::new("schema", message), Rejection::with))
    }
}

impl JsonSchema {
    fn violations<'a>(&'a self, write: &'a Write, value: &'a Value) -> impl Iterator<Item = Violation> + 'a {
        self.validator.iter_errors(value).map(|error| {
            // Values may be secret, so the message does not quote them.
            let message = error.masked_with("the value").to_string();
            write.violation(error.instance_path().to_string(), error.kind().keyword(), message)
        })
    }
}

brink_guest::export_validator!(JsonSchema);

#[cfg(test)]
mod tests {
    use brink_guest::config;
    use serde_json::json;

    use super::*;

    fn plugin(config: &Value) -> Result<JsonSchema, Invalid> {
        JsonSchema::configure(config::parse(&config.to_string())?)
    }

    fn person() -> JsonSchema {
        plugin(&json!({"schema": {
            "type": "object",
            "required": ["name"],
            "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}, "age": {"type": "integer", "minimum": 0}},
            "additionalProperties": false,
        }}))
        .unwrap()
    }

    /// Item, path and keyword of each violation.
    fn violations(plugin: &JsonSchema, writes: &[Write]) -> Vec<(u32, String, String)> {
        let rejection = plugin.validate(writes).unwrap_err();
        assert_eq!(rejection.code, "schema");
        rejection.violations.into_iter().map(|v| (v.item, v.path, v.code)).collect()
    }

    #[test]
    fn a_value_that_matches_is_accepted() {
        assert_eq!(person().validate(&[Write::json_value(0, "k", &json!({"name": "Ann", "age": 7}))]), Ok(()));
        assert_eq!(person().validate(&[Write::deletion(0, "k")]), Ok(()));
    }

    #[test]
    fn every_violation_is_named_with_pointer_and_keyword() {
        let writes = [
            Write::json_value(0, "a", &json!({"name": "Ann"})),
            Write::json_value(1, "b", &json!({"name": "bob", "age": -1})),
            Write::json_value(2, "c", &json!({"age": 1.5})),
        ];
        let mut found = violations(&person(), &writes);
        found.sort();
        let expected = [(1, "/age", "minimum"), (1, "/name", "pattern"), (2, "", "required"), (2, "/age", "type")];
        let expected = expected.map(|(item, path, code)| (item, path.to_owned(), code.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_value_is_not_echoed() {
        let write = Write::json_value(0, "k", &json!({"name": "secret"}));
        let rejection = person().validate(&[write]).unwrap_err();
        assert!(!format!("{rejection:?}").contains("secret"), "{rejection:?}");
    }

    #[test]
    fn what_is_not_json_is_rejected() {
        let rejection = person().validate(&[Write::raw(0, "k", "text/plain", "x")]).unwrap_err();
        assert_eq!(rejection.code, "not-json");
    }

    #[test]
    fn violations_are_bounded() {
        let all = plugin(&json!({"schema": {"items": {"type": "string"}}})).unwrap();
        let writes = [Write::json_value(0, "k", &vec![1; 90]), Write::json_value(1, "l", &vec![1; 90])];
        assert_eq!(violations(&all, &writes).len(), 100);
    }

    #[test]
    fn the_draft_is_that_of_the_schema_unless_it_is_named() {
        // In draft-04 `exclusiveMinimum` is a boolean beside `minimum`; in later drafts it is the bound itself.
        let schema = json!({"minimum": 3, "exclusiveMinimum": true});
        let three = [Write::json_value(0, "k", &3)];
        let named = plugin(&json!({"schema": schema, "draft": "draft-04"})).unwrap();
        assert!(named.validate(&three).is_err());
        let mut own = schema.clone();
        own["$schema"] = json!("http://json-schema.org/draft-04/schema#");
        assert!(plugin(&json!({ "schema": own })).unwrap().validate(&three).is_err());
        assert_eq!(plugin(&json!({ "schema": schema })).unwrap_err().path, "/schema/exclusiveMinimum");
    }

    #[test]
    fn a_wrong_configuration_is_refused_where_it_is_wrong() {
        let refusal = |config: Value| plugin(&config).unwrap_err();
        assert_eq!(refusal(json!(null)).message, "missing field `schema`");
        assert_eq!(refusal(json!({"schema": {}, "draft": "draft-05"})).path, "/draft");
        assert_eq!(
            refusal(json!({"schema": {"properties": {"a": {"type": "text"}}}})).path,
            "/schema/properties/a/type"
        );
        assert!(refusal(json!({"schema": {"properties": {"a": {"pattern": "("}}}})).path.starts_with("/schema"));
        // Other documents cannot be fetched.
        assert!(refusal(json!({"schema": {"$ref": "https://example.com/a.json"}})).path.starts_with("/schema"));
    }
}
