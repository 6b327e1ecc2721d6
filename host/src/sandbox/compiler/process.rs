//! A compiler as its node sees it: started, waited for, and ended.
//!
//! The process reads its job from a file, writes the result to another and its words to a third. So neither side ever waits for
//! the other, however slow or dead it is.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::super::error::{CompileResource, Error};
use super::super::lines::{cut, one_line};
use super::job::Job;
use super::options::CompileOptions;
use super::turns::Turns;
use crate::limits;

/// The subcommand of this executable that compiles.
const SUBCOMMAND: &str = "compile-component";

/// Exit code of a compiler that refuses the component; it says why.
pub(super) const REFUSED: u8 = 3;

/// Exit code of a compiler that refuses the shape of the component; it says why.
pub(super) const SHAPE_REFUSED: u8 = 4;

/// Exit code of a compiler that cannot work; it says why.
pub(super) const UNABLE: u8 = 5;

/// Exit code of a Rust process that panics.
const PANICKED: u8 = 101;

/// Interval at which a running compiler is polled.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// Most that is read of the words of a compiler, in bytes.
const WORDS_BYTES_MAX: u64 = 16 * 1024;

/// What Rust says when memory is refused, before it aborts; and what the system says.
const OUT_OF_MEMORY: [&str; 2] = ["memory allocation of", "Cannot allocate memory"];

/// Starts compilers.
pub(in crate::sandbox) struct Processes {
    program: PathBuf,
    pub(in crate::sandbox) turns: Turns,
}

/// A running compiler; dropping it ends it.
struct Running(Child);

impl Processes {
    /// Compilers of this executable, even if its file is replaced meanwhile.
    pub(in crate::sandbox) fn of_this_executable() -> Self {
        Self { program: PathBuf::from("/proc/self/exe"), turns: Turns::default() }
    }

    /// Runs a compiler until it has written to `output` what [`Cache`](super::super::cache::Cache) loads. Blocks until it has
    /// ended. Temporary files are in `dir`.
    pub(in crate::sandbox) fn run(
        &self,
        job: &Job,
        component: &[u8],
        (dir, output): (&Path, File),
        options: &CompileOptions,
        deadline: Instant,
    ) -> Result<(), Error> {
        let began = Instant::now();
        let failed = |error: io::Error| Error::Compiler(error.to_string());
        let mut words = tempfile::tempfile_in(dir).map_err(failed)?;
        let input = self.input(job, component, dir).map_err(failed)?;
        let mut command = Command::new(&self.program);
        let (parent, niceness) = (std::process::id().to_string(), options.priority.niceness().to_string());
        command.args([SUBCOMMAND, "--parent", &parent, "--niceness", &niceness]);
        command.stdin(input).stdout(output).stderr(words.try_clone().map_err(failed)?);
        // It needs nothing of the environment, and what is there may be secret.
        command.env_clear().current_dir("/");
        let mut running = Running(command.spawn().map_err(failed)?);
        let status = running.wait(options, deadline)?;
        tracing::debug!(%status, took_ms = began.elapsed().as_millis() as u64, "a compiler has ended");
        if status.success() {
            return Ok(());
        }
        let mut text = String::new();
        // Without its words, its status has to do.
        let _ = words.rewind().and_then(|()| words.take(WORDS_BYTES_MAX).read_to_string(&mut text));
        Err(failure(status, &text))
    }

    fn input(&self, job: &Job, component: &[u8], dir: &Path) -> io::Result<Stdio> {
        let mut input = tempfile::tempfile_in(dir)?;
        input.write_all(&job.encode(component).map_err(io::Error::other)?)?;
        input.write_all(component)?;
        input.rewind()?;
        Ok(input.into())
    }
}

