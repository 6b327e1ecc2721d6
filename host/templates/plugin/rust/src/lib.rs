//! The rule: a value must have every field that the hook's configuration names.

use brink_guest::fields::pointer;
use brink_guest::{Invalid, Rejection, Validator, Write};
use serde_json::Value;

/// The configuration of a hook.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    required: Vec<String>,
}

impl Validator for Fields {
    type Config = Self;

    fn configure(config: Self) -> Result<Self, Invalid> {
        match config.required.is_empty() {
            true => Err(Invalid::new("/required", "must be a list of field names, such as [\"name\"]")),
            false => Ok(config),
        }
    }

    fn validate(&self, writes: &[Write]) -> Result<(), Rejection> {
        let mut violations = Vec::new();
        for write in writes {
            // Deletions have no value.
            let Some(value) = write.json::<Value>()? else { continue };
            for field in self.required.iter().filter(|field| value.get(field.as_str()).is_none()) {
                let message = format!("the field {field:?} is missing");
                violations.push(write.violation(pointer([field]), "required", message));
            }
        }
        match violations.is_empty() {
            true => Ok(()),
            false => Err(Rejection { violations, ..Rejection::new("required", "fields are missing") }),
        }
    }
}

brink_guest::export_validator!(Fields);

#[cfg(test)]
mod tests {
    use super::*;

    fn validate(value: &str) -> Result<(), Rejection> {
        let config = brink_guest::config::parse(r#"{"required": ["name", "e/mail"]}"#).unwrap();
        Fields::configure(config).unwrap().validate(&[Write::raw(0, "users/1", "application/json", value)])
    }

    #[test]
    fn a_complete_value_passes() {
        assert!(validate(r#"{"name": "Ann", "e/mail": "ann@example.org"}"#).is_ok());
    }

    #[test]
    fn every_missing_field_is_named() {
        let paths: Vec<_> = validate("{}").unwrap_err().violations.into_iter().map(|violation| violation.path).collect();
        assert_eq!(paths, ["/name", "/e~1mail"]);
    }

    #[test]
    fn a_configuration_that_names_nothing_is_refused() {
        let config = brink_guest::config::parse(r#"{"required": []}"#).unwrap();
        assert!(Fields::configure(config).is_err_and(|invalid| invalid.path == "/required"));
    }
}
