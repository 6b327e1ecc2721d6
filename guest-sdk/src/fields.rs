//! Finding and rewriting fields of JSON values. Pointers with wildcards name the fields; a rewrite keeps the rest of the
//! text byte for byte.
//!
//! ```
//! use brink_guest::fields::{Edit, Fields, Unreadable};
//!
//! let mut secrets = Fields::default();
//! secrets.add("/cards/*/number", "****")?;
//! let hide = |masks: &[&&str], _: &str| Ok::<_, Unreadable>(Edit::Replace(format!("\"{}\"", masks[0])));
//! let hidden = secrets.rewrite(r#"{"id": 1.0, "cards": [{"number": "4111"}]}"#, hide)?;
//! assert_eq!(hidden.as_deref(), Some(r#"{"id":1.0,"cards":[{"number":"****"}]}"#));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::Rejection;

/// Maximum nesting of a value that is searched, the same as for JSON values on a node.
const DEPTH_MAX: usize = 128;

/// Rules of type `R` for fields. A field is named by a JSON pointer (RFC 6901). In a pointer, `*` stands for every element of
/// an array and every member of an object; `**`, as the last part, stands for everything below, at any depth.
#[derive(Debug, Clone)]
pub struct Fields<R> {
    here: Vec<R>,
    members: BTreeMap<String, Fields<R>>,
    every: Option<Box<Fields<R>>>,
    below: Vec<R>,
}

/// What to do with a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// Keep it. Rules for fields below it still apply.
    Keep,
    /// Give it a new value, as JSON text.
    Replace(String),
    /// Remove it and its name. A whole value cannot be removed: it is kept.
    Remove,
}

/// Why a pointer cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// It does not begin with `/`.
    Start,
    /// It has a `~` that is not part of `~0` or `~1`.
    Escape,
    /// It has a `**` that is not the last part.
    Below,
}

/// A value that cannot be searched: it is not JSON, or nested more than 128 deep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

/// The JSON pointer (RFC 6901) of a list of names and positions.
///
/// ```
/// assert_eq!(brink_guest::fields::pointer(["users", "0", "a/b"]), "/users/0/a~1b");
/// ```
pub fn pointer<T: AsRef<str>>(steps: impl IntoIterator<Item = T>) -> String {
    let mut pointer = String::new();
    for step in steps {
        pointer.push('/');
        pointer.push_str(&step.as_ref().replace('~', "~0").replace('/', "~1"));
    }
    pointer
}

impl<R> Fields<R> {
    /// Adds a rule for the fields that a pointer names. A field can have several rules.
    ///
    /// # Errors
    ///
    /// [`Malformed`] says what is wrong with the pointer.
    pub fn add(&mut self, pointer: &str, rule: R) -> Result<(), Malformed> {
        let (steps, is_below) = match pointer.strip_suffix("/**") {
            Some(above) => (above, true),
            None => (pointer, false),
        };
        let place = match steps.strip_prefix('/') {
            Some(steps) => steps.split('/').try_fold(self, Self::step)?,
            None if steps.is_empty() => self,
            None => return Err(Malformed::Start),
        };
        let rules = if is_below { &mut place.below } else { &mut place.here };
        rules.push(rule);
        Ok(())
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.here.is_empty() && self.is_leaf()
    }

    /// The fields of a value that have rules, in order: pointer, rule, value.
    ///
    /// It recurses: do not pass values nested more than 128 deep, which is what `serde_json` reads.
    pub fn find<'a>(&'a self, value: &'a Value) -> Vec<(String, &'a R, &'a Value)> {
        let mut found = Vec::new();
        collect(value, &Here::of(self), &mut Vec::new(), &mut found);
        found
    }

    /// The new text of a JSON value, or `None` if it stays as it is.
    ///
    /// `edit` gets the rules of a field and its JSON text without surrounding white space. Everything that no rule names stays
    /// byte for byte: the order of members, repeated names, numbers of any precision, escapes. Only white space between
    /// the members of a rewritten array or object is dropped.
    ///
    /// # Errors
    ///
    /// [`Unreadable`] if the value is not JSON, or nested more than 128 deep where rules lead; the first error of `edit`.
    pub fn rewrite<E: From<Unreadable>>(
        &self,
        json: &str,
        mut edit: impl FnMut(&[&R], &str) -> Result<Edit, E>,
    ) -> Result<Option<String>, E> {
        let json: &RawValue = read(json)?;
        match rewrite(json.get(), &Here::of(self), DEPTH_MAX, &mut edit)? {
            Edit::Replace(text) => Ok(Some(text)),
            Edit::Keep | Edit::Remove => Ok(None),
        }
    }

    /// Whether no rule names anything below.
    fn is_leaf(&self) -> bool {
        self.members.is_empty() && self.every.is_none() && self.below.is_empty()
    }

    fn step(&mut self, token: &str) -> Result<&mut Self, Malformed> {
        match token {
            "*" => return Ok(self.every.get_or_insert_default()),
            "**" => return Err(Malformed::Below),
            _ => {}
        }
        let mut escapes = token.split('~').skip(1);
        if !escapes.all(|escaped| escaped.starts_with(['0', '1'])) {
            return Err(Malformed::Escape);
        }
        let name = token.replace("~1", "/").replace("~0", "~");
        Ok(self.members.entry(name).or_default())
    }
}

