//! Every answer is one that a node may give: a known status, an outcome where a write failed, the same answer to every
//! repetition of a named write.

use std::sync::Arc;

use super::Violation;
use crate::history::{Call, Outcome};

const RULE: &str = "every answer is one that a node may give";

pub(super) fn check(calls: &[Arc<Call>]) -> Result<(), Violation> {
    for call in calls {
        if let Outcome::Wrong(what) = &call.outcome {
            return Err(Violation::new(RULE, what, &[call]));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::samples::{call, put};
    use super::*;

    #[test]
    fn a_wrong_answer_is_found() {
        let wrong = call(2, 0..1, put(0, 2), Outcome::Wrong("418".to_owned()));
        let fine = call(1, 0..1, put(0, 1), Outcome::Unknown);
        assert!(check(&[fine.clone(), wrong]).is_err());
        assert!(check(&[fine]).is_ok());
    }
}
