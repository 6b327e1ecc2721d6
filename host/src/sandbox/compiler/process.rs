//! A compiler as its node sees it: started, waited for, and ended.
//!
//! The process reads its job from a file, writes the result to another and its words to a third. So neither side ever waits for
//! the other, however slow or dead it is.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
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

/// Time after which a compiler of the idle class has starved, unless it had [`STARVED_SHARE`] of a core in it.
const STARVED_AFTER: Duration = Duration::from_secs(10);

/// One part in so many of a core.
const STARVED_SHARE: u32 = 20;

/// Starts compilers.
pub(in crate::sandbox) struct Processes {
    program: PathBuf,
    pub(in crate::sandbox) turns: Turns,
    starved_after: Duration,
}

/// A running compiler; dropping it ends it.
struct Running(Child);

/// How a compiler ended.
enum End {
    Exited(ExitStatus),
    /// It was ended because others had the processor.
    Starved,
}

/// What a compiler has got of the processor since the last look.
struct Progress {
    clock: ClockId,
    looked_at: Instant,
    cpu: Duration,
}

impl Processes {
    /// Compilers of this executable, even if its file is replaced meanwhile.
    pub(in crate::sandbox) fn of_this_executable() -> Self {
        let program = PathBuf::from("/proc/self/exe");
        Self { program, turns: Turns::default(), starved_after: STARVED_AFTER }
    }

    /// Runs a compiler until it has written to `output` what [`Cache`](super::super::cache::Cache) loads. Blocks until it has
    /// ended. Temporary files are in `dir`.
    ///
    /// One that starves in the idle class is started again at a niceness that gets on.
    pub(in crate::sandbox) fn run(
        &self,
        job: &Job,
        component: &[u8],
        (dir, mut output): (&Path, File),
        options: &CompileOptions,
        deadline: Instant,
    ) -> Result<(), Error> {
        let began = Instant::now();
        let failed = |error: io::Error| Error::Compiler(error.to_string());
        let mut input = self.input(job, component, dir).map_err(failed)?;
        for niceness in options.priority.attempts() {
            let words = tempfile::tempfile_in(dir).map_err(failed)?;
            input.rewind().map_err(failed)?;
            output.set_len(0).and_then(|()| output.rewind()).map_err(failed)?;
            let mut running = self.start([&input, &output, &words], *niceness).map_err(failed)?;
            let starved_after = niceness.is_none().then_some(self.starved_after);
            let End::Exited(status) = running.wait(options, deadline, starved_after)? else {
                tracing::debug!("a compiler has starved");
                continue;
            };
            tracing::debug!(%status, took_ms = began.elapsed().as_millis() as u64, "a compiler has ended");
            return if status.success() { Ok(()) } else { Err(failure(status, words)) };
        }
        Err(Error::CompileDeadline)
    }

    fn input(&self, job: &Job, component: &[u8], dir: &Path) -> io::Result<File> {
        let mut input = tempfile::tempfile_in(dir)?;
        input.write_all(&job.encode(component).map_err(io::Error::other)?)?;
        input.write_all(component)?;
        Ok(input)
    }

    /// Starts a compiler with these files as its standard input, output and error output.
    fn start(&self, files: [&File; 3], niceness: Option<i32>) -> io::Result<Running> {
        let mut command = Command::new(&self.program);
        command.args([SUBCOMMAND, "--parent", &std::process::id().to_string()]);
        command.args(niceness.map(|niceness| format!("--niceness={niceness}")));
        let [input, output, words] = files;
        command.stdin(input.try_clone()?).stdout(output.try_clone()?).stderr(words.try_clone()?);
        // It needs nothing of the environment, and what is there may be secret.
        command.env_clear().current_dir("/");
        Ok(Running(command.spawn()?))
    }
}

impl Running {
    fn wait(
        &mut self,
        options: &CompileOptions,
        deadline: Instant,
        starved_after: Option<Duration>,
    ) -> Result<End, Error> {
        let mut progress = starved_after.and_then(|_| Progress::of(&self.0));
        loop {
            match self.0.try_wait() {
                Ok(Some(status)) => return Ok(End::Exited(status)),
                Ok(None) => {}
                Err(error) => return Err(Error::Compiler(error.to_string())),
            }
            options.check()?;
            if Instant::now() >= deadline {
                return Err(Error::CompileDeadline);
            }
            if let (Some(progress), Some(window)) = (&mut progress, starved_after)
                && progress.has_starved(window)
            {
                return Ok(End::Starved);
            }
            std::thread::sleep(CHECK_INTERVAL);
        }
    }
}

impl Progress {
    /// `None` if the system does not tell.
    fn of(child: &Child) -> Option<Self> {
        let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(child.id()).ok()?)).ok()?;
        Some(Self { clock, looked_at: Instant::now(), cpu: Duration::ZERO })
    }

    /// Whether the process had too little of the processor, if the last look was so long ago.
    fn has_starved(&mut self, window: Duration) -> bool {
        let looked_at = Instant::now();
        if looked_at.saturating_duration_since(self.looked_at) < window {
            return false;
        }
        // One that has just ended has no clock any more.
        let Ok(cpu) = self.clock.now().map(Duration::from) else { return false };
        let has_starved = cpu.saturating_sub(self.cpu) < window / STARVED_SHARE;
        (self.looked_at, self.cpu) = (looked_at, cpu);
        has_starved
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
fn failure(status: ExitStatus, mut said: File) -> Error {
    let mut words = String::new();
    // Without its words, its status has to do.
    let _ = said.rewind().and_then(|()| said.take(WORDS_BYTES_MAX).read_to_string(&mut words));
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

    use super::super::options::Priority;
    use super::*;

    /// Runs a script as a compiler.
    fn run(script: &str, options: &CompileOptions, deadline: Duration) -> (Result<(), Error>, Duration) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("compiler");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let processes = Processes { program, turns: Turns::default(), starved_after: Duration::from_millis(500) };
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
    fn a_compiler_that_starves_is_started_again_and_writes_its_output_anew() {
        let starts = |script: &str, priority| {
            let options = CompileOptions { priority, ..CompileOptions::default() };
            run(script, &options, Duration::from_secs(60)).0
        };
        // It gets nothing of the processor in the idle class. The second one reads all of its job.
        let starving = r#"case "$*" in *niceness*) test "$(wc -c)" -gt 3 && test ! -s /dev/stdout; exit;; esac; echo a; cat; exec sleep 60"#;
        assert!(starts(starving, Priority::Deploying).is_ok());
        // One that is busy goes on, and so does one that has a niceness.
        let busy = r#"case "$*" in *niceness*) exit 9;; esac; i=0; while [ $i -lt 3000000 ]; do i=$((i+1)); done"#;
        assert!(starts(busy, Priority::Deploying).is_ok());
        assert!(starts("sleep 2", Priority::Serving).is_ok());
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