impl<R> Default for Fields<R> {
    fn default() -> Self {
        Self { here: Vec::new(), members: BTreeMap::new(), every: None, below: Vec::new() }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "must be a JSON pointer such as `/name` or `/items/*/name`",
            Self::Escape => "in a JSON pointer, `~` is written `~0` and `/` is written `~1`",
            Self::Below => "`**` must be the last part of the pointer",
        })
    }
}

impl std::error::Error for Malformed {}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the value is not JSON, or nested more than {DEPTH_MAX} deep")
    }
}

impl std::error::Error for Unreadable {}

/// A plugin that cannot look into a value cannot judge it, so the request is refused with code `form`.
impl From<Unreadable> for Rejection {
    fn from(error: Unreadable) -> Self {
        Self::new("form", error.to_string())
    }
}

/// The rules at one place of a value: those for its name, those for `*`, and those of every `**` above.
struct Here<'a, R> {
    places: Vec<&'a Fields<R>>,
    inherited: Vec<&'a R>,
}

impl<'a, R> Here<'a, R> {
    fn of(fields: &'a Fields<R>) -> Self {
        Self { places: vec![fields], inherited: Vec::new() }
    }

    fn rules(&self) -> Vec<&'a R> {
        self.places.iter().flat_map(|place| &place.here).chain(self.inherited.iter().copied()).collect()
    }

    fn goes_deeper(&self) -> bool {
        !self.inherited.is_empty() || self.places.iter().any(|place| !place.is_leaf())
    }

    fn below(&self, name: &str) -> Self {
        let of = |place: &&'a Fields<R>| place.members.get(name).into_iter().chain(place.every.as_deref());
        let inherited = self.places.iter().flat_map(|place| &place.below).chain(self.inherited.iter().copied());
        Self { places: self.places.iter().flat_map(of).collect(), inherited: inherited.collect() }
    }

    fn is_empty(&self) -> bool {
        self.places.is_empty() && self.inherited.is_empty()
    }
}

fn collect<'a, R>(
    value: &'a Value,
    here: &Here<'a, R>,
    path: &mut Vec<String>,
    found: &mut Vec<(String, &'a R, &'a Value)>,
) {
    for rule in here.rules() {
        found.push((pointer(path.iter()), rule, value));
    }
    let mut descend = |name: String, value: &'a Value| {
        let below = here.below(&name);
        if !below.is_empty() {
            path.push(name);
            collect(value, &below, path, found);
            path.pop();
        }
    };
    match value {
        Value::Array(elements) if here.goes_deeper() => {
            elements.iter().enumerate().for_each(|(index, element)| descend(index.to_string(), element));
        }
        Value::Object(members) if here.goes_deeper() => {
            members.iter().for_each(|(name, member)| descend(name.clone(), member));
        }
        _ => {}
    }
}

/// Edits one place and everything below it. `depth` is the number of levels left.
fn rewrite<R, E: From<Unreadable>>(
    json: &str,
    here: &Here<'_, R>,
    depth: usize,
    edit: &mut impl FnMut(&[&R], &str) -> Result<Edit, E>,
) -> Result<Edit, E> {
    let rules = here.rules();
    if !rules.is_empty() {
        match edit(&rules, json)? {
            Edit::Keep => {}
            edited => return Ok(edited),
        }
    }
    let is_object = json.starts_with('{');
    if !here.goes_deeper() || !(is_object || json.starts_with('[')) {
        return Ok(Edit::Keep);
    }
    let depth = depth.checked_sub(1).ok_or(Unreadable)?;
    let mut text = String::with_capacity(json.len());
    let mut is_changed = false;
    let mut keep = |raw_name: Option<&str>, name: &str, value: &str| -> Result<(), E> {
        let below = here.below(name);
        let edited = if below.is_empty() { Edit::Keep } else { rewrite(value, &below, depth, edit)? };
        is_changed |= edited != Edit::Keep;
        let value = match &edited {
            Edit::Keep => value,
            Edit::Replace(new) => new,
            Edit::Remove => return Ok(()),
        };
        let comma = if text.is_empty() { "" } else { "," };
        let parts = [comma, raw_name.unwrap_or_default(), if raw_name.is_some() { ":" } else { "" }, value];
        parts.iter().for_each(|part| text.push_str(part));
        Ok(())
    };
    if is_object {
        let Members(members) = read(json)?;
        for (raw_name, value) in members {
            let name: String = read(raw_name.get())?;
            keep(Some(raw_name.get()), &name, value.get())?;
        }
    } else {
        let elements: Vec<&RawValue> = read(json)?;
        for (index, value) in elements.into_iter().enumerate() {
            keep(None, &index.to_string(), value.get())?;
        }
    }
    let (open, close) = if is_object { ('{', '}') } else { ('[', ']') };
    Ok(if is_changed { Edit::Replace(format!("{open}{text}{close}")) } else { Edit::Keep })
}

