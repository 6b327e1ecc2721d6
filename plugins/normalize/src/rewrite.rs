//! Rewriting JSON text along the rules. Only what a rule leads to is taken apart; the rest is copied as it is.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::rules::Rules;

/// The new text of a value, or `None` if it stays as it is.
pub(crate) fn rewrite(value: &str, rules: &Rules) -> Option<String> {
    match rewrite_all(value, &[rules]) {
        Change::Text(text) => Some(text),
        Change::None | Change::Gone => None,
    }
}

/// What becomes of a value.
enum Change {
    None,
    Text(String),
    Gone,
}

/// More than one set of rules can be for the same place: those of its name, and those of `*`.
fn rewrite_all(value: &str, rules: &[&Rules]) -> Change {
    if rules.iter().any(|rules| rules.drops) {
        return Change::Gone;
    }
    let text = match value.as_bytes().first() {
        Some(b'"') => rewrite_text(value, rules),
        Some(b'{') if rules.iter().any(|rules| rules.goes_deeper()) => rewrite_object(value, rules),
        Some(b'[') if rules.iter().any(|rules| rules.goes_deeper()) => rewrite_array(value, rules),
        _ => None,
    };
    text.map_or(Change::None, Change::Text)
}

fn rewrite_text(value: &str, rules: &[&Rules]) -> Option<String> {
    let (trims, lowercases) = (rules.iter().any(|rules| rules.trims), rules.iter().any(|rules| rules.lowercases));
    if !trims && !lowercases {
        return None;
    }
    let before: String = serde_json::from_str(value).ok()?;
    let after = if trims { before.trim() } else { &before };
    let after = if lowercases { after.to_lowercase() } else { after.to_owned() };
    if after == before { None } else { serde_json::to_string(&after).ok() }
}

fn rewrite_object(value: &str, rules: &[&Rules]) -> Option<String> {
    let Members(members) = serde_json::from_str(value).ok()?;
    let mut is_changed = false;
    let mut parts = Vec::with_capacity(members.len());
    for (raw_name, member) in members {
        let name: String = serde_json::from_str(raw_name.get()).ok()?;
        let text = keep(member, &name, rules, &mut is_changed);
        parts.extend(text.map(|text| format!("{}:{text}", raw_name.get())));
    }
    is_changed.then(|| format!("{{{}}}", parts.join(",")))
}

fn rewrite_array(value: &str, rules: &[&Rules]) -> Option<String> {
    let elements: Vec<&RawValue> = serde_json::from_str(value).ok()?;
    let mut is_changed = false;
    let mut parts = Vec::with_capacity(elements.len());
    for (index, element) in elements.into_iter().enumerate() {
        parts.extend(keep(element, &index.to_string(), rules, &mut is_changed));
    }
    is_changed.then(|| format!("[{}]", parts.join(",")))
}

/// The text of a member or an element, new or old; `None` if it is dropped. Notes if it is not what it was.
fn keep(value: &RawValue, name: &str, rules: &[&Rules], is_changed: &mut bool) -> Option<String> {
    let below: Vec<&Rules> = rules.iter().flat_map(|rules| rules.below(name)).collect();
    match rewrite_all(value.get(), &below) {
        Change::None => Some(value.get().to_owned()),
        Change::Text(text) => {
            *is_changed = true;
            Some(text)
        }
        Change::Gone => {
            *is_changed = true;
            None
        }
    }
}

/// The members of an object in their order, repeated names included, with names as they are written.
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
