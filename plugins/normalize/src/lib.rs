//! A transformer that normalizes fields of JSON values: it trims strings, makes them lower-case, and drops fields.
//! `README.md` describes its configuration.
//!
//! The rest of a value stays byte for byte: the order of fields, numbers of any precision, and escapes. JSON that it cannot
//! read is refused: the rules hold for every value that is stored.

use brink_guest::fields::{Edit, Fields};
use brink_guest::{Invalid, Rejection, Replacement, Transformer, Write};
use serde::Deserialize;

/// The fields to change, as JSON pointers (RFC 6901) in which `*` stands for every element or member, and `**` at the end
/// for everything below.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Strings to trim at both ends.
    pub trim: Vec<String>,
    /// Strings to make lower-case.
    pub lowercase: Vec<String>,
    /// Fields and elements to remove.
    pub drop: Vec<String>,
}

/// The plugin.
#[derive(Debug)]
pub struct Normalize {
    actions: Fields<Action>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Trim,
    Lowercase,
    Drop,
}

impl Transformer for Normalize {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, Invalid> {
        let mut actions = Fields::default();
        for (list, pointers, action) in [
            ("trim", &config.trim, Action::Trim),
            ("lowercase", &config.lowercase, Action::Lowercase),
            ("drop", &config.drop, Action::Drop),
        ] {
            for (index, pointer) in pointers.iter().enumerate() {
                let refuse = |why: &dyn ToString| Invalid::new(format!("/{list}/{index}"), why.to_string());
                if action == Action::Drop && pointer.is_empty() {
                    return Err(refuse(&"the whole value cannot be dropped"));
                }
                actions.add(pointer, action).map_err(|malformed| refuse(&malformed))?;
            }
        }
        match actions.is_empty() {
            true => Err(Invalid::new("", "name at least one field in `trim`, `lowercase` or `drop`")),
            false => Ok(Self { actions }),
        }
    }

    fn transform(&self, writes: &[Write]) -> Result<Vec<Replacement>, Rejection> {
        let mut replacements = Vec::new();
        for write in writes.iter().filter(|write| write.is_json()) {
            let normalized = self.normalize(write.bytes()).map_err(|why| write.reject(why.code, why.message))?;
            replacements.extend(normalized.map(|value| write.replace(value)));
        }
        Ok(replacements)
    }
}

impl Normalize {
    /// The new value, or `None` if it stays as it is.
    fn normalize(&self, value: &[u8]) -> Result<Option<String>, Rejection> {
        let json = std::str::from_utf8(value).map_err(|_| Rejection::new("form", "the value is not UTF-8"))?;
        self.actions.rewrite(json, edit)
    }
}

fn edit(actions: &[&Action], json: &str) -> Result<Edit, Rejection> {
    if actions.contains(&&Action::Drop) {
        return Ok(Edit::Remove);
    }
    if !json.starts_with('"') {
        return Ok(Edit::Keep);
    }
    // Half of a surrogate pair is JSON, but no text.
    let before: String =
        serde_json::from_str(json).map_err(|_| Rejection::new("form", "a text of the value is not Unicode"))?;
    let after = if actions.contains(&&Action::Trim) { before.trim() } else { &before };
    let after = if actions.contains(&&Action::Lowercase) { after.to_lowercase() } else { after.to_owned() };
    Ok(match after == before {
        true => Edit::Keep,
        false => Edit::Replace(serde_json::Value::from(after).to_string()),
    })
}

brink_guest::export_transformer!(Normalize);

#[cfg(test)]
mod tests {
    use brink_guest::config;
    use serde_json::json;

    use super::*;

    fn normalize(config: &serde_json::Value) -> Result<Normalize, Invalid> {
        Normalize::configure(config::parse(&config.to_string())?)
    }

    /// The new value, or `None` if it stays.
    fn transform(config: &serde_json::Value, value: &str) -> Option<String> {
        let write = Write::raw(0, "k", "application/json", value);
        let replacements = normalize(config).unwrap().transform(&[write]).unwrap();
        assert!(replacements.len() <= 1);
        replacements.into_iter().next().map(|replacement| String::from_utf8(replacement.value).unwrap())
    }

    #[test]
    fn texts_are_trimmed_and_lower_cased() {
        let config = json!({"trim": ["/name", "/mail"], "lowercase": ["/mail"]});
        let value = r#"{"name":" Ann Ö ","age":7,"mail":"\tANN@Example.ORG\n"}"#;
        let expected = r#"{"name":"Ann Ö","age":7,"mail":"ann@example.org"}"#;
        assert_eq!(transform(&config, value).unwrap(), expected);
    }

