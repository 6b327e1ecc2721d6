//! The API allows every answer: its status, the outcome of a failed write, and the same answer to each repetition of an
//! idempotent write.

use std::sync::Arc;

use super::violation::Violation;
use crate::history::{Call, Outcome};

const INVARIANT: &str = "the API allows every answer";

pub(super) fn check(calls: &[Arc<Call>]) -> Result<(), Violation> {
    for call in calls {
        if let Outcome::Invalid(what) = &call.outcome {
            return Err(Violation::new(INVARIANT, what, &[call]));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::samples::{call, put};
    use super::*;

    #[test]
    fn an_invalid_answer_is_found() {
        let wrong = call(2, 0..1, put(0, 2), Outcome::Invalid("418".to_owned()));
        let fine = call(1, 0..1, put(0, 1), Outcome::Unknown);
        assert!(check(&[fine.clone(), wrong]).is_err());
        assert!(check(&[fine]).is_ok());
    }
}
