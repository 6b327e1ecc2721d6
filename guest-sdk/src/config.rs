//! Reading the configuration of a hook into the plugin's own type.

use std::fmt;

use serde::de::DeserializeOwned;

use crate::bindings::configured::exports::brink::hooks::configuration;
use crate::json::{self, Mismatch};

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// The place in the configuration, as a JSON pointer (RFC 6901); empty for the whole.
    pub path: String,
    /// What is wrong there, and what would be right.
    pub message: String,
}

impl Invalid {
    /// Refuses a configuration. `path` is a JSON pointer, empty for the whole; `message` is a sentence for people.
    ///
    /// ```
    /// # use brink_guest::Invalid;
    /// let invalid = Invalid::new("/bytes_max", "must be at least 1");
    /// assert_eq!(invalid.to_string(), "/bytes_max: must be at least 1");
    /// ```
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.message),
            path => write!(f, "{path}: {}", self.message),
        }
    }
}

impl std::error::Error for Invalid {}

impl From<Mismatch> for Invalid {
    fn from(Mismatch { path, message }: Mismatch) -> Self {
        Self { path, message }
    }
}

impl From<Invalid> for configuration::Invalid {
    fn from(Invalid { path, message }: Invalid) -> Self {
        Self { path, message }
    }
}

/// Reads a configuration as nodes pass it: JSON text, `null` if the hook has none.
///
/// If `C` cannot be read from `null`, it is read from `{}` instead, so a struct whose fields all have defaults needs no
/// configuration.
///
/// ```
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Config { #[serde(default)] strict: bool }
///
/// # fn main() -> Result<(), brink_guest::Invalid> {
/// assert!(!brink_guest::config::parse::<Config>("null")?.strict);
/// assert_eq!(brink_guest::config::parse::<Option<Config>>("null")?.map(|config| config.strict), None);
/// let invalid = brink_guest::config::parse::<Config>(r#"{"strict": 1}"#).map(|_| ()).unwrap_err();
/// assert_eq!(invalid.to_string(), "/strict: invalid type: integer `1`, expected a boolean");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Invalid`], with the place of the first mismatch, if the text is not JSON or does not have the form of `C`.
pub fn parse<C: DeserializeOwned>(text: &str) -> Result<C, Invalid> {
    let refusal = match json::read(text.as_bytes()) {
        Ok(config) => return Ok(config),
        Err(refusal) => refusal,
    };
    if text.trim() != "null" {
        return Err(refusal.into());
    }
    // A missing field helps more than the complaint that `null` is no object.
    json::read(b"{}").map_err(|empty| if empty.message.starts_with("missing field") { empty } else { refusal }.into())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Config {
        rules: Vec<Rule>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rule {
        max: u8,
    }

    fn refusal<C: DeserializeOwned>(text: &str) -> String {
        parse::<C>(text).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn a_configuration_is_read() {
        assert_eq!(parse::<Config>(r#"{"rules": [{"max": 1}]}"#), Ok(Config { rules: vec![Rule { max: 1 }] }));
        assert_eq!(parse::<()>("null"), Ok(()));
        assert_eq!(parse::<serde_json::Value>("null"), Ok(serde_json::Value::Null));
    }

    #[test]
    fn a_refusal_says_where() {
        assert_eq!(
            refusal::<Config>(r#"{"rules": [{"max": 300}]}"#),
            "/rules/0/max: invalid value: integer `300`, expected u8"
        );
        assert_eq!(refusal::<Config>(r#"{"rules": [{}]}"#), "/rules/0: missing field `max`");
        assert_eq!(refusal::<Config>(r#"{"rules": [], "x": 1}"#), "/x: unknown field `x`, expected `rules`");
    }

    #[test]
    fn no_configuration_where_one_is_needed_says_what_is_missing() {
        assert_eq!(refusal::<Config>("null"), "missing field `rules`");
        assert_eq!(refusal::<Vec<u8>>(" null "), "invalid type: null, expected a sequence");
    }
}