    #[test]
    fn fields_and_elements_are_dropped() {
        let config = json!({"drop": ["/password", "/list/1", "/user/token"]});
        let value = r#"{"password":"x","list":[1,2,3],"user":{"id":1,"token":"t"}}"#;
        assert_eq!(transform(&config, value).unwrap(), r#"{"list":[1,3],"user":{"id":1}}"#);
        assert_eq!(transform(&json!({"drop": ["/*"]}), r#"{"a":1,"b":2}"#).unwrap(), "{}");
        assert_eq!(transform(&json!({"drop": ["/*"]}), "[1,2]").unwrap(), "[]");
    }

    #[test]
    fn a_star_stands_for_every_element_and_member() {
        let config = json!({"trim": ["/tags/*", "/people/*/name"], "lowercase": ["/people/0/name"]});
        let value = r#"{"tags":[" a","b ",3],"people":[{"name":" Ann"},{"name":"Bob "}]}"#;
        let expected = r#"{"tags":["a","b",3],"people":[{"name":"ann"},{"name":"Bob"}]}"#;
        assert_eq!(transform(&config, value).unwrap(), expected);
        let members = r#"{"people":{"x":{"name":"X "},"0":{"name":"Y "}}}"#;
        assert_eq!(transform(&config, members).unwrap(), r#"{"people":{"x":{"name":"X"},"0":{"name":"y"}}}"#);
    }

    #[test]
    fn the_whole_value_can_be_a_text() {
        assert_eq!(transform(&json!({"trim": [""]}), r#"" a ""#).unwrap(), r#""a""#);
    }

    #[test]
    fn what_no_rule_names_stays_byte_for_byte() {
        let config = json!({"trim": ["/z"]});
        let value =
            r#"{"z":" 1 ","b":1.00000000000000000001,"a":18446744073709551616,"\u0061\/":"\u00e9","a":{"z":" 1 "}}"#;
        let expected =
            r#"{"z":"1","b":1.00000000000000000001,"a":18446744073709551616,"\u0061\/":"\u00e9","a":{"z":" 1 "}}"#;
        assert_eq!(transform(&config, value).unwrap(), expected);
    }

    #[test]
    fn escaped_names_are_recognised() {
        let config = json!({"drop": ["/a~1b~0c", "/é"]});
        assert_eq!(transform(&config, r#"{"a/b~c":1,"\u00e9":2,"x":3}"#).unwrap(), r#"{"x":3}"#);
    }

    #[test]
    fn a_value_that_does_not_change_is_not_replaced() {
        let config = json!({"trim": ["/a/b", "/c/*"], "lowercase": ["/a"], "drop": ["/d", "/e/0"]});
        for value in [
            r#"{"a":{"b":"x"}}"#,
            r#"{"a":"é\n"}"#,
            r#"{"a":null,"c":"x ","e":[]}"#,
            "[1]",
            "\"X \"",
            "null",
            "7",
            "{}",
        ] {
            assert_eq!(transform(&config, value), None, "{value}");
        }
    }

    #[test]
    fn what_is_not_json_passes() {
        let plugin = normalize(&json!({"trim": [""]})).unwrap();
        let writes = [Write::raw(0, "k", "text/plain", "\" a \""), Write::deletion(1, "k")];
        assert_eq!(plugin.transform(&writes), Ok(Vec::new()));
    }

    #[test]
    fn json_that_cannot_be_read_is_refused() {
        let config = json!({"trim": ["/a", "/b/**"]});
        let deep = format!(r#"{{"b":{}{}}}"#, "[".repeat(1_000), "]".repeat(1_000));
        let refused = [&b"{"[..], b"", b"{\"a\":\xff}", br#"{"a":"\ud800"}"#, br#"{"\ud800":1}"#, br#"{"b":1} 2"#];
        for value in refused.into_iter().chain([deep.as_bytes()]) {
            for content_type in ["application/json", "application/ld+json; charset=utf-8"] {
                let writes = [Write::json_value(0, "k", &1), Write::raw(1, "k", content_type, value)];
                let rejection = normalize(&config).unwrap().transform(&writes).unwrap_err();
                assert_eq!((rejection.code.as_str(), rejection.violations[0].item), ("form", 1));
            }
        }
    }

    #[test]
    fn each_write_of_a_batch_is_rewritten_in_its_place() {
        let plugin = normalize(&json!({"trim": ["/a"]})).unwrap();
        let writes = [json!({"a": "x"}), json!({"a": " y"}), json!({"a": "z "})];
        let writes: Vec<_> = (0..).zip(&writes).map(|(item, value)| Write::json_value(item, "k", value)).collect();
        let items: Vec<_> =
            plugin.transform(&writes).unwrap().into_iter().map(|replacement| replacement.item).collect();
        assert_eq!(items, [1, 2]);
    }

    #[test]
    fn a_wrong_configuration_is_refused_where_it_is_wrong() {
        let path = |config| normalize(&config).unwrap_err().path;
        assert_eq!(path(json!(null)), "");
        assert_eq!(path(json!({"trim": []})), "");
        assert_eq!(path(json!({"trims": []})), "/trims");
        assert_eq!(path(json!({"trim": ["/a", 1]})), "/trim/1");
        assert_eq!(path(json!({"trim": ["/a", "b"]})), "/trim/1");
        assert_eq!(path(json!({"lowercase": ["/a~2"]})), "/lowercase/0");
        assert_eq!(path(json!({"drop": [""]})), "/drop/0");
    }
}
