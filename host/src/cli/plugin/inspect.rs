//! `brink plugin inspect`: the roles, rights and size of a component.

use std::sync::Arc;

use serde_json::json;

use super::super::failure::Failure;
use super::super::output::{self, Format, mebibytes, micros};
use super::local::Target;
use crate::hooks::{HOOKS_VERSION, Role};

/// The arguments.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    #[command(flatten)]
    target: Target,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Format,
}

/// Runs the command.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let local = args.target.load(Arc::new(()))?;
    let plugin = &local.plugin;
    let reads = plugin.imports().iter().any(|import| import.starts_with("store."));
    if args.output == Format::Json {
        let text = json!({
            "name": plugin.name(), "roles": plugin.roles(), "can_change_values": plugin.has(Role::Transformer),
            "can_read_other_keys": reads, "interface": format!("brink:hooks@{HOOKS_VERSION}"),
            "imports": plugin.imports(), "size_bytes": local.component.len(), "digest": plugin.digest(),
            "memory_bytes": plugin.start_memory_bytes(), "start_us": micros(plugin.start_time()),
        });
        return output::line(&text.to_string());
    }
    let values = if plugin.has(Role::Transformer) { "can change values" } else { "cannot change values" };
    let keys = if reads { "can read other keys" } else { "cannot read other keys" };
    let imports = if plugin.imports().is_empty() { "none".to_owned() } else { plugin.imports().join(", ") };
    let start =
        format!("{:.1} MiB of memory, {} µs", mebibytes(plugin.start_memory_bytes()), micros(plugin.start_time()));
    let lines = [
        ("plugin", plugin.name().to_owned()),
        ("role", format!("{}: it {values}", plugin.roles().join(" and "))),
        ("interface", format!("brink:hooks@{HOOKS_VERSION}")),
        ("imports", format!("{imports}: it {keys}")),
        ("size", format!("{} bytes", local.component.len())),
        ("start", start),
        ("digest", plugin.digest().to_owned()),
    ];
    lines.iter().try_for_each(|(title, text)| output::line(&format!("{title:<10} {text}")))
}
