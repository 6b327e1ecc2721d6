//! The process that compiles: `brink compile-component`.
//!
//! IMPORTANT: it limits itself before it reads anything that came from outside.

use std::io::{self, Read as _, Write as _};
use std::num::NonZero;
use std::process::ExitCode;
use std::thread::available_parallelism;

use nix::libc;
use rayon::ThreadPoolBuilder;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, getpriority_process, getrlimit, set_parent_process_death_signal,
    setpriority_process, setrlimit,
};

use super::super::cache;
use super::super::settings;
use super::job::{self, Job};
use super::options::CompilerLimits;
use super::process::{REFUSED, SHAPE_REFUSED, UNABLE};
use super::shape::Refusal;
use crate::limits;

/// Processor time between the signal that ends a compiler over its limit and the one that cannot be caught, in seconds.
const CPU_GRACE_S: u64 = 2;

/// Compiles what standard input has, for the process `parent`, and writes the result to standard output.
pub fn compile_component(parent: u32, limits: CompilerLimits) -> ExitCode {
    let failed = |code: u8, reason: String| {
        // The exit code says the same in short.
        let _ = writeln!(io::stderr(), "{reason}");
        ExitCode::from(code)
    };
    if let Err(error) = restrict(parent, limits) {
        return failed(UNABLE, format!("it cannot limit itself: {error}"));
    }
    match compile() {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(Refusal::Invalid(reason))) => failed(REFUSED, reason),
        Ok(Err(Refusal::Shape(reason))) => failed(SHAPE_REFUSED, reason),
        Ok(Err(Refusal::Unable(reason))) => failed(UNABLE, reason),
        Err(error) => failed(UNABLE, error.to_string()),
    }
}

fn compile() -> io::Result<Result<(), Refusal>> {
    let mut input = Vec::new();
    io::stdin().read_to_end(&mut input)?;
    let (job, component) = Job::decode(&input).ok_or_else(|| io::Error::other("its job is not complete"))?;
    let cores = available_parallelism().map_or(1, NonZero::get);
    let threads = (cores / 2).clamp(1, limits::COMPILER_THREADS_MAX);
    ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(io::Error::other)?;
    let engine = wasmtime::Engine::new(&settings::config()).map_err(io::Error::other)?;
    // The processor time is limited, and the wall time by the parent.
    let code = match job::build(&engine, &job, component, limits::COMPILE_DEADLINE) {
        Ok(component) => component.serialize().map_err(io::Error::other)?,
        Err(refusal) => return Ok(Err(refusal)),
    };
    cache::write(&mut io::stdout().lock(), &code)?;
    Ok(Ok(()))
}

/// Limits this process, lowers its priority, and has it end with its parent.
fn restrict(parent: u32, limits: CompilerLimits) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have ended before.
    if getppid().map(Pid::as_raw_pid).and_then(|pid| u32::try_from(pid).ok()) != Some(parent) {
        return Err(io::Error::other("the process that asked for it has ended"));
    }
    limit(Resource::Cpu, limits.cpu_s, limits.cpu_s.saturating_add(CPU_GRACE_S))?;
    limit(Resource::Data, limits.memory_bytes, limits.memory_bytes)?;
    limit(Resource::Fsize, limits.code_bytes, limits.code_bytes)?;
    limit(Resource::Core, 0, 0)?;
    // A machine without memory ends this process first. It may be forbidden to say so.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    match limits.niceness {
        None => enter_idle_class(),
        // Unless that of the parent is higher.
        Some(niceness) if getpriority_process(None)? < niceness => Ok(setpriority_process(None, niceness)?),
        Some(_) => Ok(()),
    }
}

/// From now on this thread, and those that it starts, run when nothing else wants to: a thread of the usual class that wakes up
/// does not wait for them. There is no way back without privileges.
fn enter_idle_class() -> io::Result<()> {
    let priority = libc::sched_param { sched_priority: 0 };
    #[allow(unsafe_code, reason = "no library offers it")]
    // SAFETY: this changes how Linux schedules the calling thread, and reads `priority`, which is what it takes for this class.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets a limit, or leaves the system's if that is lower.
fn limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let lower = |limit: u64, of_system: Option<u64>| Some(of_system.map_or(limit, |of_system| of_system.min(limit)));
    let system = getrlimit(resource);
    Ok(setrlimit(resource, Rlimit { current: lower(soft, system.maximum), maximum: lower(hard, system.maximum) })?)
}
