//! What a node shows never goes back in time while its process lives, linearizable or not.

use std::collections::HashMap;
use std::sync::Arc;

use super::Violation;
use crate::history::{Call, Outcome};

const RULE: &str = "the reads of one node never go back in time";

/// What was known when an answer came: the store's revision, and the newest revision of a key's entry.
#[derive(Default)]
struct Known<'a> {
    store: Option<(u64, &'a Arc<Call>)>,
    keys: HashMap<(u64, usize), (u64, &'a Arc<Call>)>,
}

pub(super) fn check(calls: &[Arc<Call>]) -> Result<(), Violation> {
    let mut lives: HashMap<(usize, u64), Vec<&Arc<Call>>> = HashMap::new();
    for call in calls {
        if let (Outcome::Read { .. }, Some(life)) = (&call.outcome, call.life) {
            lives.entry((call.node, life)).or_default().push(call);
        }
    }
    lives.into_values().try_for_each(|reads| check_life(&reads))
}

fn check_life(reads: &[&Arc<Call>]) -> Result<(), Violation> {
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
            return Err(Violation::new(RULE, what, &[earlier, call]));
        }
        for (key, entry) in entries {
            if let (Some(seen), Some((known, earlier))) = (entry, self.keys.get(&(call.object, *key)))
                && seen.revision < *known
            {
                let what = format!("key {key} was at revision {known}, and then at {}", seen.revision);
                return Err(Violation::new(RULE, what, &[earlier, call]));
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
    fn old_is_fine_as_long_as_it_does_not_get_older() {
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
    fn a_key_that_was_gone_does_not_come_back_as_it_was() {
        assert!(check(&[local(1, 0..1, None, 5), local(2, 2..3, seen(1, 1, 4), 5)]).is_err());
    }

    #[test]
    fn reads_at_the_same_time_and_in_another_life_are_not_compared() {
        assert!(check(&[local(1, 0..3, None, 5), local(2, 2..4, None, 4)]).is_ok());
        let mut reborn = Call::clone(&local(2, 2..3, None, 4));
        reborn.life = Some(2);
        assert!(check(&[local(1, 0..1, None, 5), Arc::new(reborn)]).is_ok());
    }
}
