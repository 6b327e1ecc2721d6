//! The subset of WASI 0.2 that guests get.
//!
//! The standard libraries of most languages import WASI even where a guest does not use it. The subset reveals nothing:
//! standard output and standard error become log lines, the environment and the file system are empty, random numbers
//! follow from a fixed seed, the monotonic clock stands still, and `exit` ends the call. All other functions trap.

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentNamedList, ComponentType, Lift, LinkerInstance, Lower, Resource, ResourceType};

use super::host_state::{HostReads, HostState};

pub(super) const PREFIX: &str = "wasi:";

/// Bytes that an output stream offers to take at once.
const WRITE_BYTES_MAX: u64 = 4 * 1024;

#[derive(Debug, thiserror::Error)]
#[error("it called `exit`")]
pub(super) struct Exit;

// The host side of WASI's resources. A handle is only a number: there is nothing behind it to keep or to free.
struct OutputStream;
struct InputStream;
struct StreamFailure;
struct Pollable;
struct Directory;
struct Terminal;

/// `stream-error` of `wasi:io/streams`.
#[derive(ComponentType, Lower)]
#[component(variant)]
enum StreamError {
    #[component(name = "last-operation-failed")]
    #[allow(dead_code, reason = "part of the interface's type")]
    LastOperationFailed(Resource<StreamFailure>),
    #[component(name = "closed")]
    Closed,
}

type Context<'a, R> = StoreContextMut<'a, HostState<R>>;

fn handle<T: 'static, R: HostReads>(mut context: Context<'_, R>) -> Resource<T> {
    context.data_mut().has_handles = true;
    Resource::new_own(0)
}

