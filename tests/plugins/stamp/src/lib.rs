//! A transformer that stamps values with a configured number, for tests of the version that judged a write.

use brink_guest::{Invalid, Rejection, Replacement, Transformer, Write};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// The value of the field `stamp`.
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
