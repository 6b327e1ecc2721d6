//! A validator that bounds values and keys: size, nesting, elements and media type of a value, and the number of keys under
//! a prefix. `README.md` describes its configuration.

use std::collections::{BTreeMap, BTreeSet};

use brink_guest::fields::pointer;
use brink_guest::{Invalid, Rejection, Validator, Violation, Write, store};
use serde::Deserialize;
use serde_json::Value;

/// Maximum number of counts in a configuration.
const COUNTS_MAX: usize = 20;

/// The highest limit of a count: one answer of the store has at most 1,000 keys.
const COUNT_MAX: u32 = 999;

/// The limits. An absent limit bounds nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Maximum bytes of a value; JSON counts as compact text.
    pub bytes_max: Option<usize>,
    /// Maximum nesting of objects and arrays in a JSON value: 0 allows neither.
    pub depth_max: Option<usize>,
    /// Maximum elements of each array and members of each object in a JSON value.
    pub elements_max: Option<usize>,
    /// Maximum bytes of a key.
    pub key_bytes_max: Option<usize>,
    /// Allowed media types, without parameters.
    pub media_types: Option<Vec<String>>,
    /// Limits for the number of keys.
    pub counts: Vec<Count>,
}

/// A limit for the number of keys under a prefix.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// The prefix. `*` stands for one part between slashes; keys are counted for each value of it separately.
    pub under: String,
    /// Maximum number of keys, 0 to 999.
    pub max: u32,
}

/// The plugin.
#[derive(Debug)]
pub struct Limits(Config);

impl Validator for Limits {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, Invalid> {
        let Config { bytes_max, depth_max, elements_max, key_bytes_max, media_types, counts } = &config;
        let numbers = [bytes_max, depth_max, elements_max, key_bytes_max];
        if numbers.iter().all(|number| number.is_none()) && media_types.is_none() && counts.is_empty() {
            return Err(Invalid::new("", "name at least one limit"));
        }
        if counts.len() > COUNTS_MAX {
            return Err(Invalid::new("/counts", format!("at most {COUNTS_MAX} counts")));
        }
        for (index, count) in counts.iter().enumerate() {
            if count.max > COUNT_MAX {
                return Err(Invalid::new(format!("/counts/{index}/max"), format!("must be 0 to {COUNT_MAX}")));
            }
            if count.under.ends_with('*') {
                let message = "`*` stands for a part between slashes: one must follow, as in `users/*/`";
                return Err(Invalid::new(format!("/counts/{index}/under"), message));
            }
        }
        Ok(Self(config))
    }

    fn validate(&self, writes: &[Write]) -> Result<(), Rejection> {
        let mut violations = Vec::new();
        for write in writes.iter().filter(|write| !write.is_deletion()) {
            self.check_value(write, &mut violations)?;
        }
        for count in &self.0.counts {
            count.check(writes, &mut violations)?;
        }
        match violations.is_empty() {
            true => Ok(()),
            false => Err(Rejection { violations, ..Rejection::new("limit", "a limit of the prefix is exceeded") }),
        }
    }
}

impl Limits {
    fn check_value(&self, write: &Write, violations: &mut Vec<Violation>) -> Result<(), Rejection> {
        let Config { bytes_max, depth_max, elements_max, key_bytes_max, media_types, .. } = &self.0;
        let mut refuse = |path: String, code: &str, message: String| {
            violations.push(write.violation(path, code, message));
        };
        if let Some(max) = bytes_max.filter(|max| write.bytes().len() > *max) {
            refuse(String::new(), "bytes", format!("the value has {} bytes; allowed: {max}", write.bytes().len()));
        }
        if let Some(max) = key_bytes_max.filter(|max| write.key().len() > *max) {
            refuse(String::new(), "key-bytes", format!("the key has {} bytes; allowed: {max}", write.key().len()));
        }
        let media_type = write.content_type().split(';').next().unwrap_or_default().trim();
        if let Some(allowed) =
            media_types.as_ref().filter(|types| !types.iter().any(|t| t.eq_ignore_ascii_case(media_type)))
        {
            refuse(String::new(), "media-type", format!("allowed are {}", allowed.join(", ")));
        }
        if write.is_json() && (depth_max.is_some() || elements_max.is_some()) {
            let value = write.json::<Value>()?.unwrap_or_default();
            let bounds = (depth_max.unwrap_or(usize::MAX), elements_max.unwrap_or(usize::MAX));
            check_shape(&value, bounds, &mut Vec::new(), &mut refuse);
        }
        Ok(())
    }
}

