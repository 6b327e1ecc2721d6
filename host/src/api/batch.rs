//! Many writes at once: `POST <base>/kv/batch/`, all or nothing.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::kv::{checked, deadline, json, telling_repetition};
use super::problem::{Kind, Problem};
use super::request::{self, Parameters};
use super::{App, value};
use crate::limits::{BATCH_BODY_BYTES_MAX, BATCH_ITEMS_MAX, WRITE_DEADLINE};
use crate::storage::{Action, AskedBy, Effect, Fact, Operation, Precondition, Space, Value};
use crate::write_path::{Request, Written};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody {
    items: Vec<Item>,
}

/// One item. What it must and must not have depends on `op`.
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

/// Tells a `null` that is there from a value that is not.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// `POST`: applies all items or none.
pub(super) async fn post(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri, &[])?;
    let body = request::body(&headers, body, BATCH_BODY_BYTES_MAX).await?;
    let body: BatchBody = serde_json::from_slice(&body).map_err(|error| {
        let shape = "{\"items\": [{\"key\", \"value\"} or {\"op\": \"delete\", \"key\"}, …]}";
        Problem::new(Kind::BAD_BODY, format!("the body must be {shape}: {error}"))
    })?;
    let idempotency_key = request::idempotency_key(&headers)?;
    let request = Request { idempotency_key, ..request_of(body.items)? };
    let written = app.write_path.write(request, deadline(WRITE_DEADLINE)).await?;
    Ok(telling_repetition(&written, json(StatusCode::OK, written_json(&written))))
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
            let json = String::from(Box::<str>::from(json));
            Ok(Action::Put(checked(Value::json(request::compact(json.into())?))?))
        }
        (Op::Put, None, Some(text)) => {
            let bytes = value::from_base64(&text).ok_or_else(|| bad("has a value_base64 that is not base64"))?;
            let content_type = item.content_type.ok_or_else(|| bad("has a value_base64 but no content_type"))?;
            if content_type.is_empty() || content_type == Value::JSON || content_type.len() > 255 {
                return Err(bad("has a content_type that is not allowed: 1 to 255 bytes, and JSON goes into value"));
            }
            Ok(Action::Put(checked(Value { content_type, bytes: bytes.into() })?))
        }
        (Op::Put, Some(_), Some(_)) => Err(bad("has both value and value_base64")),
        (Op::Put, None, None) => Err(bad("has no value")),
    }
}

fn written_json(written: &Written) -> String {
    let mut text = format!("{{\"count\":{},\"revision\":{},\"results\":[", written.operations.len(), written.revision);
    for (position, (operation, effect)) in written.operations.iter().zip(&written.effects).enumerate() {
        if position > 0 {
            text.push(',');
        }
        match (effect, &operation.action) {
            (Effect::Put(meta), Action::Put(value)) => {
                value::push_entry(&mut text, &operation.key, *meta, Some(value));
            }
            (effect, _) => {
                text.push_str("{\"key\":");
                value::push_string(&mut text, &operation.key);
                let existed = matches!(effect, Effect::Deleted { existed: true });
                text.push_str(&format!(",\"deleted\":true,\"existed\":{existed}}}"));
            }
        }
    }
    text.push_str("]}");
    text
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
