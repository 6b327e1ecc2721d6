//! A validator for references between keys: a field must name an existing key, and a key cannot be deleted while others
//! depend on it. `README.md` describes its configuration.
//!
//! Reads become preconditions of the write, so the rules hold under concurrent writes.

use std::collections::{BTreeMap, BTreeSet};

use brink_guest::fields::Fields;
use brink_guest::store::{self, ReadError};
use brink_guest::{Invalid, Rejection, Validator, Violation, Write};
use serde::Deserialize;
use serde_json::Value;

/// Maximum number of rules of each kind.
const RULES_MAX: usize = 100;

/// Maximum number of deletions in a request under `restrict_delete`: one answer of the store, 1,000 keys, must hold them
/// and one more.
const DELETIONS_MAX: usize = 999;

/// The placeholder for the value of a field, or for the deleted key.
const BLANK: &str = "{}";

/// The configuration of a hook.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Fields that name other keys.
    #[serde(default)]
    pub references: Vec<Reference>,
    /// Prefixes in which `{}` stands for the deleted key. The deletion is refused while keys start with one of them.
    #[serde(default)]
    pub restrict_delete: Vec<String>,
}

/// A field that names another key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// The field: a JSON pointer (RFC 6901) in which `*` stands for every element or member.
    pub at: String,
    /// The key that the field names; `{}` stands for the value of the field.
    #[serde(default = "blank")]
    pub key: String,
    /// Whether the field must be present.
    #[serde(default)]
    pub required: bool,
}

/// The plugin.
#[derive(Debug)]
pub struct Plugin {
    references: Vec<Reference>,
    /// The places of each reference, by its position in `references`.
    places: Fields<usize>,
    restrict_delete: Vec<String>,
}

impl Validator for Plugin {
    type Config = Config;

    fn configure(Config { references, restrict_delete }: Config) -> Result<Self, Invalid> {
        if references.is_empty() && restrict_delete.is_empty() {
            return Err(Invalid::new("", "name at least one rule in `references` or `restrict_delete`"));
        }
        for (path, count) in [("/references", references.len()), ("/restrict_delete", restrict_delete.len())] {
            if count > RULES_MAX {
                return Err(Invalid::new(path, format!("at most {RULES_MAX} rules")));
            }
        }
        let mut places = Fields::default();
        for (index, reference) in references.iter().enumerate() {
            let at = |field: &str| format!("/references/{index}/{field}");
            places.add(&reference.at, index).map_err(|malformed| Invalid::new(at("at"), malformed.to_string()))?;
            check_template(&reference.key).map_err(|why| Invalid::new(at("key"), why))?;
        }
        for (index, prefix) in restrict_delete.iter().enumerate() {
            check_template(prefix).map_err(|why| Invalid::new(format!("/restrict_delete/{index}"), why))?;
        }
        Ok(Self { references, places, restrict_delete })
    }

    fn validate(&self, writes: &[Write]) -> Result<(), Rejection> {
        let mut after = After::of(writes);
        let mut violations = Vec::new();
        for write in writes {
            match write.is_deletion() {
                true => self.check_deletion(write, &after, &mut violations)?,
                false if self.references.is_empty() => {}
                false => self.check_references(write, &mut after, &mut violations)?,
            }
        }
        match violations.is_empty() {
            true => Ok(()),
            false => Err(Rejection { violations, ..Rejection::new("reference", "a reference would be broken") }),
        }
    }
}

impl Plugin {
    fn check_references(
        &self,
        write: &Write,
        after: &mut After<'_>,
        violations: &mut Vec<Violation>,
    ) -> Result<(), Rejection> {
        let Some(value) = write.json::<Value>()? else { return Ok(()) };
        let found = self.places.find(&value);
        for (path, index, field) in &found {
            let Some(reference) = self.references.get(**index) else { continue };
            let name = match field {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                // An explicit absence.
                Value::Null if !reference.required => continue,
                _ => {
                    violations.push(write.violation(path, "type", "a reference must be a text or a number"));
                    continue;
                }
            };
            if !after.has(&reference.key.replace(BLANK, &name))? {
                let message = format!("there is no such entry `{}`", reference.key);
                violations.push(write.violation(path, "missing", message));
            }
        }
        for (index, reference) in self.references.iter().enumerate().filter(|(_, reference)| reference.required) {
            if !found.iter().any(|(_, found, _)| **found == index) {
                violations.push(write.violation(&reference.at, "required", "the reference must be there"));
            }
        }
        Ok(())
    }

