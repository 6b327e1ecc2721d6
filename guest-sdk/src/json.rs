//! Reading JSON into types, with errors that name the place.

use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment};

use crate::fields;

/// Maximum length of a message that may quote a value of any size.
const QUOTE_BYTES_MAX: usize = 256;

/// The first place where JSON does not have the form that a type needs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// A JSON pointer (RFC 6901); empty for the whole.
    pub(crate) path: String,
    /// What was found there and what was expected.
    pub(crate) message: String,
}

/// Reads JSON text as a `T`.
pub(crate) fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, Mismatch> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = pointer(error.path());
        Mismatch { path, message: say(error.inner()) }
    })?;
    json.end().map_err(|error| Mismatch { path: String::new(), message: say(&error) })?;
    Ok(value)
}

/// The start of a text, at most 256 bytes, with `…` where it goes on.
pub(crate) fn cut(text: &str) -> String {
    if text.len() <= QUOTE_BYTES_MAX {
        return text.to_owned();
    }
    let end = (0..=QUOTE_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…", text.get(..end).unwrap_or_default())
}

/// The error in words, without line and column if the path is more precise.
fn say(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    let text = if error.is_data() { text.strip_suffix(&position).unwrap_or(&text) } else { &text };
    cut(text)
}

fn pointer(path: &Path) -> String {
    fields::pointer(path.iter().map_while(|segment| match segment {
        Segment::Seq { index } => Some(index.to_string()),
        Segment::Map { key } => Some(key.clone()),
        Segment::Enum { variant } => Some(variant.clone()),
        // The rest of the path is not known.
        Segment::Unknown => None,
    }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn mismatch<T: DeserializeOwned>(text: &str) -> (String, String) {
        let Err(Mismatch { path, message }) = read::<T>(text.as_bytes()) else { panic!("`{text}` was read") };
        (path, message)
    }

    #[test]
    fn an_error_says_where_in_pointer_form() {
        let (path, message) = mismatch::<BTreeMap<String, Vec<u8>>>(r#"{"a/b~c": [1, "x"]}"#);
        assert_eq!(path, "/a~1b~0c/1");
        assert_eq!(message, "invalid type: string \"x\", expected u8");
    }

    #[test]
    fn text_that_is_not_json_is_located_by_line() {
        let (path, message) = mismatch::<serde_json::Value>("{");
        assert_eq!((path.as_str(), message.as_str()), ("", "EOF while parsing an object at line 1 column 1"));
        assert_eq!(mismatch::<u8>("1 2").0, "");
    }

    #[test]
    fn long_values_are_not_echoed() {
        let (_, message) = mismatch::<u8>(&format!("\"{}\"", "é".repeat(10_000)));
        assert!(message.len() < 300 && message.ends_with('…'), "{message}");
    }
}
