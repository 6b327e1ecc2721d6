//! `brink plugin run`: a plugin's verdict on one write.

use std::sync::Arc;

use super::super::failure::Failure;
use super::super::output;
use super::local::{self, Target};
use super::trial::WriteArgs;
use crate::storage::command::Action;

/// The arguments.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    write: WriteArgs,
}

/// Runs the command, which fails if the plugin rejects the write.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    local::print_log_lines();
    let trial = args.write.trial(&args.target)?;
    let local = args.target.load(Arc::new(()))?;
    let hook = local.bind(&trial.config)?;
    let judged = local::judge(&local::set(&hook), trial.write.clone(), &trial.store)?;
    match judged.operations.first().map(|operation| &operation.action) {
        Some(Action::Put(value)) if judged.operations.first() != Some(&trial.write) => {
            output::line("accepted, with another value:")?;
            output::bytes(&value.bytes)?;
            output::line("")
        }
        _ => output::line("accepted"),
    }
}
