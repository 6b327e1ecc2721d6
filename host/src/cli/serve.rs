//! `brink serve`: runs a node until it is told to stop.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::node::{DataError, Failure, Given, Node, Settings, SettingsError, StartError};
use crate::telemetry::{self, LogFormat, Telemetry};

/// Maximum time to export the last traces and metrics at the end.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

/// Exit code if a setting is wrong, or the data directory cannot be used.
const WRONG_SETTING: u8 = 2;

/// Exit code if the disk failed, or has lost acknowledged data.
const DISK_FAILED: u8 = 3;

/// Maximum time to export the last traces and metrics of a node that failed.
const FAILURE_FLUSH_DEADLINE: Duration = Duration::from_millis(500);

/// Run one node
///
/// Settings come from flags, BRINK_* variables and the TOML file, in that order of precedence. Traces and metrics are
/// exported by OTLP as the standard OTEL_* variables say. Stops cleanly on SIGTERM and Ctrl-C.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A TOML file with settings, named like the flags
    #[arg(long, env = "BRINK_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    given: Given,
}

/// Runs a node until SIGTERM or Ctrl-C. The exit code is 0 after that, 2 if a setting is wrong, 3 if the disk failed, and
/// 1 after any other failure.
pub(super) fn run(args: Args) -> ExitCode {
    let settings = match settings(args) {
        Ok(settings) => settings,
        Err(error) => return report(&StartError::from(error)),
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // Half of the cores: the log's writer, apply and plugins have their own threads. TOKIO_WORKER_THREADS overrides it.
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        runtime.worker_threads(cores.div_ceil(2));
    }
    match runtime.enable_all().thread_name("brink").build() {
        Ok(runtime) => runtime.block_on(serve(settings)),
        Err(error) => {
            eprintln!("brink: the runtime cannot start: {error}");
            ExitCode::FAILURE
        }
    }
}

fn settings(args: Args) -> Result<Settings, SettingsError> {
    let file = args.config.as_deref().map(Given::from_file).transpose()?.unwrap_or_default();
    args.given.or(file).check()
}

async fn serve(settings: Settings) -> ExitCode {
    let format = settings
        .log_format
        .unwrap_or_else(|| if std::io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json });
    let config = telemetry::Config {
        node: settings.advertise_url.clone().unwrap_or_else(|| settings.listen.to_string()),
        log_format: format,
        log_filter: settings.log.clone(),
    };
    let telemetry = match Telemetry::init(&config) {
        Ok(telemetry) => telemetry,
        Err(error) => {
            eprintln!("brink: {error}");
            return ExitCode::from(WRONG_SETTING);
        }
    };
    // The handlers are installed before the node starts, so that a signal during the start is not lost.
    let stop = match stop_signal() {
        Ok(stop) => stop,
        Err(error) => {
            eprintln!("brink: signals cannot be received: {error}");
            return ExitCode::FAILURE;
        }
    };
    let node = match Node::start(settings, telemetry.clone()).await {
        Ok(node) => node,
        Err(error) => return report(&error),
    };
    println!("brink serves {} on {}", node.url, node.address);
    tokio::select! {
        signal = stop => tracing::info!(signal, "stopping"),
        failure = node.failed() => fail(&failure, telemetry.clone()).await,
    }
    node.stop().await;
    telemetry.shutdown(FLUSH_DEADLINE).await;
    ExitCode::SUCCESS
}

/// Ends the process at once. The node is not stopped in good order, since that would write to a failed disk.
async fn fail(failure: &Failure, telemetry: Telemetry) {
    telemetry.shutdown(FAILURE_FLUSH_DEADLINE).await;
    eprintln!("brink: {failure}");
    let code = match failure {
        Failure::Disk { .. } => DISK_FAILED,
        Failure::Consensus { .. } => 1,
    };
    std::process::exit(code.into())
}

/// Installs the signal handlers. The future resolves to the name of the first signal.
fn stop_signal() -> std::io::Result<impl Future<Output = &'static str>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

/// Prints why the node did not start: one line with all causes.
fn report(error: &StartError) -> ExitCode {
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let text = error.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = error.source();
    }
    eprintln!("brink: {message}");
    match error {
        StartError::Data(DataError::Lost { .. }) => ExitCode::from(DISK_FAILED),
        StartError::Settings(_) | StartError::Listen { .. } | StartError::Data(_) => ExitCode::from(WRONG_SETTING),
        StartError::Hooks(_) | StartError::Http(_) | StartError::Replication(_) | StartError::Cancelled(_) => {
            ExitCode::FAILURE
        }
    }
}
