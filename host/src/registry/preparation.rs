//! Hooks that every node prepares before they are in force.
//!
//! A preparation is an entry `preparing/<name>` with the binding that the hook will have. It changes no epoch, and nothing judges
//! by it. Each node that sees it compiles the plugin, pre-initializes it, and says so with the revision it has prepared. The
//! write that puts the hook in force removes the entry. One that fails leaves it; the next preparation removes it after
//! [`ABANDONED_AFTER_MS`].

use super::entry::{decode, delete, name_of, put_json, read_prefix};
use super::error::Error;
use crate::hooks::Binding;
use crate::limits::{BIND_DEADLINE, HOOKS_PREPARED_MAX};
use crate::storage::{Data, Operation, Precondition};

/// Keys of the system space under this prefix are preparations.
pub(super) const PREFIX: &str = "preparing/";

/// Age after which nobody waits for a preparation any more.
const ABANDONED_AFTER_MS: u64 = 2 * BIND_DEADLINE.as_millis() as u64;

/// A hook that is being prepared.
pub(super) struct Preparation {
    pub(super) name: String,
    pub(super) binding: Binding,
    pub(super) revision: u64,
    since_ms: u64,
}

/// All preparations, and the precondition that they have not changed.
pub(super) fn read(data: &Data) -> Result<(Vec<Preparation>, Precondition), Error> {
    let (entries, unchanged) = read_prefix(data, PREFIX)?;
    let preparation = |entry| {
        Ok(Preparation {
            name: name_of(entry, PREFIX),
            binding: decode(entry)?,
            revision: entry.meta.revision,
            since_ms: entry.meta.updated_at_ms,
        })
    };
    Ok((entries.iter().map(preparation).collect::<Result<_, Error>>()?, unchanged))
}

/// The revision from which on a hook is being prepared with this binding, if it is.
pub(super) fn revision_of(all: &[Preparation], name: &str, binding: &Binding) -> Option<u64> {
    let same = all.iter().find(|preparation| preparation.name == name && preparation.binding == *binding);
    same.map(|preparation| preparation.revision)
}

/// The operations that have a hook prepared, and remove what was abandoned.
pub(super) fn begin(all: &[Preparation], name: &str, binding: &Binding, now_ms: u64) -> Result<Vec<Operation>, Error> {
    let others = all.iter().filter(|preparation| preparation.name != name);
    let (abandoned, others): (Vec<_>, Vec<_>) =
        others.partition(|other| now_ms > other.since_ms.saturating_add(ABANDONED_AFTER_MS));
    if others.len() >= HOOKS_PREPARED_MAX {
        return Err(Error::TooManyPreparations);
    }
    let mut operations = vec![put_json(format!("{PREFIX}{name}"), binding)?];
    operations.extend(abandoned.into_iter().map(|abandoned| end(&abandoned.name)));
    Ok(operations)
}

/// The operation that ends the preparation of a hook.
pub(super) fn end(name: &str) -> Operation {
    delete(format!("{PREFIX}{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preparation(number: usize, since_ms: u64) -> Preparation {
        let binding = Binding::parse(br#"{"plugin": "p"}"#).unwrap();
        Preparation { name: number.to_string(), binding, revision: number as u64, since_ms }
    }

    #[test]
    fn few_hooks_are_prepared_at_once_and_abandoned_ones_make_room() {
        let mut all: Vec<_> = (0..HOOKS_PREPARED_MAX).map(|number| preparation(number, 0)).collect();
        let binding = all[0].binding.clone();
        assert!(matches!(begin(&all, "new", &binding, 1), Err(Error::TooManyPreparations)));
        // The same hook again.
        assert_eq!(begin(&all, "0", &binding, 1).unwrap().len(), 1);
        let later_ms = ABANDONED_AFTER_MS + 1;
        all[1].since_ms = 1;
        assert_eq!(begin(&all, "new", &binding, later_ms).unwrap().len(), HOOKS_PREPARED_MAX);
    }

    #[test]
    fn the_same_binding_is_not_prepared_twice() {
        let all = [preparation(3, 0)];
        assert_eq!(revision_of(&all, "3", &all[0].binding), Some(3));
        let other = Binding::parse(br#"{"plugin": "q"}"#).unwrap();
        assert_eq!(revision_of(&all, "3", &other), None);
        assert_eq!(revision_of(&all, "4", &all[0].binding), None);
    }
}