fn read<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Unreadable> {
    serde_json::from_str(json).map_err(|_| Unreadable)
}

/// The members of an object in their order, repeated names included. Names keep their escapes.
struct Members<'a>(Vec<(&'a RawValue, &'a RawValue)>);

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(Members(members))
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(pointers: &[&'static str]) -> Fields<&'static str> {
        let mut fields = Fields::default();
        for pointer in pointers {
            fields.add(pointer, *pointer).unwrap();
        }
        fields
    }

    fn found(pointers: &[&'static str], value: &Value) -> Vec<(String, &'static str)> {
        fields(pointers).find(value).into_iter().map(|(path, rule, _)| (path, *rule)).collect()
    }

    fn mark(pointers: &[&'static str], json: &str) -> Option<String> {
        fields(pointers).rewrite(json, |rules, _| Ok::<_, Unreadable>(Edit::Replace(rules.len().to_string()))).unwrap()
    }

    #[test]
    fn fields_are_found_by_name_position_and_wildcard() {
        let value = json!({"a": [{"b": 1}, {"b": 2}], "a/b": {"~": 3}});
        let expected = [("/a/0/b", "/a/*/b"), ("/a/1/b", "/a/*/b"), ("/a/1/b", "/a/1/b"), ("/a~1b/~0", "/a~1b/~0")];
        let mut found = found(&["/a/1/b", "/a/*/b", "/a~1b/~0", "/c"], &value);
        found.sort();
        assert_eq!(found, expected.map(|(path, rule)| (path.to_owned(), rule)));
    }

    #[test]
    fn two_stars_stand_for_everything_below() {
        let value = json!({"a": [1, {"b": 2}]});
        let paths: Vec<_> = found(&["/**"], &value).into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["/a", "/a/0", "/a/1", "/a/1/b"]);
        let paths: Vec<_> = found(&["", "/a/**", "/*/1"], &value).into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["", "/a/0", "/a/1", "/a/1", "/a/1/b"]);
    }

    #[test]
    fn all_rules_of_a_field_are_given_at_once() {
        let json = r#"{"a":{"b":"x"},"c":"y"}"#;
        assert_eq!(mark(&["/a/b", "/*/b"], json).as_deref(), Some(r#"{"a":{"b":2},"c":"y"}"#));
    }

    #[test]
    fn what_no_rule_names_stays_byte_for_byte() {
        let json = r#"{"b":1.00000000000000000001,"z":1,"a":18446744073709551616,"\u0061\/":"\u00e9","a":{"z":"1"}}"#;
        assert_eq!(mark(&["/z"], json).as_deref(), Some(json));
        assert_eq!(mark(&["/x", "/a/x", "/b/*"], json), None);
    }

    #[test]
    fn fields_can_go_and_a_whole_value_cannot() {
        let remove = |pointers: &[&'static str], json: &str| {
            fields(pointers).rewrite(json, |_, _| Ok::<_, Unreadable>(Edit::Remove)).unwrap()
        };
        assert_eq!(remove(&["/0", "/2"], "[1,2,3]").as_deref(), Some("[2]"));
        assert_eq!(remove(&["/**"], r#"{"a":{"b":1}}"#).as_deref(), Some("{}"));
        assert_eq!(remove(&[""], "1"), None);
    }

    #[test]
    fn what_is_kept_is_searched_and_what_is_replaced_is_not() {
        let keep_objects = |rules: &[&&str], json: &str| match json.starts_with('{') {
            true => Ok::<_, Unreadable>(Edit::Keep),
            false => Ok(Edit::Replace(rules.len().to_string())),
        };
        let rewritten = fields(&["/**"]).rewrite(r#"{"a":{"b":7},"c":[8]}"#, keep_objects).unwrap();
        assert_eq!(rewritten.as_deref(), Some(r#"{"a":{"b":1},"c":1}"#));
    }

    #[test]
    fn what_cannot_be_searched_is_an_error() {
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let rewrite = |json: &str| fields(&["/**"]).rewrite(json, |_, _| Ok(Edit::Keep));
        assert_eq!(rewrite(&deep(128)), Ok(None));
        assert_eq!(rewrite(&deep(129)), Err(Unreadable));
        assert_eq!(rewrite(&deep(1_000_000)), Err(Unreadable));
        assert_eq!(rewrite("{"), Err(Unreadable));
        assert_eq!(rewrite("1 2"), Err(Unreadable));
        // Half of a surrogate pair is valid JSON, but no name can be made of it.
        assert_eq!(rewrite(r#"{"\ud800": 1}"#), Err(Unreadable));
        assert_eq!(fields(&[""]).rewrite("1", |_, _| Err(Unreadable)), Err(Unreadable));
        assert_eq!(Rejection::from(Unreadable).code, "form");
    }

    #[test]
    fn a_malformed_pointer_is_named() {
        let add = |pointer: &str| Fields::default().add(pointer, ()).unwrap_err();
        assert_eq!(add("a"), Malformed::Start);
        assert_eq!(add("/a~2"), Malformed::Escape);
        assert_eq!(add("/a~"), Malformed::Escape);
        assert_eq!(add("/**/a"), Malformed::Below);
    }
}
