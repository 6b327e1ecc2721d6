//! `brink serve`: runs a node until it is told to stop.

use std::error::Error as _;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::runtime;

use super::io::{complain, line};
use crate::node::{DataError, Failure, Given, Node, Settings, StartError};
use crate::telemetry::{LogFormat, Telemetry};
use crate::text;

/// Maximum time to export the last traces and metrics at the end.
const FLUSH_DEADLINE: Duration = Duration::from_millis(800);

/// As [`FLUSH_DEADLINE`], for a node that failed.
const FAILURE_FLUSH_DEADLINE: Duration = Duration::from_millis(500);

/// Maximum time to write a line to standard error.
const LAST_LINE_DEADLINE: Duration = Duration::from_millis(500);

/// Maximum time to wait at the end for work that cannot be cancelled: reads of a large state. The
/// data directory stays whole wherever it ends, as after a kill.
const BLOCKING_DEADLINE: Duration = Duration::from_millis(300);

/// Exit code if a setting is wrong, or the data directory cannot be used.
const WRONG_SETTING: u8 = 2;

/// Exit code if the disk failed, or has lost acknowledged data.
const DISK_FAILED: u8 = 3;

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

/// Runs a node until SIGTERM or Ctrl-C; the exit code is 0 after that, and 1 after a failure that has no code of its own.
pub(super) fn run(args: Args) -> ExitCode {
    // IMPORTANT: before the first file and the first thread. What a node keeps is for its user alone.
    umask(Mode::RWXG | Mode::RWXO);
    let file = args.config.as_deref().map(Given::from_file).transpose();
    let settings = match file.and_then(|file| args.given.or(file.unwrap_or_default()).check()) {
        Ok(settings) => settings,
        Err(error) => return report_start(&error.into()),
    };
    match runtime().enable_all().thread_name("brink").build() {
        Ok(runtime) => {
            let code = runtime.block_on(serve(settings)).unwrap_or_else(|code| code);
            runtime.shutdown_timeout(BLOCKING_DEADLINE);
            code
        }
        Err(error) => report(1, format!("the runtime cannot start: {error}")),
    }
}

/// Requests and replication run on half of the cores: the log's writer, apply and plugins have their own threads. With one
/// thread, nothing is shared between threads, and a task costs less. `TOKIO_WORKER_THREADS` asks for that many.
fn runtime() -> runtime::Builder {
    if std::env::var_os("TOKIO_WORKER_THREADS").is_some() {
        return runtime::Builder::new_multi_thread();
    }
    match thread::available_parallelism().map_or(1, usize::from).div_ceil(2) {
        1 => runtime::Builder::new_current_thread(),
        threads => {
            let mut runtime = runtime::Builder::new_multi_thread();
            runtime.worker_threads(threads);
            runtime
        }
    }
}

/// Fails with the exit code of a failure that it has reported.
async fn serve(settings: Settings) -> Result<ExitCode, ExitCode> {
    let name = settings.advertise_url.clone().unwrap_or_else(|| settings.listen.to_string());
    let format = settings
        .log_format
        .unwrap_or_else(|| if io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json });
    let telemetry =
        Telemetry::init(name, format, &settings.log).map_err(|error| report(WRONG_SETTING, error.to_string()))?;
    // The handlers are installed before the node starts, so that a signal during the start is not lost.
    let stop = stop_signal().map_err(|error| report(1, format!("signals cannot be received: {error}")))?;
    let mut stop = std::pin::pin!(stop);
    let node = tokio::select! {
        started = Node::start(settings, telemetry.clone()) => started.map_err(|error| report_start(&error))?,
        // A node that lost its state starts once another node has one for it.
        signal = &mut stop => {
            tracing::info!(signal, "stopped before it had started");
            return Ok(ExitCode::SUCCESS);
        }
    };
    // Nobody has to read it.
    let _ = line(&format!("brink serves {} on {}", node.url, node.address));
    tokio::select! {
        signal = &mut stop => tracing::info!(signal, "stopping"),
        failure = node.failed() => fail(&failure, telemetry.clone()).await,
    }
    node.stop().await;
    telemetry.shutdown(FLUSH_DEADLINE).await;
    Ok(ExitCode::SUCCESS)
}

/// Ends the process at once. The node is not stopped in good order, since that would write to a failed disk.
async fn fail(failure: &Failure, telemetry: Telemetry) {
    telemetry.shutdown(FAILURE_FLUSH_DEADLINE).await;
    say(failure.to_string());
    let code = match failure {
        Failure::Disk { .. } => DISK_FAILED,
        Failure::Consensus { .. } => 1,
    };
    std::process::exit(code.into())
}

/// Installs the signal handlers. The future resolves to the name of the first signal.
fn stop_signal() -> io::Result<impl Future<Output = &'static str>> {
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
fn report_start(error: &StartError) -> ExitCode {
    let mut message = error.to_string();
    for cause in std::iter::successors(error.source(), |cause| (*cause).source()).map(ToString::to_string) {
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    let code = match error {
        StartError::Data(DataError::Lost { .. } | DataError::StateLost { .. }) => DISK_FAILED,
        StartError::Settings(_) | StartError::Secret(_) | StartError::Listen { .. } | StartError::Data(_) => {
            WRONG_SETTING
        }
        StartError::Hooks(_) | StartError::Replication(_) | StartError::Cancelled(_) => 1,
    };
    report(code, message)
}

fn report(code: u8, message: String) -> ExitCode {
    say(message);
    ExitCode::from(code)
}

/// Says why the process ends, on standard error. That may be a pipe that nobody reads: then it ends without it.
fn say(reason: String) {
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || drop((complain(&text::safe(&reason)), done)));
    let _: Result<(), _> = is_done.recv_timeout(LAST_LINE_DEADLINE);
}
