//! The little WASI that plugins get.
//!
//! The standard libraries of most languages import WASI even where it is not used. Of WASI 0.2 a plugin gets what
//! reveals nothing: standard output and error become log lines, the environment and the file system are empty, random
//! numbers follow from a fixed seed, the monotonic clock stands still, `exit` ends the call. Everything else traps when
//! it is called.

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, LinkerInstance, Lower, Resource, ResourceType};

use super::guest::Call;

/// The prefix of every WASI import.
pub(super) const PREFIX: &str = "wasi:";

/// The most random bytes of one request.
const RANDOM_BYTES_MAX: u64 = 64 * 1024;

/// Room announced to writers of output streams, in bytes.
const WRITE_BYTES_MAX: u64 = 4 * 1024;

/// The plugin called `exit`.
#[derive(Debug, thiserror::Error)]
#[error("it called `exit`")]
pub(super) struct Exit;

/// The plugin asked for more random bytes than it gets at once.
#[derive(Debug, thiserror::Error)]
#[error("it asked for more than {RANDOM_BYTES_MAX} random bytes at once")]
struct TooRandom;

// The host side of WASI's resources. A handle is only its number: there is nothing behind it to keep or to free.
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

/// Random numbers that follow from a seed: SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014).
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, len: u64) -> Result<Vec<u8>, TooRandom> {
        if len > RANDOM_BYTES_MAX {
            return Err(TooRandom);
        }
        let len = usize::try_from(len).map_err(|_| TooRandom)?;
        let mut bytes: Vec<u8> = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(len);
        Ok(bytes)
    }
}

type Context<'a> = StoreContextMut<'a, Call>;
type Written = wasmtime::Result<(Result<(), StreamError>,)>;

/// A handle for the plugin.
fn handle<T: 'static>(mut context: Context<'_>) -> Resource<T> {
    context.data_mut().has_handles = true;
    Resource::new_own(0)
}

