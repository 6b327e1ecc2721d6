//! The rules of a configuration, as a tree that is walked beside the value.

use std::collections::BTreeMap;

/// What is done to a place in a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Trim,
    Lowercase,
    Drop,
}

/// What is done here, and below.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    pub(crate) trims: bool,
    pub(crate) lowercases: bool,
    pub(crate) drops: bool,
    members: BTreeMap<String, Rules>,
    every: Option<Box<Rules>>,
}

impl Rules {
    /// Adds what is done at a JSON pointer. Says what is wrong with the pointer, if it cannot be used.
    pub(crate) fn add(&mut self, pointer: &str, action: Action) -> Result<(), String> {
        let place = match pointer.strip_prefix('/') {
            Some(path) => path.split('/').try_fold(self, Self::child)?,
            None if pointer.is_empty() && action != Action::Drop => self,
            None if pointer.is_empty() => return Err("the whole value cannot be dropped".to_owned()),
            None => return Err("must be a JSON pointer such as `/name` or `/items/*/name`".to_owned()),
        };
        match action {
            Action::Trim => place.trims = true,
            Action::Lowercase => place.lowercases = true,
            Action::Drop => place.drops = true,
        }
        Ok(())
    }

    /// Whether nothing is done here or below.
    pub(crate) fn is_empty(&self) -> bool {
        !self.trims && !self.lowercases && !self.drops && !self.goes_deeper()
    }

    /// Whether something is done below.
    pub(crate) fn goes_deeper(&self) -> bool {
        !self.members.is_empty() || self.every.is_some()
    }

    /// The rules for a member or an element: those of its name, and those of `*`.
    pub(crate) fn below<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Rules> {
        self.members.get(name).into_iter().chain(self.every.as_deref())
    }

    fn child(&mut self, token: &str) -> Result<&mut Self, String> {
        if token == "*" {
            return Ok(self.every.get_or_insert_default());
        }
        let mut escapes = token.split('~').skip(1);
        if !escapes.all(|escaped| escaped.starts_with(['0', '1'])) {
            return Err("in a JSON pointer, `~` is written `~0` and `/` is written `~1`".to_owned());
        }
        let name = token.replace("~1", "/").replace("~0", "~");
        Ok(self.members.entry(name).or_default())
    }
}
