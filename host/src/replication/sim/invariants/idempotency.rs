//! Idempotency: a named write is applied at most once, and every attempt is told the same outcome.

use std::collections::HashMap;

use super::Violation;
use crate::replication::sim::{clients::once, history::History};
use crate::storage::{Data, Space};

const NAME: &str = "idempotency";

pub(super) fn conclude(history: &History, datas: &[&Data]) -> Result<(), Violation> {
    let mut outcomes = HashMap::new();
    for operation in &history.operations {
        let Some(name) = operation.name() else { continue };
        for data in datas {
            let entry = data.get(Space::Kv, &once(name)).map_err(|error| Violation::new(NAME, error.to_string()))?;
            // No other write touches this key.
            if let Some(entry) = entry.filter(|entry| entry.meta.version != 1) {
                let detail = format!("the write named {name} was applied {} times", entry.meta.version);
                return Err(Violation::new(NAME, detail));
            }
        }
        let Some(outcome) = operation.outcome() else { continue };
        match outcomes.insert(name, outcome) {
            Some(other) if other != outcome => {
                let detail = format!("the write named {name} had the outcomes {other:?} and {outcome:?}");
                return Err(Violation::new(NAME, detail));
            }
            _ => {}
        }
    }
    Ok(())
}
