//! Revisions of the store: every write has a revision of its own, they grow with every write that starts after another one
//! has ended, and a strong read shows every write acknowledged before its start. This also finds lost writes, across all
//! objects.

use std::sync::Arc;

use super::violation::Violation;
use crate::history::{Call, Outcome};

const INVARIANT: &str = "revisions grow with every write, and strong reads show all acknowledged writes";

pub(super) fn check(calls: &[Arc<Call>]) -> Result<(), Violation> {
    let mut written: Vec<(u64, &Arc<Call>)> =
        calls.iter().filter_map(|call| Some((call.written_revision()?, call))).collect();
    written.sort_by_key(|(revision, _)| *revision);
    for pair in written.windows(2) {
        if let [(revision, one), (next, other)] = pair
            && revision == next
        {
            return Err(Violation::new(INVARIANT, format!("two writes have revision {revision}"), &[one, other]));
        }
    }

    let mut ended = written;
    ended.sort_by_key(|(_, call)| call.completed);
    let mut ended = ended.into_iter().peekable();
    let mut newest: Option<(u64, &Arc<Call>)> = None;
    for call in calls {
        while let Some((revision, earlier)) = ended.next_if(|(_, earlier)| earlier.completed < call.invoked) {
            if newest.is_none_or(|(newest, _)| newest < revision) {
                newest = Some((revision, earlier));
            }
        }
        let Some((newest, earlier)) = newest else { continue };
        match &call.outcome {
            Outcome::Done { revision: Some(revision), .. } if *revision <= newest => {
                let what = format!("revision {revision} was assigned after {newest} was acknowledged");
                return Err(Violation::new(INVARIANT, what, &[earlier, call]));
            }
            Outcome::Read { revision, linearizable: true, .. } if *revision < newest => {
                let what = format!("a strong read shows revision {revision} after {newest} was acknowledged");
                return Err(Violation::new(INVARIANT, what, &[earlier, call]));
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::samples::{call, done, get, local, put};
    use super::*;

    #[test]
    fn overlapping_writes_may_have_any_order() {
        let one = call(1, 0..5, put(0, 1), done(1, 2));
        let other = call(2, 1..4, put(1, 2), done(1, 1));
        assert!(check(&[one, other, get(3, 6..7, None, 2)]).is_ok());
    }

    #[test]
    fn two_writes_with_one_revision_are_found() {
        let one = call(1, 0..5, put(0, 1), done(1, 2));
        let other = call(2, 1..4, put(1, 2), done(1, 2));
        assert!(check(&[one, other]).is_err());
    }

    #[test]
    fn a_revision_that_goes_back_is_found() {
        let one = call(1, 0..1, put(0, 1), done(1, 2));
        let other = call(2, 2..3, put(1, 2), done(1, 1));
        assert!(check(&[one, other]).is_err());
    }

    #[test]
    fn a_strong_read_without_an_acknowledged_write_is_found() {
        let write = call(1, 0..1, put(1, 1), done(1, 2));
        assert!(check(&[write.clone(), get(2, 2..3, None, 1)]).is_err());
        assert!(check(&[write, local(2, 2..3, None, 1)]).is_ok());
    }
}
