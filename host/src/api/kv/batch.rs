//! Many writes at once: `POST <base>/kv/batch/`, all or nothing.

use std::collections::HashMap;

use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{entry, value};
use crate::api::problem::{Kind, Problem};
use crate::api::request::{self, Call};
use crate::api::{answer, body};
use crate::limits::{BATCH_BODY_BYTES_MAX, BATCH_ITEMS_MAX, CONTENT_TYPE_BYTES_MAX, WRITE_DEADLINE};
use crate::storage::{Action, AskedBy, Fact, Operation, Precondition, Space, Value};
use crate::write_path::Request;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody {
    items: Vec<Item>,
}

/// One item. Which members it must have depends on `op`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    #[serde(default)]
    op: Op,
    key: String,
    #[serde(default, deserialize_with = "present")]
    value: Option<Box<RawValue>>,
    value_base64: Option<String>,
    content_type: Option<String>,
    /// The revision the entry must have; 0: there must be none.
    if_revision: Option<u64>,
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

pub(crate) async fn post(Call { app, headers, body, .. }: Call) -> Result<Response, Problem> {
    let body = body::read(&app, &headers, body, BATCH_BODY_BYTES_MAX).await?;
    let shape = "{\"items\": [{\"key\", \"value\"} or {\"op\": \"delete\", \"key\"}, …]}";
    let BatchBody { items } = request::json(&body.bytes, shape)?;
    let idempotency_key = request::idempotency_key(&headers)?;
    let request = Request { idempotency_key, ..request_of(items)? };
    let written = app.write_path.write(request, Instant::now() + WRITE_DEADLINE).await?;
    let mut response = answer::json(StatusCode::OK, entry::batch(&written));
    answer::set_repeated(&mut response, written.repeated);
    Ok(response)
}

fn request_of(items: Vec<Item>) -> Result<Request, Problem> {
    if items.is_empty() || items.len() > BATCH_ITEMS_MAX {
        let detail = format!("the batch has {} items; a batch has 1 to {BATCH_ITEMS_MAX}", items.len());
        return Err(Problem::new(if items.is_empty() { Kind::BAD_BODY } else { Kind::TOO_LARGE }, detail));
    }
    let mut seen: HashMap<String, usize> = HashMap::with_capacity(items.len());
    let mut operations = Vec::with_capacity(items.len());
    let mut preconditions = Vec::new();
    for (position, item) in items.into_iter().enumerate() {
        let at = |problem: Problem| problem.with("item", position);
        request::check_key(&item.key).map_err(at)?;
        if let Some(first) = seen.insert(item.key.clone(), position) {
            let detail = format!("items {first} and {position} have the same key {:?}", item.key);
            return Err(at(Problem::new(Kind::DUPLICATE_KEY, detail)));
        }
        if let Some(revision) = item.if_revision {
            let revision = Some(revision).filter(|revision| *revision > 0);
            let fact = Fact::Revision { key: item.key.clone(), revision };
            preconditions.push(Precondition { asked_by: AskedBy::Client, space: Space::Kv, fact });
        }
        let key = item.key.clone();
        let action = action_of(item).map_err(at)?;
        operations.push(Operation { space: Space::Kv, key, action });
    }
    Ok(Request { operations, preconditions, idempotency_key: None })
}

fn action_of(item: Item) -> Result<Action, Problem> {
    let bad = |detail: &str| Problem::new(Kind::BAD_BODY, format!("the item with key {:?} {detail}", item.key));
    match (item.op, item.value, item.value_base64) {
        (Op::Delete, None, None) => Ok(Action::Delete),
        (Op::Delete, _, _) => Err(bad("deletes, so it must not have a value")),
        (Op::Put, Some(json), None) => {
            let text = String::from(Box::<str>::from(json));
            Ok(Action::Put(value::of_json(text.into())?))
        }
        (Op::Put, None, Some(text)) => {
            let bytes = BASE64.decode(text).map_err(|_| bad("has a value_base64 that is not base64"))?.into();
            let content_type = item.content_type.ok_or_else(|| bad("has a value_base64 but no content_type"))?;
            if content_type.is_empty() || content_type == Value::JSON || content_type.len() > CONTENT_TYPE_BYTES_MAX {
                return Err(bad("has a content_type that is not allowed: 1 to 255 bytes, and JSON goes into value"));
            }
            Ok(Action::Put(value::within_limit(Value { content_type, bytes })?))
        }
        (Op::Put, Some(_), Some(_)) => Err(bad("has both value and value_base64")),
        (Op::Put, None, None) => Err(bad("has no value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(items: &str) -> Result<Request, Problem> {
        request_of(serde_json::from_str(items).unwrap())
    }

    #[test]
    fn items_become_operations_and_preconditions() {
        let request = request(
            r#"[{"key":"a","value":null},{"op":"delete","key":"b","if_revision":3},
                {"key":"c","value_base64":"AA==","content_type":"x/y","if_revision":0}]"#,
        )
        .unwrap();
        assert_eq!(request.operations[0].action, Action::Put(Value::json("null")));
        assert_eq!(request.operations[1].action, Action::Delete);
        let facts: Vec<_> = request.preconditions.into_iter().map(|precondition| precondition.fact).collect();
        let revision = |key: &str, revision| Fact::Revision { key: key.into(), revision };
        assert_eq!(facts, [revision("b", Some(3)), revision("c", None)]);
    }

    #[test]
    fn malformed_batches_are_refused() {
        let wrong = [
            "[]",
            r#"[{"key":"a","value":1},{"key":"a","value":2}]"#,
            r#"[{"key":"","value":1}]"#,
            r#"[{"key":"a"}]"#,
            r#"[{"op":"delete","key":"a","value":1}]"#,
            r#"[{"key":"a","value":1,"value_base64":"AA=="}]"#,
            r#"[{"key":"a","value_base64":"?","content_type":"x/y"}]"#,
            r#"[{"key":"a","value_base64":"AA=="}]"#,
        ];
        for items in wrong {
            assert!(request(items).is_err(), "{items}");
        }
    }
}