    fn check_deletion(
        &self,
        write: &Write,
        after: &After<'_>,
        violations: &mut Vec<Violation>,
    ) -> Result<(), Rejection> {
        for template in &self.restrict_delete {
            if after.has_any_under(&template.replace(BLANK, write.key()))? {
                let message = format!("entries under `{template}` depend on it");
                violations.push(write.violation("", "in-use", message));
            }
        }
        Ok(())
    }
}

/// The keys that exist once the request is applied.
struct After<'a> {
    put: BTreeSet<&'a str>,
    deleted: BTreeSet<&'a str>,
    known: BTreeMap<String, bool>,
}

impl<'a> After<'a> {
    fn of(writes: &'a [Write]) -> Self {
        let (deleted, put): (Vec<_>, Vec<_>) = writes.iter().partition(|write| write.is_deletion());
        let keys = |writes: Vec<&'a Write>| writes.into_iter().map(Write::key).collect();
        Self { put: keys(put), deleted: keys(deleted), known: BTreeMap::new() }
    }

    fn has(&mut self, key: &str) -> Result<bool, ReadError> {
        if self.put.contains(key) || self.deleted.contains(key) {
            return Ok(self.put.contains(key));
        }
        if let Some(exists) = self.known.get(key) {
            return Ok(*exists);
        }
        let exists = store::exists(key)?;
        self.known.insert(key.to_owned(), exists);
        Ok(exists)
    }

    fn has_any_under(&self, prefix: &str) -> Result<bool, Rejection> {
        if self.put.iter().any(|key| key.starts_with(prefix)) {
            return Ok(true);
        }
        let deleted = self.deleted.len();
        if deleted > DELETIONS_MAX {
            let message = format!("a request may delete at most {DELETIONS_MAX} keys here");
            return Err(Rejection::new("too-many", message));
        }
        // One more than the request deletes: a list of that length has a key that stays.
        let keys = store::list_prefix(prefix, u32::try_from(deleted + 1).unwrap_or(1))?;
        Ok(keys.iter().any(|key| !self.deleted.contains(key.as_str())))
    }
}

fn blank() -> String {
    BLANK.to_owned()
}

fn check_template(template: &str) -> Result<(), &'static str> {
    match template.matches(BLANK).count() {
        1 => Ok(()),
        _ => Err("must have `{}` once, such as `users/{}`"),
    }
}

brink_guest::export_validator!(Plugin);

#[cfg(test)]
mod tests {
    use brink_guest::{config, mock};
    use serde_json::json;

    use super::*;

    fn plugin(config: &Value) -> Result<Plugin, Invalid> {
        Plugin::configure(config::parse(&config.to_string())?)
    }

    /// Item, path and code of each violation.
    fn validate(config: &Value, writes: &[Write]) -> Vec<(u32, String, String)> {
        let verdict = plugin(config).unwrap().validate(writes);
        let violations = verdict.err().map(|rejection| rejection.violations).unwrap_or_default();
        violations.into_iter().map(|v| (v.item, v.path, v.code)).collect()
    }

    fn orders() -> Value {
        json!({"references": [{"at": "/customer", "key": "customers/{}", "required": true}, {"at": "/items/*/of"}]})
    }

    fn broken(item: u32, path: &str, code: &str) -> Vec<(u32, String, String)> {
        vec![(item, path.to_owned(), code.to_owned())]
    }

