//! A validator whose verdict depends on another key, for tests of the preconditions that its reads become.
//!
//! One field of every value must name an existing key.

use brink_guest::fields::pointer;
use brink_guest::{Invalid, Rejection, Validator, Write, store};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The field whose text is the key.
    pub reference: String,
    /// The lookup of the key.
    #[serde(default)]
    pub by: Lookup,
}

/// The lookup of a key.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lookup {
    /// Reads the entry. The write is judged again if the entry changes meanwhile.
    #[default]
    Get,
    /// Asks only whether the key exists.
    Exists,
}

/// The plugin.
#[derive(Debug)]
pub struct Reference(Config);

impl Validator for Reference {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, Invalid> {
        Ok(Self(config))
    }

    fn validate(&self, writes: &[Write]) -> Result<(), Rejection> {
        writes.iter().try_for_each(|write| self.check(write))
    }
}

impl Reference {
    fn check(&self, write: &Write) -> Result<(), Rejection> {
        let Some(value) = write.json::<Map<String, Value>>()? else { return Ok(()) };
        let field = &self.0.reference;
        let refuse = |code: &str, message: &str| {
            Rejection::new(code, message).with(write.violation(pointer([field]), code, message))
        };
        let Some(key) = value.get(field).and_then(Value::as_str) else {
            return Err(refuse("no-reference", "the field must be there and name a key"));
        };
        let exists = match self.0.by {
            Lookup::Get => store::get(key)?.is_some(),
            Lookup::Exists => store::exists(key)?,
        };
        if exists { Ok(()) } else { Err(refuse("dangling-reference", "the key that the field names does not exist")) }
    }
}

brink_guest::export_validator!(Reference);

#[cfg(test)]
mod tests {
    use brink_guest::{config, mock};
    use serde_json::json;

    use super::*;

    fn validate(config: &str, write: Write) -> Result<(), (String, String)> {
        let plugin = Reference::configure(config::parse(config).unwrap()).unwrap();
        let place = |r: Rejection| (r.code, r.violations.first().map_or_else(String::new, |v| v.path.clone()));
        plugin.validate(&[write]).map_err(place)
    }

    #[test]
    fn the_key_must_exist() {
        for config in [r#"{"reference": "of"}"#, r#"{"reference": "of", "by": "exists"}"#] {
            let _open = mock::Store::new().json("users/ann", &1).open();
            assert_eq!(validate(config, Write::json_value(0, "k", &json!({"of": "users/ann"}))), Ok(()));
            let refused = Err(("dangling-reference".to_owned(), "/of".to_owned()));
            assert_eq!(validate(config, Write::json_value(0, "k", &json!({"of": "users/bob"}))), refused);
        }
    }

    #[test]
    fn the_field_must_be_a_string() {
        for value in [json!({}), json!({"a/b": 1})] {
            let refused = Err(("no-reference".to_owned(), "/a~1b".to_owned()));
            assert_eq!(validate(r#"{"reference": "a/b"}"#, Write::json_value(0, "k", &value)), refused);
        }
    }

    #[test]
    fn a_deletion_needs_no_reference() {
        assert_eq!(validate(r#"{"reference": "of"}"#, Write::deletion(0, "k")), Ok(()));
    }

    #[test]
    fn a_failed_read_is_a_refusal() {
        let refused = Err(("store-unavailable".to_owned(), String::new()));
        assert_eq!(validate(r#"{"reference": "of"}"#, Write::json_value(0, "k", &json!({"of": "x"}))), refused);
    }
}
