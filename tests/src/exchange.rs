//! A call as an HTTP exchange: the request that a client sends, and the outcome that the answer tells.

use serde_json::{Value, json};

use crate::client::Answer;
use crate::history::{Consistency, Effect, Item, KEYS, Outcome, Precondition, Request, Seen};

/// A request as method, path, headers and body.
pub(crate) fn encode(object: u64, request: &Request) -> (&'static str, String, Vec<(&'static str, String)>, String) {
    let key_name = |key: usize| format!("object/{object}/{key}");
    let query = |consistency: &Consistency| match consistency {
        Consistency::Strong => "consistency=strong",
        Consistency::Prompt => "",
        Consistency::Local => "consistency=local",
    };
    let json_body = || vec![("content-type", "application/json".to_owned())];
    match request {
        Request::Get(key, consistency) => {
            ("GET", format!("/kv/{}/?{}", key_name(*key), query(consistency)), vec![], String::new())
        }
        Request::Range(consistency) => {
            ("GET", format!("/kv/?prefix=object/{object}/&{}", query(consistency)), vec![], String::new())
        }
        Request::Write { items, .. } if items.len() > 1 => {
            let item = |item: &Item| {
                let mut json = match item.value {
                    Some(value) => json!({ "key": key_name(item.key), "value": value }),
                    None => json!({ "op": "delete", "key": key_name(item.key) }),
                };
                match item.precondition {
                    None => {}
                    Some(Precondition::Absent) => json["if_revision"] = json!(0),
                    Some(Precondition::Revision(revision)) => json["if_revision"] = json!(revision),
                }
                json
            };
            let body = json!({ "items": items.iter().map(item).collect::<Vec<_>>() });
            ("POST", "/kv/batch/".to_owned(), json_body(), body.to_string())
        }
        Request::Write { items, .. } => {
            let item = &items[0];
            let condition = item.precondition.map(|precondition| match precondition {
                Precondition::Absent => ("if-none-match", "*".to_owned()),
                Precondition::Revision(revision) => ("if-match", format!("\"{revision}\"")),
            });
            let path = format!("/kv/{}/", key_name(item.key));
            let (method, mut headers, body) = match item.value {
                Some(value) => ("PUT", json_body(), json!({ "value": value }).to_string()),
                None => ("DELETE", vec![], String::new()),
            };
            headers.extend(condition);
            (method, path, headers, body)
        }
    }
}

/// The outcome in an answer; `None` if the API does not allow the answer.
pub(crate) fn decode(request: &Request, answer: &Answer) -> Option<Outcome> {
    match (request, answer.status) {
        (Request::Write { items, .. }, status) => match (status, &items[..]) {
            (412, _) => {
                let key = answer.json["key"].as_str()?.rsplit_once('/')?.1.parse().ok()?;
                Some(Outcome::PreconditionFailed(key, answer.json["current_revision"].as_u64()))
            }
            (200 | 201, [Item { value: Some(value), .. }]) => {
                let seen = read_entry(&answer.json)?;
                let is_allowed = seen.value == *value && (seen.version == 1) == (status == 201);
                is_allowed.then(|| done(Some(seen.revision), vec![Effect::Put(seen.version)]))
            }
            (204 | 404, [Item { value: None, .. }]) => Some(done(None, vec![Effect::Deleted(status == 204)])),
            (200, _) if items.len() > 1 => read_batch(items, &answer.json),
            (500.., _) => match answer.json["outcome"].as_str()? {
                "not_written" => Some(Outcome::NotWritten),
                "unknown" => Some(Outcome::Unknown),
                _ => None,
            },
            _ => None,
        },
        (_, 500..) => Some(Outcome::Failed),
        (Request::Get(key, consistency), 200) => {
            read_outcome(consistency, answer, vec![(*key, Some(read_entry(&answer.json)?))])
        }
        (Request::Get(key, consistency), 404) => read_outcome(consistency, answer, vec![(*key, None)]),
        (Request::Range(consistency), 200) => {
            let mut entries: Vec<(usize, Option<Seen>)> = (0..KEYS).map(|key| (key, None)).collect();
            for entry in answer.json["results"].as_array()? {
                let key: usize = entry["key"].as_str()?.rsplit_once('/')?.1.parse().ok()?;
                entries.get_mut(key)?.1 = Some(read_entry(entry)?);
            }
            read_outcome(consistency, answer, entries)
        }
        _ => None,
    }
}

fn done(revision: Option<u64>, effects: Vec<Effect>) -> Outcome {
    Outcome::Done { revision, effects }
}

fn read_outcome(consistency: &Consistency, answer: &Answer, entries: Vec<(usize, Option<Seen>)>) -> Option<Outcome> {
    let linearizable = match (answer.header("brink-consistency")?, consistency) {
        ("linearizable", Consistency::Strong | Consistency::Prompt) => true,
        ("local", Consistency::Local | Consistency::Prompt) => false,
        _ => return None,
    };
    let revision = answer.header("brink-revision")?.parse().ok()?;
    Some(Outcome::Read { entries, revision, linearizable })
}

fn read_entry(json: &Value) -> Option<Seen> {
    let number = |name: &str| json[name].as_u64();
    Some(Seen { value: number("value")?, version: number("version")?, revision: number("revision")? })
}

fn read_batch(items: &[Item], json: &Value) -> Option<Outcome> {
    let revision = json["revision"].as_u64()?;
    let results = json["results"].as_array()?;
    let effect = |(item, result): (&Item, &Value)| match item.value {
        Some(value) => {
            let seen = read_entry(result)?;
            (seen.value == value && seen.revision == revision).then_some(Effect::Put(seen.version))
        }
        None => Some(Effect::Deleted(result["existed"].as_bool()?)),
    };
    let effects: Option<Vec<Effect>> = items.iter().zip(results).map(effect).collect();
    (results.len() == items.len()).then_some(())?;
    Some(done(Some(revision), effects?))
}
