//! One write as a JSON object: an item of a batch, or a line of a stream.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::value;
use crate::api::access::Grant;
use crate::api::problem::{Kind, Problem};
use crate::api::request;
use crate::limits::CONTENT_TYPE_BYTES_MAX;
use crate::storage::{Action, AskedBy, Fact, Operation, Precondition, Space, Value};

/// One item. Which members it must have depends on `op`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Item {
    #[serde(default)]
    op: Op,
    pub(super) key: String,
    #[serde(default, deserialize_with = "present")]
    value: Option<Box<RawValue>>,
    value_base64: Option<String>,
    content_type: Option<String>,
    /// The revision the entry must have; 0: there must be none.
    if_revision: Option<u64>,
    /// The client's name for the write; only in a stream, since a batch is one write.
    pub(super) idempotency_key: Option<String>,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Op {
    #[default]
    Put,
    Delete,
}

/// Distinguishes a `null` from an absent value.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

impl Item {
    /// The write that it asks for, if a grant covers it.
    pub(super) fn check(self, grant: &Grant) -> Result<(Operation, Option<Precondition>), Problem> {
        request::check_key(&self.key)?;
        grant.check_key(&self.key)?;
        let precondition = self.if_revision.map(|revision| {
            let revision = Some(revision).filter(|revision| *revision > 0);
            let fact = Fact::Revision { key: self.key.clone(), revision };
            Precondition { asked_by: AskedBy::Client, space: Space::Kv, fact }
        });
        let key = self.key.clone();
        Ok((Operation { space: Space::Kv, key, action: self.action()? }, precondition))
    }

    fn action(self) -> Result<Action, Problem> {
        let bad = |detail: &str| Problem::new(Kind::BAD_BODY, format!("the item with key {:?} {detail}", self.key));
        match (self.op, self.value, self.value_base64) {
            (Op::Delete, None, None) => Ok(Action::Delete),
            (Op::Delete, _, _) => Err(bad("deletes, so it must not have a value")),
            (Op::Put, Some(json), None) => {
                let text = String::from(Box::<str>::from(json));
                Ok(Action::Put(value::of_json(text.into())?))
            }
            (Op::Put, None, Some(text)) => {
                let bytes = BASE64.decode(text).map_err(|_| bad("has a value_base64 that is not base64"))?.into();
                let content_type = self.content_type.ok_or_else(|| bad("has a value_base64 but no content_type"))?;
                let is_json = request::essence(&content_type).eq_ignore_ascii_case(Value::JSON);
                if is_json || !value::is_content_type(&content_type) {
                    return Err(bad(&format!(
                        "has a content_type that is not allowed: 1 to {CONTENT_TYPE_BYTES_MAX} visible ASCII characters, \
                         and JSON goes into value"
                    )));
                }
                Ok(Action::Put(value::of_type(&content_type, bytes)?))
            }
            (Op::Put, Some(_), Some(_)) => Err(bad("has both value and value_base64")),
            (Op::Put, None, None) => Err(bad("has no value")),
        }
    }
}
