//! What a node may propose: writes that hooks have judged, and changes of the registry that it can read.
//!
//! Every node follows the registry, so an entry that cannot be read would stop the writes of all. The leader asks this about what
//! other nodes propose.

use serde::de::DeserializeOwned;

use super::catalog::PluginInfo;
use super::history::Change;
use super::{components, history, preparation};
use crate::hooks::Binding;
use crate::storage::{Action, GuardedWrite, HOOKS_PREFIX, Operation, PLUGINS_PREFIX, Space};

/// Whether a node that works as it should could have made a write.
pub(crate) fn is_of_a_node(write: &GuardedWrite) -> bool {
    write.operations.iter().all(|operation| match operation.space {
        Space::Kv => write.hook_epoch.is_some(),
        Space::System => is_of_the_registry(operation),
    })
}

fn is_of_the_registry(operation: &Operation) -> bool {
    let under = |prefix| operation.key.strip_prefix(prefix).is_some_and(|name| !name.is_empty());
    (under(HOOKS_PREFIX) && is_readable::<Binding>(operation))
        || (under(preparation::PREFIX) && is_readable::<Binding>(operation))
        || (under(PLUGINS_PREFIX) && is_readable::<PluginInfo>(operation))
        || (under(history::HISTORY_PREFIX) && is_readable::<Change>(operation))
        || under(components::PREFIX)
}

/// Whether what an operation leaves can be read again. It is not checked further: a hook from before a rule may come back by a
/// rollback.
fn is_readable<T: DeserializeOwned>(operation: &Operation) -> bool {
    match &operation.action {
        Action::Put(value) => serde_json::from_slice::<T>(&value.bytes).is_ok(),
        Action::Delete => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Value;

    #[test]
    fn a_hook_that_cannot_be_read_and_a_write_that_no_hook_judged_are_of_no_node() {
        let put = |space, key: &str, text: &'static str| Operation {
            space,
            key: key.to_owned(),
            action: Action::Put(Value::json(text)),
        };
        let delete = |key: &str| Operation { action: Action::Delete, ..put(Space::System, key, "") };
        let binding = r#"{"plugin": "p"}"#;
        let info = r#"{"name": "p", "digest": "d", "size_bytes": 1, "roles": []}"#;
        let change = r#"{"number": 1, "at_ms": 1, "node": "n", "action": "hook-removed", "hook": "h"}"#;
        for (operation, hook_epoch, is_of_one) in [
            (put(Space::Kv, "a", "1"), Some(0), true),
            (put(Space::Kv, "a", "1"), None, false),
            (put(Space::System, "hooks/h", binding), None, true),
            (put(Space::System, "preparing/h", binding), None, true),
            (put(Space::System, "plugins/p", info), None, true),
            (put(Space::System, "components/d/0000", "x"), None, true),
            (put(Space::System, "history/1", change), None, true),
            (put(Space::System, "plugins/p", "{}"), None, false),
            (put(Space::System, "history/1", "{}"), None, false),
            (delete("hooks/h"), None, true),
            (put(Space::System, "hooks/h", "junk"), None, false),
            (put(Space::System, "preparing/h", "{}"), None, false),
            (put(Space::System, "hooks/", binding), None, false),
            (put(Space::System, "others/x", "{}"), None, false),
            (delete("tokens"), None, false),
        ] {
            let write = GuardedWrite { operations: vec![operation], hook_epoch, ..GuardedWrite::default() };
            assert_eq!(is_of_a_node(&write), is_of_one, "{write:?}");
        }
    }
}