    #[test]
    fn the_keys_that_fields_name_must_exist() {
        let _open = mock::Store::new().json("customers/7", &1).json("parts/a", &1).open();
        let order = |value: Value| validate(&orders(), &[Write::json_value(0, "o", &value)]);
        assert_eq!(order(json!({"customer": 7, "items": [{"of": "parts/a"}, {"of": null}, {}]})), []);
        assert_eq!(order(json!({"customer": "8"})), broken(0, "/customer", "missing"));
        assert_eq!(
            order(json!({"customer": 7, "items": [{}, {"of": "parts/b"}]})),
            broken(0, "/items/1/of", "missing")
        );
    }

    #[test]
    fn a_required_reference_must_be_there_and_every_reference_a_name() {
        let _open = mock::Store::new().json("customers/7", &1).open();
        let order = |value: Value| validate(&orders(), &[Write::json_value(0, "o", &value)]);
        assert_eq!(order(json!({})), broken(0, "/customer", "required"));
        assert_eq!(order(json!({"customer": null})), broken(0, "/customer", "type"));
        assert_eq!(order(json!({"customer": 7, "items": [{"of": []}]})), broken(0, "/items/0/of", "type"));
    }

    #[test]
    fn what_the_request_itself_does_counts() {
        let _open = mock::Store::new().json("customers/7", &1).open();
        let order = |customer: u8| Write::json_value(0, "o", &json!({"customer": customer}));
        assert_eq!(validate(&orders(), &[order(8), Write::json_value(1, "customers/8", &json!({"customer": 7}))]), []);
        let deleted = validate(&orders(), &[order(7), Write::deletion(1, "customers/7")]);
        assert_eq!(deleted, broken(0, "/customer", "missing"));
    }

    #[test]
    fn a_key_in_use_cannot_go() {
        let config = json!({"restrict_delete": ["{}/"]});
        let _open =
            mock::Store::new().json("a", &1).json("a/1", &1).json("a/2", &1).json("b", &1).json("bc", &1).open();
        let delete = |keys: &[&str]| {
            let writes: Vec<_> = (0..).zip(keys).map(|(item, key)| Write::deletion(item, *key)).collect();
            validate(&config, &writes)
        };
        assert_eq!(delete(&["b"]), []);
        assert_eq!(delete(&["a"]), broken(0, "", "in-use"));
        assert_eq!(delete(&["a/1", "a"]), broken(1, "", "in-use"));
        assert_eq!(delete(&["a", "a/1", "a/2"]), []);
        let put = [Write::deletion(0, "b"), Write::raw(1, "b/1", "text/plain", "x")];
        assert_eq!(validate(&config, &put), broken(0, "", "in-use"));
        let many: Vec<_> = (0..1_000).map(|item| Write::deletion(item, format!("c{item}"))).collect();
        assert_eq!(plugin(&config).unwrap().validate(&many).unwrap_err().code, "too-many");
    }

    #[test]
    fn a_key_is_asked_for_once() {
        let _open = mock::Store::new().json("customers/7", &1).open();
        let orders_of_one: Vec<_> =
            (0..2_000).map(|item| Write::json_value(item, format!("o{item}"), &json!({"customer": 7}))).collect();
        assert_eq!(validate(&orders(), &orders_of_one), []);
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let verdict = plugin(&orders()).unwrap().validate(&[Write::json_value(0, "o", &json!({"customer": 7}))]);
        assert_eq!(verdict.unwrap_err().code, "store-unavailable");
    }

    #[test]
    fn a_wrong_configuration_is_refused_where_it_is_wrong() {
        let path = |config: Value| plugin(&config).unwrap_err().path;
        assert_eq!(path(json!(null)), "");
        assert_eq!(path(json!({"references": [{}]})), "/references/0");
        assert_eq!(path(json!({"references": [{"at": "a"}]})), "/references/0/at");
        assert_eq!(path(json!({"references": [{"at": "/a", "key": "users/"}]})), "/references/0/key");
        assert_eq!(path(json!({"references": [{"at": "/a", "key": "{}{}"}]})), "/references/0/key");
        assert_eq!(path(json!({"restrict_delete": ["{}/", "x"]})), "/restrict_delete/1");
        assert_eq!(path(json!({"restrict_delete": vec!["{}/"; 101]})), "/restrict_delete");
    }
}