/// Refuses arrays and objects that are nested too deep or have too many elements. Does not descend into refused ones.
fn check_shape(
    value: &Value,
    bounds @ (depth_max, elements_max): (usize, usize),
    path: &mut Vec<String>,
    refuse: &mut impl FnMut(String, &str, String),
) {
    let length = match value {
        Value::Array(elements) => elements.len(),
        Value::Object(members) => members.len(),
        _ => return,
    };
    if path.len() >= depth_max {
        return refuse(pointer(path), "depth", format!("objects and arrays may be nested {depth_max} deep"));
    }
    if length > elements_max {
        return refuse(pointer(path), "elements", format!("it has {length} elements; allowed: {elements_max}"));
    }
    let mut descend = |name: String, value: &Value| {
        path.push(name);
        check_shape(value, bounds, path, refuse);
        path.pop();
    };
    match value {
        Value::Array(elements) => {
            elements.iter().enumerate().for_each(|(index, value)| descend(index.to_string(), value));
        }
        Value::Object(members) => members.iter().for_each(|(name, value)| descend(name.clone(), value)),
        _ => {}
    }
}

/// The changes of a request to the keys under one prefix.
#[derive(Default)]
struct Changes<'a> {
    put: Vec<&'a Write>,
    deleted: BTreeSet<&'a str>,
}

impl Count {
    fn check(&self, writes: &[Write], violations: &mut Vec<Violation>) -> Result<(), Rejection> {
        let mut prefixes: BTreeMap<&str, Changes<'_>> = BTreeMap::new();
        for write in writes {
            let Some(prefix) = self.prefix_of(write.key()) else { continue };
            let changes = prefixes.entry(prefix).or_default();
            match write.is_deletion() {
                true => drop(changes.deleted.insert(write.key())),
                false => changes.put.push(write),
            }
        }
        for (prefix, Changes { put, deleted }) in prefixes.into_iter().filter(|(_, changes)| !changes.put.is_empty()) {
            // One more than allowed: a shorter list is complete.
            let there: BTreeSet<_> = store::list_prefix(prefix, self.max + 1)?.into_iter().collect();
            // If the limit has been lowered below the number of keys, existing keys can be written, new ones cannot.
            let is_over = there.len() > self.max as usize;
            let mut new = Vec::new();
            for write in put {
                let is_there = match is_over {
                    true => store::exists(write.key())?,
                    false => there.contains(write.key()),
                };
                if !is_there {
                    new.push(write);
                }
            }
            let gone = deleted.iter().filter(|key| there.contains(**key)).count();
            if is_over || there.len() + new.len() > self.max as usize + gone {
                let message = format!("there may be {} keys under {prefix:?}", self.max);
                violations.extend(new.iter().map(|write| write.violation("", "count", &message)));
            }
        }
        Ok(())
    }

    /// The prefix of a key that is counted, if this count is for it.
    fn prefix_of<'a>(&self, key: &'a str) -> Option<&'a str> {
        let mut parts: Vec<_> = self.under.split('/').collect();
        let last = parts.pop()?;
        let mut rest = key;
        for part in parts {
            let (of_key, after) = rest.split_once('/')?;
            if part != "*" && part != of_key {
                return None;
            }
            rest = after;
        }
        let rest = rest.strip_prefix(last)?;
        key.strip_suffix(rest)
    }
}

brink_guest::export_validator!(Limits);

#[cfg(test)]
mod tests {
    use brink_guest::{config, mock};
    use serde_json::json;

    use super::*;

    fn limits(config: &Value) -> Result<Limits, Invalid> {
        Limits::configure(config::parse(&config.to_string())?)
    }

    /// Item, path and code of each violation.
    fn validate(config: &Value, writes: &[Write]) -> Vec<(u32, String, String)> {
        let verdict = limits(config).unwrap().validate(writes);
        let violations = verdict.err().map(|rejection| rejection.violations).unwrap_or_default();
        violations.into_iter().map(|v| (v.item, v.path, v.code)).collect()
    }

    fn of_value(config: Value, value: Value) -> Vec<(String, String)> {
        let broken = validate(&config, &[Write::json_value(0, "k", &value)]);
        broken.into_iter().map(|(_, path, code)| (path, code)).collect()
    }

    fn broken<const N: usize>(violations: [(&str, &str); N]) -> Vec<(String, String)> {
        violations.map(|(path, code)| (path.to_owned(), code.to_owned())).to_vec()
    }