/// Defines one type or function of a WASI interface, if guests get it. `interface` is its full name without the version.
/// The caller makes undefined functions trap.
pub(super) fn define<R: HostReads>(
    linker: &mut LinkerInstance<'_, HostState<R>>,
    interface: &str,
    item: &str,
) -> wasmtime::Result<()> {
    match (interface, item) {
        ("wasi:io/streams", _) if item.starts_with("[method]") => define_stream(linker, item),
        ("wasi:io/poll", _) if item != "pollable" => define_poll(linker, item),
        ("wasi:cli/stdout" | "wasi:cli/stderr", "get-stdout" | "get-stderr") => {
            linker.func_wrap(item, |context: Context<'_, R>, (): ()| Ok((handle::<OutputStream, R>(context),)))
        }
        ("wasi:cli/stdin", "get-stdin") => {
            linker.func_wrap(item, |context: Context<'_, R>, (): ()| Ok((handle::<InputStream, R>(context),)))
        }
        ("wasi:cli/terminal-stdin" | "wasi:cli/terminal-stdout" | "wasi:cli/terminal-stderr", _)
            if item.starts_with("get-") =>
        {
            pure(linker, item, |(): ()| None::<Resource<Terminal>>)
        }
        ("wasi:cli/environment", "get-environment") => pure(linker, item, |(): ()| Vec::<(String, String)>::new()),
        ("wasi:cli/environment", "get-arguments") => pure(linker, item, |(): ()| Vec::<String>::new()),
        ("wasi:cli/environment", "initial-cwd") => pure(linker, item, |(): ()| None::<String>),
        ("wasi:cli/exit", "exit") => linker
            .func_wrap(item, |_: Context<'_, R>, _: (Result<(), ()>,)| -> wasmtime::Result<()> { Err(Exit.into()) }),
        ("wasi:filesystem/preopens", "get-directories") => {
            pure(linker, item, |(): ()| Vec::<(Resource<Directory>, String)>::new())
        }
        ("wasi:clocks/monotonic-clock", "now") => pure(linker, item, |(): ()| 0_u64),
        ("wasi:clocks/monotonic-clock", "resolution") => pure(linker, item, |(): ()| 1_u64),
        ("wasi:random/random" | "wasi:random/insecure" | "wasi:random/insecure-seed", _) => define_random(linker, item),
        _ => define_resource(linker, item),
    }
}

/// Defines a function whose answer follows from its arguments alone.
fn pure<P, T, R: HostReads>(
    linker: &mut LinkerInstance<'_, HostState<R>>,
    item: &str,
    answer: impl Fn(P) -> T + Send + Sync + 'static,
) -> wasmtime::Result<()>
where
    P: ComponentNamedList + Lift + 'static,
    T: ComponentType + Lower + 'static,
{
    linker.func_wrap(item, move |_: Context<'_, R>, arguments: P| Ok((answer(arguments),)))
}

/// A resource is defined under the same name wherever it is used again, so its host type follows from the name alone.
fn define_resource<R: HostReads>(linker: &mut LinkerInstance<'_, HostState<R>>, item: &str) -> wasmtime::Result<()> {
    let ty = match item {
        "output-stream" => ResourceType::host::<OutputStream>(),
        "input-stream" => ResourceType::host::<InputStream>(),
        "error" => ResourceType::host::<StreamFailure>(),
        "pollable" => ResourceType::host::<Pollable>(),
        "descriptor" => ResourceType::host::<Directory>(),
        "terminal-input" | "terminal-output" => ResourceType::host::<Terminal>(),
        _ => return Ok(()),
    };
    linker.resource(item, ty, |_, _| Ok(()))
}

fn define_stream<R: HostReads>(linker: &mut LinkerInstance<'_, HostState<R>>, item: &str) -> wasmtime::Result<()> {
    match item {
        "[method]output-stream.check-write" => {
            pure(linker, item, |_: (Resource<OutputStream>,)| Ok::<_, StreamError>(WRITE_BYTES_MAX))
        }
        "[method]output-stream.write" | "[method]output-stream.blocking-write-and-flush" => {
            linker.func_wrap(item, |mut context: Context<'_, R>, (_, bytes): (Resource<OutputStream>, Vec<u8>)| {
                context.data_mut().lines.write(&bytes);
                Ok((Ok::<(), StreamError>(()),))
            })
        }
        "[method]output-stream.flush" | "[method]output-stream.blocking-flush" => {
            pure(linker, item, |_: (Resource<OutputStream>,)| Ok::<_, StreamError>(()))
        }
        "[method]output-stream.subscribe" => linker
            .func_wrap(item, |context: Context<'_, R>, _: (Resource<OutputStream>,)| {
                Ok((handle::<Pollable, R>(context),))
            }),
        "[method]input-stream.read" | "[method]input-stream.blocking-read" => {
            pure(linker, item, |_: (Resource<InputStream>, u64)| Err::<Vec<u8>, _>(StreamError::Closed))
        }
        _ => Ok(()),
    }
}

/// A guest gets pollables of its output streams only, and these are always ready.
fn define_poll<R: HostReads>(linker: &mut LinkerInstance<'_, HostState<R>>, item: &str) -> wasmtime::Result<()> {
    match item {
        "[method]pollable.block" => linker.func_wrap(item, |_: Context<'_, R>, _: (Resource<Pollable>,)| Ok(())),
        "[method]pollable.ready" => pure(linker, item, |_: (Resource<Pollable>,)| true),
        "poll" => pure(linker, item, |(pollables,): (Vec<Resource<Pollable>>,)| {
            (0_u32..).zip(&pollables).map(|(index, _)| index).collect::<Vec<u32>>()
        }),
        _ => Ok(()),
    }
}

fn define_random<R: HostReads>(linker: &mut LinkerInstance<'_, HostState<R>>, item: &str) -> wasmtime::Result<()> {
    match item {
        "get-random-bytes" | "get-insecure-random-bytes" => linker
            .func_wrap(item, |mut context: Context<'_, R>, (len,): (u64,)| {
                Ok((context.data_mut().random.bytes(len)?,))
            }),
        "get-random-u64" | "get-insecure-random-u64" => {
            linker.func_wrap(item, |mut context: Context<'_, R>, (): ()| Ok((context.data_mut().random.next(),)))
        }
        "insecure-seed" => linker.func_wrap(item, |mut context: Context<'_, R>, (): ()| {
            let random = &mut context.data_mut().random;
            Ok(((random.next(), random.next()),))
        }),
        _ => Ok(()),
    }
}