impl Running {
    fn wait(&mut self, options: &CompileOptions, deadline: Instant) -> Result<ExitStatus, Error> {
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => {}
                Err(error) => return Err(Error::Compiler(error.to_string())),
            }
            options.check()?;
            if Instant::now() >= deadline {
                return Err(Error::CompileDeadline);
            }
            std::thread::sleep(CHECK_INTERVAL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It fails only if the process has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Why a compiler has ended without a result.
fn failure(status: ExitStatus, words: &str) -> Error {
    let said = one_line(cut(words.trim(), limits::PLUGIN_TEXT_BYTES_MAX));
    let is = |code: u8| status.code() == Some(code.into());
    if OUT_OF_MEMORY.iter().any(|text| words.contains(text)) {
        return Error::CompileLimit(CompileResource::Memory);
    }
    match status.signal().and_then(Signal::from_named_raw) {
        Some(Signal::XCPU) => Error::CompileLimit(CompileResource::Cpu),
        Some(Signal::XFSZ) => Error::CompileLimit(CompileResource::Code),
        // Whoever ends a node may end all its processes at once.
        Some(Signal::TERM | Signal::INT) => Error::CompileCancelled,
        Some(Signal::KILL) => Error::Compiler(format!("it was ended ({status})")),
        // wasmtime or its compiler has a bug.
        Some(Signal::ABORT | Signal::SEGV | Signal::ILL | Signal::BUS) => compiler_bug(status, &said),
        _ if is(PANICKED) => compiler_bug(status, &said),
        _ if is(REFUSED) => Error::NotAComponent(said),
        _ if is(SHAPE_REFUSED) => Error::Shape(said),
        _ if is(UNABLE) => Error::Compiler(said),
        _ => Error::Compiler(format!("it has ended ({status}) {said}")),
    }
}

fn compiler_bug(status: ExitStatus, said: &str) -> Error {
    tracing::error!(%status, said, "a compiler has failed on a component");
    Error::NotAComponent("the compiler failed on it".to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// Runs a script as a compiler.
    fn run(script: &str, options: &CompileOptions, deadline: Duration) -> (Result<(), Error>, Duration) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("compiler");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let processes = Processes { program, turns: Turns::default() };
        let began = Instant::now();
        let output = tempfile::tempfile().unwrap();
        let result = processes.run(&Job::Compile, b"abc", (dir.path(), output), options, began + deadline);
        (result, began.elapsed())
    }

    fn error(script: &str) -> String {
        let (result, _) = run(script, &CompileOptions::default(), Duration::from_secs(60));
        result.unwrap_err().to_string()
    }

    #[test]
    fn the_end_of_a_compiler_says_what_was_wrong() {
        assert!(run("exit 0", &CompileOptions::default(), Duration::from_secs(60)).0.is_ok());
        for (script, says) in [
            ("echo it is odd >&2; exit 3", "is not a WebAssembly component: it is odd"),
            ("echo it has 9 legs >&2; exit 4", "is too complex: it has 9 legs"),
            ("echo no memory map >&2; exit 5", "could not be compiled, since the compiler failed: no memory map"),
            ("kill -XCPU $$", "needs more than 300 s of processor time"),
            ("kill -XFSZ $$", "needs more than 512 MiB of code"),
            ("echo memory allocation of 64 bytes failed >&2; kill -ABRT $$", "needs more than 1024 MiB of memory"),
            ("kill -KILL $$", "it was ended"),
            ("kill -SEGV $$", "the compiler failed on it"),
            ("exit 101", "the compiler failed on it"),
            ("exit 127", "it has ended (exit status: 127)"),
        ] {
            let error = error(script);
            assert!(error.contains(says), "{script}: {error}");
        }
    }

    #[test]
    fn a_compiler_is_given_up_at_its_deadline_and_when_it_is_cancelled() {
        let (late, took) = run("exec sleep 60", &CompileOptions::default(), Duration::from_millis(100));
        assert!(matches!(late, Err(Error::CompileDeadline)) && took < Duration::from_secs(30), "{late:?} {took:?}");
        let options = CompileOptions::default();
        let cancelled = options.cancelled.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            cancelled.cancel();
        });
        let (cancelled, took) = run("exec sleep 60", &options, Duration::from_secs(60));
        assert!(matches!(cancelled, Err(Error::CompileCancelled)) && took < Duration::from_secs(30));
    }
}
