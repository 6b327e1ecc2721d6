//! The answers of plugins, checked and translated: positions become those of the request, and texts are cut.

use bytes::Bytes;

use super::error::{Rejection, Violation};
use super::hook::Hook;
use crate::json;
use crate::limits;
use crate::sandbox::{cut, wit};
use crate::storage::command::{Action, Operation, Value};

/// New values of writes, by their positions in the request.
pub(super) type NewValues = Vec<(usize, Bytes)>;

/// A write as the plugin sees it.
pub(super) fn as_write(operation: &Operation) -> wit::Write<'_> {
    let (content_type, value) = match &operation.action {
        Action::Put(value) => (value.content_type.as_str(), Some(&*value.bytes)),
        Action::Delete => ("", None),
    };
    wit::Write { key: &operation.key, content_type, value }
}

/// The values that a transformer returned for the operations at these positions. An error says why they cannot be used.
pub(super) fn new_values(
    operations: &[Operation],
    positions: &[usize],
    replacements: Vec<wit::Replacement>,
) -> Result<NewValues, String> {
    let mut is_replaced = vec![false; positions.len()];
    let mut values = Vec::with_capacity(replacements.len().min(positions.len()));
    for wit::Replacement { item, value } in replacements {
        let index = item as usize;
        let (Some(position), Some(is_replaced)) = (positions.get(index), is_replaced.get_mut(index)) else {
            return Err(format!("it replaces write {item} of {}", positions.len()));
        };
        if std::mem::replace(is_replaced, true) {
            return Err(format!("it replaces write {item} twice"));
        }
        let Some(Operation { action: Action::Put(old), .. }) = operations.get(*position) else {
            return Err(format!("it gives a value to write {item}, which is a deletion"));
        };
        values.push((*position, new_value(item, old, value)?));
    }
    Ok(values)
}

fn new_value(item: u32, old: &Value, bytes: Vec<u8>) -> Result<Bytes, String> {
    let mut bytes = Bytes::from(bytes);
    if old.is_json() {
        bytes = json::compact(bytes).map_err(|error| format!("the new value of write {item} is not JSON ({error})"))?;
    }
    if bytes.len() > limits::VALUE_BYTES_MAX {
        let (found, limit) = (bytes.len(), limits::VALUE_BYTES_MAX);
        return Err(format!("the new value of write {item} has {found} bytes; at most {limit} are allowed"));
    }
    Ok(bytes)
}

/// A plugin's refusal of the operations at these positions.
pub(super) fn rejection(hook: &Hook, positions: &[usize], rejection: wit::Rejection, has_read: bool) -> Rejection {
    let text = |text: String| cut(&text, limits::PLUGIN_TEXT_BYTES_MAX).to_owned();
    let position = |item: u32| positions.get(item as usize).and_then(|position| u32::try_from(*position).ok());
    let violations = rejection.violations.into_iter().take(limits::PLUGIN_VIOLATIONS_MAX);
    Rejection {
        hook: hook.name().to_owned(),
        plugin: hook.plugin().name().to_owned(),
        code: text(rejection.code),
        message: text(rejection.message),
        violations: violations
            .map(|violation| Violation {
                item: position(violation.item),
                path: text(violation.path),
                code: text(violation.code),
                message: text(violation.message),
            })
            .collect(),
        has_read,
    }
}
