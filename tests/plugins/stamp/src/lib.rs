//! A transformer that marks values with its configuration, to test which version judged a write.

use brink_guest::{Invalid, Rejection, Replacement, Transformer, Write};
use serde::Deserialize;
use serde_json::{Map, Value};

/// What values are marked with.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// The field `stamp` of every value.
    pub stamp: u64,
}

impl Transformer for Stamp {
    type Config = Self;

    fn configure(config: Self) -> Result<Self, Invalid> {
        Ok(config)
    }

    fn transform(&self, writes: &[Write]) -> Result<Vec<Replacement>, Rejection> {
        let mut replacements = Vec::new();
        for write in writes {
            let Some(mut value) = write.json::<Map<String, Value>>()? else { continue };
            value.insert("stamp".to_owned(), self.stamp.into());
            replacements.push(write.replace_json(&value)?);
        }
        Ok(replacements)
    }
}

brink_guest::export_transformer!(Stamp);