/// Defines one type or function of a WASI interface, if it is one that plugins get. `interface` is its full name
/// without the version. What is left undefined is made to trap by the caller.
pub(super) fn define(linker: &mut LinkerInstance<'_, Call>, interface: &str, item: &str) -> wasmtime::Result<()> {
    match (interface, item) {
        ("wasi:io/streams", _) if item.starts_with("[method]") => define_stream(linker, item),
        ("wasi:io/poll", _) if item != "pollable" => define_poll(linker, item),
        ("wasi:cli/stdout" | "wasi:cli/stderr", "get-stdout" | "get-stderr") => {
            linker.func_wrap(item, |context: Context<'_>, (): ()| Ok((handle::<OutputStream>(context),)))
        }
        ("wasi:cli/stdin", "get-stdin") => {
            linker.func_wrap(item, |context: Context<'_>, (): ()| Ok((handle::<InputStream>(context),)))
        }
        ("wasi:cli/terminal-stdin" | "wasi:cli/terminal-stdout" | "wasi:cli/terminal-stderr", _)
            if item.starts_with("get-") =>
        {
            linker.func_wrap(item, |_: Context<'_>, (): ()| Ok((None::<Resource<Terminal>>,)))
        }
        ("wasi:cli/environment", "get-environment") => {
            linker.func_wrap(item, |_: Context<'_>, (): ()| Ok((Vec::<(String, String)>::new(),)))
        }
        ("wasi:cli/environment", "get-arguments") => {
            linker.func_wrap(item, |_: Context<'_>, (): ()| Ok((Vec::<String>::new(),)))
        }
        ("wasi:cli/environment", "initial-cwd") => {
            linker.func_wrap(item, |_: Context<'_>, (): ()| Ok((None::<String>,)))
        }
        ("wasi:cli/exit", "exit") => {
            linker.func_wrap(item, |_: Context<'_>, _: (Result<(), ()>,)| -> wasmtime::Result<()> { Err(Exit.into()) })
        }
        ("wasi:filesystem/preopens", "get-directories") => {
            linker.func_wrap(item, |_: Context<'_>, (): ()| Ok((Vec::<(Resource<Directory>, String)>::new(),)))
        }
        ("wasi:clocks/monotonic-clock", "now") => linker.func_wrap(item, |_: Context<'_>, (): ()| Ok((0_u64,))),
        ("wasi:clocks/monotonic-clock", "resolution") => linker.func_wrap(item, |_: Context<'_>, (): ()| Ok((1_u64,))),
        ("wasi:random/random" | "wasi:random/insecure" | "wasi:random/insecure-seed", _) => define_random(linker, item),
        _ => define_resource(linker, item),
    }
}

/// A resource is defined under the same name wherever it is used again, so its host type follows from the name alone.
fn define_resource(linker: &mut LinkerInstance<'_, Call>, item: &str) -> wasmtime::Result<()> {
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

fn define_stream(linker: &mut LinkerInstance<'_, Call>, item: &str) -> wasmtime::Result<()> {
    match item {
        "[method]output-stream.check-write" => linker
            .func_wrap(item, |_: Context<'_>, _: (Resource<OutputStream>,)| {
                Ok((Ok::<u64, StreamError>(WRITE_BYTES_MAX),))
            }),
        "[method]output-stream.write" | "[method]output-stream.blocking-write-and-flush" => linker.func_wrap(
            item,
            |mut context: Context<'_>, (_, bytes): (Resource<OutputStream>, Vec<u8>)| -> Written {
                context.data_mut().lines.write(&bytes);
                Ok((Ok(()),))
            },
        ),
        "[method]output-stream.flush" | "[method]output-stream.blocking-flush" => {
            linker.func_wrap(item, |_: Context<'_>, _: (Resource<OutputStream>,)| -> Written { Ok((Ok(()),)) })
        }
        "[method]output-stream.subscribe" => linker
            .func_wrap(item, |context: Context<'_>, _: (Resource<OutputStream>,)| Ok((handle::<Pollable>(context),))),
        "[method]input-stream.read" | "[method]input-stream.blocking-read" => linker
            .func_wrap(item, |_: Context<'_>, _: (Resource<InputStream>, u64)| {
                Ok((Err::<Vec<u8>, _>(StreamError::Closed),))
            }),
        _ => Ok(()),
    }
}

/// The only pollables a plugin can get are those of its output streams, and these are always ready.
fn define_poll(linker: &mut LinkerInstance<'_, Call>, item: &str) -> wasmtime::Result<()> {
    match item {
        "[method]pollable.block" => linker.func_wrap(item, |_: Context<'_>, _: (Resource<Pollable>,)| Ok(())),
        "[method]pollable.ready" => linker.func_wrap(item, |_: Context<'_>, _: (Resource<Pollable>,)| Ok((true,))),
        "poll" => linker.func_wrap(item, |_: Context<'_>, (pollables,): (Vec<Resource<Pollable>>,)| {
            let all = (0_u32..).zip(&pollables).map(|(index, _)| index);
            Ok((all.collect::<Vec<u32>>(),))
        }),
        _ => Ok(()),
    }
}

fn define_random(linker: &mut LinkerInstance<'_, Call>, item: &str) -> wasmtime::Result<()> {
    match item {
        "get-random-bytes" | "get-insecure-random-bytes" => linker
            .func_wrap(item, |mut context: Context<'_>, (len,): (u64,)| Ok((context.data_mut().random.bytes(len)?,))),
        "get-random-u64" | "get-insecure-random-u64" => {
            linker.func_wrap(item, |mut context: Context<'_>, (): ()| Ok((context.data_mut().random.next(),)))
        }
        "insecure-seed" => linker.func_wrap(item, |mut context: Context<'_>, (): ()| {
            let random = &mut context.data_mut().random;
            Ok(((random.next(), random.next()),))
        }),
        _ => Ok(()),
    }
}
