//! Many writes at once: `POST <base>/kv/batch/`, all or nothing.

use std::collections::HashMap;

use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use tokio::time::Instant;

use super::entry;
use super::item::Item;
use crate::api::access::Grant;
use crate::api::problem::{Kind, Problem};
use crate::api::request::{self, Call};
use crate::api::{answer, body, browser};
use crate::limits::{BATCH_BODY_BYTES_MAX, BATCH_ITEMS_MAX, WRITE_DEADLINE};
use crate::write_path::Request;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody {
    items: Vec<Item>,
}

pub(crate) async fn post(Call { app, grant, headers, body, .. }: Call) -> Result<Response, Problem> {
    let body = body::read(&app, &headers, body, BATCH_BODY_BYTES_MAX).await?;
    let shape = "{\"items\": [{\"key\", \"value\"} or {\"op\": \"delete\", \"key\"}, …]}";
    let BatchBody { items } = request::json(&body.bytes, shape)?;
    let idempotency_key = request::idempotency_key(&headers)?;
    let request = Request { idempotency_key, ..request_of(items, &grant)? };
    let written = app.write_path.write(request, Instant::now() + WRITE_DEADLINE).await?;
    let mut response = answer::json(StatusCode::OK, entry::batch(&written));
    browser::contain(&mut response);
    answer::set_repeated(&mut response, written.repeated);
    Ok(response)
}

fn request_of(items: Vec<Item>, grant: &Grant) -> Result<Request, Problem> {
    if items.is_empty() || items.len() > BATCH_ITEMS_MAX {
        let detail = format!("the batch has {} items; a batch has 1 to {BATCH_ITEMS_MAX}", items.len());
        return Err(Problem::new(if items.is_empty() { Kind::BAD_BODY } else { Kind::TOO_LARGE }, detail));
    }
    let mut seen: HashMap<String, usize> = HashMap::with_capacity(items.len());
    let mut operations = Vec::with_capacity(items.len());
    let mut preconditions = Vec::new();
    for (position, item) in items.into_iter().enumerate() {
        let at = |problem: Problem| problem.with("item", position);
        if let Some(first) = seen.insert(item.key.clone(), position) {
            let detail = format!("items {first} and {position} have the same key {:?}", item.key);
            return Err(at(Problem::new(Kind::DUPLICATE_KEY, detail)));
        }
        if item.idempotency_key.is_some() {
            let detail = "a batch is one write: its name goes into the header Idempotency-Key, not into an item";
            return Err(at(Problem::new(Kind::BAD_BODY, detail)));
        }
        let (operation, precondition) = item.check(grant).map_err(at)?;
        operations.push(operation);
        preconditions.extend(precondition);
    }
    Ok(Request { operations, preconditions, idempotency_key: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::access::Rights;
    use crate::storage::{Action, Fact, Value};

    fn request(items: &str) -> Result<Request, Problem> {
        request_of(serde_json::from_str(items).unwrap(), &Grant::new(Rights::WRITE, None))
    }

    #[test]
    fn each_item_must_be_covered() {
        let grant = Grant::new(Rights::WRITE, Some(["a/".to_owned()].into()));
        let asked = |items: &str| request_of(serde_json::from_str(items).unwrap(), &grant);
        assert_eq!(asked(r#"[{"key":"a/1","value":1},{"op":"delete","key":"a/2"}]"#).unwrap().operations.len(), 2);
        for items in [
            r#"[{"key":"a/1","value":1},{"key":"b","value":1}]"#,
            r#"[{"key":"a/1","value":1},{"op":"delete","key":"a"}]"#,
            r#"[{"key":"a/1","value":1},{"key":"b","value":1,"if_revision":0}]"#,
        ] {
            let problem = asked(items).unwrap_err().text("");
            assert!(problem.contains(":forbidden") && problem.contains(r#""item":1"#), "{problem}");
        }
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
            r#"[{"key":"a","value_base64":"AA==","content_type":""}]"#,
            r#"[{"key":"a","value_base64":"AA==","content_type":"\u001b[2J"}]"#,
            r#"[{"key":"a","value_base64":"AA==","content_type":"x/é"}]"#,
            r#"[{"key":"a","value_base64":"MQ==","content_type":"Application/JSON; charset=utf-8"}]"#,
            r#"[{"key":"a","value_base64":"AA==","content_type":"x/y+json"}]"#,
            r#"[{"key":"a","value":{"x":1,"x":2}}]"#,
            r#"[{"key":"a","value":1,"idempotency_key":"n"}]"#,
        ];
        for items in wrong {
            assert!(request(items).is_err(), "{items}");
        }
    }
}