    #[test]
    fn bytes_of_values_and_keys_are_bounded() {
        assert_eq!(of_value(json!({"bytes_max": 5}), json!("abc")), []);
        assert_eq!(of_value(json!({"bytes_max": 5}), json!("abcd")), broken([("", "bytes")]));
        let keys = |key: &str| validate(&json!({"key_bytes_max": 2}), &[Write::raw(0, key, "text/plain", "")]);
        assert_eq!(keys("é"), []);
        assert_eq!(keys("éa"), [(0, String::new(), "key-bytes".to_owned())]);
        let nothing = json!({"bytes_max": 0, "depth_max": 0, "media_types": []});
        assert_eq!(validate(&nothing, &[Write::deletion(0, "k")]), []);
    }

    #[test]
    fn nesting_is_bounded_where_it_is_too_deep() {
        assert_eq!(of_value(json!({"depth_max": 0}), json!(1)), []);
        assert_eq!(of_value(json!({"depth_max": 0}), json!([])), broken([("", "depth")]));
        let value = json!({"a": [1, {"b": 1}], "c/": {"d": [[2]]}});
        assert_eq!(of_value(json!({"depth_max": 4}), value.clone()), []);
        assert_eq!(of_value(json!({"depth_max": 2}), value), broken([("/a/1", "depth"), ("/c~1/d", "depth")]));
    }

    #[test]
    fn elements_are_bounded_each() {
        let value = json!({"a": [1, 2, 3], "b": {"c": 1}});
        assert_eq!(of_value(json!({"elements_max": 3}), value.clone()), []);
        assert_eq!(of_value(json!({"elements_max": 2}), value), broken([("/a", "elements")]));
    }

    #[test]
    fn media_types_are_named() {
        let types = |content_type: &str| {
            let config = json!({"media_types": ["application/json", "text/plain"], "depth_max": 1});
            validate(&config, &[Write::raw(0, "k", content_type, "1")]).len()
        };
        assert_eq!(types("application/json"), 0);
        assert_eq!(types("Text/Plain; charset=utf-8"), 0);
        assert_eq!(types("image/png"), 1);
    }

    #[test]
    fn keys_are_counted_under_each_prefix() {
        let config = json!({"counts": [{"under": "users/*/", "max": 2}]});
        let store = mock::Store::new().json("users/a/1", &1).json("users/a/2", &1).json("users/b/1", &1);
        let _open = store.json("users/a0", &1).open();
        let put = |keys: &[&str]| {
            let writes: Vec<_> = (0..).zip(keys).map(|(item, key)| Write::json_value(item, *key, &1)).collect();
            validate(&config, &writes).into_iter().map(|(item, _, code)| (item, code)).collect::<Vec<_>>()
        };
        assert_eq!(put(&["users/a/1"]), []);
        assert_eq!(put(&["users/b/2", "users/c", "users/c/1", "other/1/2"]), []);
        assert_eq!(put(&["users/b/2", "users/a/3", "users/a/1"]), [(1, "count".to_owned())]);
        assert_eq!(put(&["users/b/2", "users/b/3"]).len(), 2);
        let swap = [Write::deletion(0, "users/a/1"), Write::json_value(1, "users/a/3", &1)];
        assert_eq!(validate(&config, &swap), []);
    }

    #[test]
    fn a_limit_that_was_lowered_lets_what_is_there_be_written() {
        let config = json!({"counts": [{"under": "a", "max": 1}]});
        let _open = mock::Store::new().json("a1", &1).json("a2", &1).json("a3", &1).open();
        assert_eq!(validate(&config, &[Write::json_value(0, "a3", &2)]), []);
        assert_eq!(validate(&config, &[Write::json_value(0, "a4", &2)]).len(), 1);
        let swap = [Write::deletion(0, "a1"), Write::deletion(1, "a2"), Write::json_value(2, "a4", &1)];
        assert_eq!(validate(&config, &swap).len(), 1);
    }

    #[test]
    fn a_wrong_configuration_is_refused_where_it_is_wrong() {
        let path = |config: Value| limits(&config).unwrap_err().path;
        assert_eq!(path(json!(null)), "");
        assert_eq!(path(json!({"bytes": 1})), "/bytes");
        assert_eq!(path(json!({"bytes_max": -1})), "/bytes_max");
        assert_eq!(path(json!({"counts": [{"under": "a/", "max": 1000}]})), "/counts/0/max");
        assert_eq!(path(json!({"counts": [{"under": "a/*", "max": 1}]})), "/counts/0/under");
        let count = json!({"under": "a", "max": 1});
        assert_eq!(path(json!({"counts": vec![count; 21]})), "/counts");
    }
}
