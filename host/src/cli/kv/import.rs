//! `brink kv import`: writes records in atomic batches.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;

use super::super::{Client, Common, Failure, Method, Request, io};
use crate::json;
use crate::limits::{BATCH_ITEMS_MAX, JSON_LEVELS_MAX};

/// Default number of records in a batch.
const BATCH_RECORDS: usize = 500;

/// Maximum bytes of records in a batch; a larger record gets its own batch.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Attempts to write a batch.
const ATTEMPTS_MAX: u32 = 8;

/// Pause between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Write records in batches
///
/// Without --items, the file has lines of JSON as `brink kv export` writes them. With --items, it is one JSON document
/// with an array of objects: each object is a value, and its key is --prefix followed by its field --key-field.
///
/// Input that is not JSON, or has a member twice, is refused before anything is written. A refused record stops the import. Its
/// batch is not written; earlier batches stay written.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The input file; - is standard input
    file: PathBuf,
    /// JSON pointer to the array of records in the document; empty if the document is the array
    #[arg(long, value_name = "POINTER", requires = "key_field")]
    items: Option<String>,
    /// The field of a record with its key, a string or a number
    #[arg(long, value_name = "FIELD", requires = "items")]
    key_field: Option<String>,
    /// Prefix of the keys of --items
    #[arg(long, default_value = "", requires = "items")]
    prefix: String,
    /// Maximum number of records in a batch
    #[arg(long, value_name = "N", default_value_t = BATCH_RECORDS)]
    batch: usize,
    #[command(flatten)]
    common: Common,
}

struct Record {
    /// The JSON of the batch item.
    item: String,
    /// The key; `None` if a line has none, which the node refuses.
    key: Option<String>,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    if !(1..=BATCH_ITEMS_MAX).contains(&args.batch) {
        return Err(Failure::Usage(format!("--batch: {}: it must be 1 to {BATCH_ITEMS_MAX}", args.batch)));
    }
    let client = Client::new(&args.common)?;
    let text = String::from_utf8(io::read_file(&args.file)?)
        .map_err(|_| Failure::Usage(format!("{} is not UTF-8 text", args.file.display())))?;
    let records = match (&args.items, &args.key_field) {
        (Some(items), Some(key_field)) => records_of_document(&text, items, key_field, &args.prefix),
        _ => records_of_lines(&text),
    };
    let records = records.map_err(|wrong| Failure::Usage(format!("{}: {wrong}", args.file.display())))?;

    let bar = io::progress(records.len() as u64, "records");
    let mut first = 0;
    while first < records.len() {
        let batch = next_batch(records.get(first..).unwrap_or_default(), args.batch);
        write(&client, batch).await.map_err(|failure| locate(failure, batch, first))?;
        first += batch.len();
        bar.set_position(first as u64);
    }
    bar.finish_and_clear();
    io::line(&format!("{} records imported", records.len()))
}

/// The records of lines of JSON; empty lines are skipped. A line that a node would refuse as JSON is refused before any is sent.
fn records_of_lines(text: &str) -> Result<Vec<Record>, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let wrong = |error: &dyn Display| format!("line {}: not a JSON object: {error}", number + 1);
            let fields: HashMap<String, &RawValue> = serde_json::from_str(line).map_err(|error| wrong(&error))?;
            json::check(line.as_bytes(), 1 + JSON_LEVELS_MAX).map_err(|error| wrong(&error))?;
            let key = fields.get("key").and_then(|key| serde_json::from_str(key.get()).ok());
            Ok(Record { item: line.to_owned(), key })
        })
        .collect()
}

/// The records of a document. Values stay text, so that no digit of a number is lost.
fn records_of_document(text: &str, pointer: &str, key_field: &str, prefix: &str) -> Result<Vec<Record>, String> {
    let document: &RawValue = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let around = 1 + pointer.matches('/').count();
    json::check(text.as_bytes(), around + JSON_LEVELS_MAX).map_err(|error| format!("not JSON: {error}"))?;
    let records = at(document, pointer)?;
    let records: Vec<&RawValue> =
        serde_json::from_str(records.get()).map_err(|_| format!("there is no array at {pointer:?}"))?;
    let record_of = |(position, record): (usize, &RawValue)| {
        let fields: HashMap<String, &RawValue> =
            serde_json::from_str(record.get()).map_err(|_| format!("{pointer}/{position} is not an object"))?;
        let key = match fields.get(key_field).and_then(|key| serde_json::from_str(key.get()).ok()) {
            Some(Value::String(key)) => format!("{prefix}{key}"),
            Some(Value::Number(key)) => format!("{prefix}{key}"),
            _ => return Err(format!("{pointer}/{position} has no string or number {key_field:?}")),
        };
        let item = format!("{{\"key\":{},\"value\":{}}}", Value::from(key.as_str()), record.get());
        Ok(Record { item, key: Some(key) })
    };
    records.into_iter().enumerate().map(record_of).collect()
}

/// The value at a JSON pointer (RFC 6901). Only objects are looked into, not arrays.
fn at<'a>(document: &'a RawValue, pointer: &str) -> Result<&'a RawValue, String> {
    if pointer.is_empty() {
        return Ok(document);
    }
    let path = pointer.strip_prefix('/').ok_or_else(|| {
        format!("--items: {pointer:?}: it must be a JSON pointer, empty or beginning with a slash, such as /639-3")
    })?;
    path.split('/').try_fold(document, |value, token| {
        if !token.split('~').skip(1).all(|escaped| escaped.starts_with(['0', '1'])) {
            return Err(format!("--items: {pointer:?}: `~` is written `~0` and `/` is written `~1`"));
        }
        let name = token.replace("~1", "/").replace("~0", "~");
        let members: HashMap<String, &'a RawValue> = serde_json::from_str(value.get()).unwrap_or_default();
        members.get(&name).copied().ok_or_else(|| format!("there is no member {name:?} on the way to {pointer:?}"))
    })
}

