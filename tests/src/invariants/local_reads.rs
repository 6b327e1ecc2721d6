//! Reads from one incarnation of a node never go back in time, whether linearizable or local.

use std::collections::HashMap;
use std::sync::Arc;

use super::violation::Violation;
use crate::history::{Call, Outcome};

const INVARIANT: &str = "reads from one node never go back in time";

/// The state that earlier answers have shown: the store's revision, and the newest revision of each key.
#[derive(Default)]
struct Known<'a> {
    store: Option<(u64, &'a Arc<Call>)>,
    keys: HashMap<(u64, usize), (u64, &'a Arc<Call>)>,
}

pub(super) fn check(calls: &[Arc<Call>]) -> Result<(), Violation> {
    let mut incarnations: HashMap<(usize, u64), Vec<&Arc<Call>>> = HashMap::new();
    for call in calls {
        if let (Outcome::Read { .. }, Some(incarnation)) = (&call.outcome, call.incarnation) {
            incarnations.entry((call.node, incarnation)).or_default().push(call);
        }
    }
    incarnations.into_values().try_for_each(|reads| check_incarnation(&reads))
}

fn check_incarnation(reads: &[&Arc<Call>]) -> Result<(), Violation> {
    let mut ended = reads.to_vec();
    ended.sort_by_key(|call| call.completed);
    let mut ended = ended.into_iter().peekable();
    let mut known = Known::default();
    for call in reads {
        while let Some(earlier) = ended.next_if(|earlier| earlier.completed < call.invoked) {
            known.learn(earlier);
        }
        known.check(call)?;
    }
    Ok(())
}

impl<'a> Known<'a> {
    fn learn(&mut self, call: &'a Arc<Call>) {
        let Outcome::Read { entries, revision, .. } = &call.outcome else { return };
        if self.store.is_none_or(|(known, _)| known < *revision) {
            self.store = Some((*revision, call));
        }
        for (key, entry) in entries {
            // An absent key was absent at the answer's revision or later.
            let newest = entry.map_or(*revision, |seen| seen.revision);
            let known = self.keys.entry((call.object, *key)).or_insert((newest, call));
            if known.0 < newest {
                *known = (newest, call);
            }
        }
    }

    fn check(&self, call: &Arc<Call>) -> Result<(), Violation> {
        let Outcome::Read { entries, revision, .. } = &call.outcome else { return Ok(()) };
        if let Some((known, earlier)) = self.store
            && *revision < known
        {
            let what = format!("the store was at revision {known}, and then at {revision}");
            return Err(Violation::new(INVARIANT, what, &[earlier, call]));
        }
        for (key, entry) in entries {
            if let (Some(seen), Some((known, earlier))) = (entry, self.keys.get(&(call.object, *key)))
                && seen.revision < *known
            {
                let what = format!("key {key} was at revision {known}, and then at {}", seen.revision);
                return Err(Violation::new(INVARIANT, what, &[earlier, call]));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::{local, seen};
    use super::*;

    #[test]
    fn stale_reads_may_stay_stale() {
        let reads = [local(1, 0..1, seen(1, 1, 1), 1), local(2, 2..3, seen(1, 1, 1), 4), local(3, 4..5, None, 6)];
        assert!(check(&reads).is_ok());
    }

    #[test]
    fn an_older_entry_is_found() {
        assert!(check(&[local(1, 0..1, seen(2, 2, 2), 2), local(2, 2..3, seen(1, 1, 1), 2)]).is_err());
    }

    #[test]
    fn an_older_store_is_found() {
        assert!(check(&[local(1, 0..1, None, 5), local(2, 2..3, None, 4)]).is_err());
    }

    #[test]
    fn a_deleted_entry_does_not_come_back() {
        assert!(check(&[local(1, 0..1, None, 5), local(2, 2..3, seen(1, 1, 4), 5)]).is_err());
    }

    #[test]
    fn concurrent_reads_and_other_incarnations_are_not_compared() {
        assert!(check(&[local(1, 0..3, None, 5), local(2, 2..4, None, 4)]).is_ok());
        let mut restarted = Call::clone(&local(2, 2..3, None, 4));
        restarted.incarnation = Some(2);
        assert!(check(&[local(1, 0..1, None, 5), Arc::new(restarted)]).is_ok());
    }
}
