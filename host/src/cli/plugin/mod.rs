//! `brink plugin`: plugins, from a new project to a hook in force.
//!
//! ```text
//! mod → project                              new, build
//! mod → bench → run → test → local → project
//! mod → registry                             deploy, bind, unbind, remove, rollback, history, list, stats
//! mod → logs                                 from every node of a cluster
//! ```
//!
//! `local` is a plugin on this machine, without a node.

mod bench;
mod local;
mod logs;
mod project;
mod registry;
mod run;
mod test;

use std::path::PathBuf;

use super::{Common, Failure, Format};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create a plugin project that builds and tests as it is
    New {
        /// The plugin's name
        name: String,
        /// The plugin's language
        #[arg(long)]
        lang: project::Language,
        /// The new folder; named after the plugin if absent
        #[arg(long)]
        dir: Option<PathBuf>,
    },
    /// Build the component of a project
    Build {
        /// The project's folder
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
    /// Run the test cases of a project: writes with their expected verdicts
    Test(test::Args),
    /// Let a plugin judge one write, without a node
    Run(run::Args),
    /// Measure the cost of a write, without a node
    Bench(bench::Args),
    /// Show the roles, rights and size of a component
    Inspect {
        #[command(flatten)]
        target: local::Target,
        /// Output format
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Format,
    },
    /// Upload a plugin, or a new version of it
    Deploy {
        /// The plugin's name
        name: String,
        /// The component: a .wasm file
        file: PathBuf,
        #[command(flatten)]
        common: Common,
    },
    Bind(registry::BindArgs),
    /// Remove a hook
    Unbind {
        /// The hook's name
        hook: String,
        #[command(flatten)]
        common: Common,
    },
    /// Restore a hook as it was before its last change, or after an earlier one
    Rollback {
        /// The hook's name
        hook: String,
        /// Restore the hook as it was after this change; `brink plugin history` has the numbers
        #[arg(long, value_name = "NUMBER")]
        to: Option<u64>,
        #[command(flatten)]
        common: Common,
    },
    /// List changes of plugins and hooks, newest first
    History(Common),
    /// Show the log lines and failures of plugins on every node
    Logs(logs::Args),
    /// Show counts, latencies and memory of plugin calls on every node since it started
    Stats(Common),
    /// List plugins and hooks, and the nodes where they are in force
    List(Common),
    /// Remove a plugin that no hook uses
    Remove {
        /// The plugin's name
        name: String,
        #[command(flatten)]
        common: Common,
    },
}

pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::New { name, lang, dir } => project::create(&name, lang, dir),
        Command::Build { dir } => project::build(&dir),
        Command::Test(args) => tokio::task::block_in_place(|| test::run(&args)),
        Command::Run(args) => tokio::task::block_in_place(|| run::run(&args)),
        Command::Bench(args) => tokio::task::block_in_place(|| bench::run(&args)),
        Command::Inspect { target, output } => tokio::task::block_in_place(|| local::inspect(&target, output)),
        Command::Deploy { name, file, common } => registry::deploy(&name, &file, &common).await,
        Command::Bind(args) => registry::bind(&args).await,
        Command::Unbind { hook, common } => registry::remove("hook", &hook, &common).await,
        Command::Rollback { hook, to, common } => registry::rollback(&hook, to, &common).await,
        Command::History(common) => registry::history(&common).await,
        Command::Logs(args) => logs::run(&args).await,
        Command::Stats(common) => registry::stats(&common).await,
        Command::List(common) => registry::list(&common).await,
        Command::Remove { name, common } => registry::remove("plugin", &name, &common).await,
    }
}