/// The first of the records, as many as fit into one batch.
fn next_batch(records: &[Record], records_max: usize) -> &[Record] {
    let mut bytes = 0;
    let fits = |record: &&Record| {
        bytes += record.item.len();
        bytes <= BATCH_BYTES_MAX
    };
    let count = records.iter().take(records_max).take_while(fits).count().max(1);
    records.get(..count).unwrap_or(records)
}

/// Writes one batch. Repeats it only after failures that certainly wrote nothing.
async fn write(client: &Client, batch: &[Record]) -> Result<(), Failure> {
    let items: Vec<&str> = batch.iter().map(|record| record.item.as_str()).collect();
    let request = Request::new(Method::POST, "/kv/batch/")
        .body("application/json", format!("{{\"items\":[{}]}}", items.join(",")));
    for _ in 1..ATTEMPTS_MAX {
        match client.send(&request).await {
            Err(Failure::Unreachable { .. }) => {}
            Err(Failure::Refused(refusal)) if refusal.is_retryable() => {}
            result => return result.map(drop),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    client.send(&request).await.map(drop)
}

/// Adds the refused record's place in the import to a failure.
fn locate(failure: Failure, batch: &[Record], first: usize) -> Failure {
    let Failure::Refused(refusal) = failure else { return failure };
    let item = refusal.problem["item"].as_u64().or_else(|| refusal.violations().next()?["item"].as_u64());
    let item = item.and_then(|item| usize::try_from(item).ok());
    let place = match item.and_then(|item| Some((first + item + 1, &batch.get(item)?.key))) {
        Some((number, Some(key))) => format!("record {number} with key {key:?}"),
        Some((number, None)) => format!("record {number}"),
        None => format!("records {} to {}", first + 1, first + batch.len()),
    };
    Failure::Record { place, refusal, imported: first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_in_a_document() {
        let text = r#"{"a/b": [{"id": "x", "n": 1.50}, {"id": 7}]}"#;
        let records = records_of_document(text, "/a~1b", "id", "p/").unwrap();
        let items: Vec<_> = records.iter().map(|record| record.item.as_str()).collect();
        assert_eq!(items, [r#"{"key":"p/x","value":{"id": "x", "n": 1.50}}"#, r#"{"key":"p/7","value":{"id": 7}}"#]);
    }

    #[test]
    fn a_wrong_document_is_named_by_place() {
        let wrong = |text, pointer| records_of_document(text, pointer, "id", "").err().unwrap();
        assert!(wrong("{", "").contains("not JSON"));
        assert!(wrong("{}", "/a").contains("\"a\""));
        assert!(wrong("{}", "a").contains("begin"));
        assert!(wrong("{\"~2\": []}", "/~2").contains("`~0`"));
        assert!(wrong("{\"a\": 1}", "/a").contains("no array"));
        assert!(wrong("[{\"id\": 1}, 2]", "").contains("/1 is not an object"));
        assert!(wrong("[{\"id\": null}]", "").contains("/0 has no string"));
        assert!(records_of_lines("{}\n\n[").err().unwrap().contains("line 3"));
    }

    #[test]
    fn a_member_that_is_there_twice_is_refused_before_anything_is_sent() {
        let lines = |line: &str| records_of_lines(&format!("{{\"key\":\"a\",\"value\":1}}\n{line}\n")).err().unwrap();
        for line in [r#"{"key":"b","key":"c","value":1}"#, r#"{"key":"b","value":[{"x":1,"\u0078":2}]}"#] {
            let wrong = lines(line);
            assert!(wrong.contains("line 2") && wrong.contains("twice"), "{wrong}");
        }
        for text in [r#"[{"id":1,"id":2}]"#, r#"{"a":[],"a":[{"id":1}]}"#, r#"[{"id":1,"x":{"y":1,"y":2}}]"#] {
            let wrong = records_of_document(text, "", "id", "").err().unwrap();
            assert!(wrong.contains("twice"), "{wrong}");
        }
    }

    #[test]
    fn a_value_may_nest_as_deep_as_a_node_takes_it() {
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        let line = |levels| records_of_lines(&format!("{{\"key\":\"a\",\"value\":{}}}", nested(levels)));
        assert!(line(JSON_LEVELS_MAX).is_ok() && line(JSON_LEVELS_MAX + 1).is_err());
        let document = |levels| format!("{{\"a\":{{\"b\":[{{\"id\":1,\"x\":{}}}]}}}}", nested(levels));
        assert!(records_of_document(&document(JSON_LEVELS_MAX - 1), "/a/b", "id", "").is_ok());
        assert!(records_of_document(&document(JSON_LEVELS_MAX), "/a/b", "id", "").is_err());
    }

    #[test]
    fn a_batch_is_bounded_in_records_and_bytes() {
        let records =
            |bytes: usize| -> Vec<Record> { (0..5).map(|_| Record { item: "x".repeat(bytes), key: None }).collect() };
        assert_eq!(next_batch(&records(10), 3).len(), 3);
        assert_eq!(next_batch(&records(BATCH_BYTES_MAX / 2), 5).len(), 2);
        assert_eq!(next_batch(&records(BATCH_BYTES_MAX + 1), 5).len(), 1);
    }
}
