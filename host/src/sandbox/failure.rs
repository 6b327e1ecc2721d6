//! Why a guest stopped: wasmtime's error, and what the host state knows beside it, as an [`Error`].

use wasmtime::{PoolConcurrencyLimitError, Trap};

use super::error::Error;
use super::host_state::{HostReads, HostState};
use super::limiter::{CallLimits, Refused};
use super::text::{cut, one_line};
use super::wasi::Exit;
use crate::limits;

/// wasmtime's message when a guest passes too much to the host. The error's type is private to wasmtime, so its text has
/// to do; a test fails if it changes.
const FUEL_EXHAUSTED: &str = "fuel allocated for hostcalls has been exhausted";

/// Explains why the instance of this state stopped.
pub(super) fn explain<R: HostReads>(error: &wasmtime::Error, limits: CallLimits, state: &mut HostState<R>) -> Error {
    let trap = error.downcast_ref::<Trap>();
    if trap == Some(&Trap::Interrupt) {
        let deadline_ms = u64::try_from(limits.deadline.as_millis()).unwrap_or(u64::MAX);
        return Error::TimedOut { deadline_ms };
    }
    if error.is::<PoolConcurrencyLimitError>() {
        return Error::Busy;
    }
    if let Some(Refused { what, asked, limit }) = state.limiter.refused() {
        return Error::MemoryLimit { what, asked, limit };
    }
    let reason = format!("{error:#}");
    if reason.contains(FUEL_EXHAUSTED) {
        return Error::OutputLimit { limit_bytes: limits.output_bytes };
    }
    let reason = match trap {
        Some(Trap::UnreachableCodeReached) => "it aborted".to_owned(),
        Some(Trap::StackOverflow) => "its stack is full".to_owned(),
        Some(trap) => trap.to_string(),
        None if error.is::<Exit>() => Exit.to_string(),
        None => match forbidden_import(&reason) {
            Some(import) => format!("it called `{import}`, which plugins do not have"),
            None => one_line(cut(&reason, limits::PLUGIN_TEXT_BYTES_MAX)),
        },
    };
    let last_words = state.lines.last_words();
    let message = if last_words.is_empty() { reason } else { format!("{reason}: {last_words}") };
    Error::Trapped { message }
}

/// The import named by wasmtime's message for an import that traps.
fn forbidden_import(reason: &str) -> Option<&str> {
    let (_, rest) = reason.split_once("unknown import: `")?;
    Some(rest.split_once('`')?.0)
}
