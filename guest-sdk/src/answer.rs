//! Methods of the generated types: a plugin's answers, and the entries of the store.

use serde::de::DeserializeOwned;

use crate::json;
use crate::store::ReadError;
use crate::{Entry, Rejection, Replacement, Violation};

impl Rejection {
    /// Refuses a request. `code` is a short stable word for programs, `message` a sentence for people.
    ///
    /// ```
    /// # use brink_guest::Rejection;
    /// let rejection = Rejection::new("stock", "there is not enough in stock")
    ///     .violation(0, "/amount", "maximum", "at most 3 are left");
    /// assert_eq!(rejection.violations.len(), 1);
    /// ```
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), violations: Vec::new() }
    }

    /// Adds a broken rule. `item` is the position of the write in the request, from 0; `path` is a JSON pointer into its
    /// value, empty for the whole value. The node keeps the first 100 violations.
    ///
    /// [`Write::violation`](crate::Write::violation) fills in the position.
    #[must_use]
    pub fn violation(
        self,
        item: u32,
        path: impl Into<String>,
        code: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        self.with(Violation { item, path: path.into(), code: code.into(), message: message.into() })
    }

    /// Adds a broken rule. The node keeps the first 100.
    #[must_use]
    pub fn with(mut self, violation: Violation) -> Self {
        self.violations.push(violation);
        self
    }
}

/// A plugin that cannot read cannot judge, so the request is refused with code `read-limit` or `store-unavailable`.
impl From<ReadError> for Rejection {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Limit(why) => Self::new("read-limit", format!("the plugin may not read more: {why}")),
            ReadError::Unavailable(why) => {
                Self::new("store-unavailable", format!("the plugin cannot read the store: {why}"))
            }
        }
    }
}

impl Replacement {
    /// A new value for the write at position `item` of the request, from 0.
    /// [`Write::replace`](crate::Write::replace) fills in the position.
    pub fn new(item: u32, value: impl Into<Vec<u8>>) -> Self {
        Self { item, value: value.into() }
    }
}

impl Entry {
    /// The value as a `T`.
    ///
    /// # Errors
    ///
    /// A rejection with code `stored-form` if the stored value does not have the form of `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Rejection> {
        json::read(&self.value).map_err(|error| {
            let (key, path) = (json::cut(&self.key), &error.path);
            let message = format!("the entry `{key}` does not have the expected form at `{path}`: {}", error.message);
            Rejection::new("stored-form", message)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_read_becomes_a_rejection() {
        let refuse = |error: ReadError| Rejection::from(error).code;
        assert_eq!(refuse(ReadError::Limit("1,000 reads".to_owned())), "read-limit");
        assert_eq!(refuse(ReadError::Unavailable("no".to_owned())), "store-unavailable");
    }

    #[test]
    fn an_entry_of_another_form_says_where() {
        let entry = Entry {
            key: "k".to_owned(),
            content_type: "application/json".to_owned(),
            value: b"{\"a\":[1,\"x\"]}".to_vec(),
            version: 1,
            revision: 1,
        };
        let rejection = entry.json::<std::collections::BTreeMap<String, Vec<u8>>>().unwrap_err();
        assert_eq!(rejection.code, "stored-form");
        assert!(rejection.message.contains("`/a/1`"), "{rejection:?}");
    }
}
