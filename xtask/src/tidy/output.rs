//! Who writes to standard output and standard error: one file of the host, which makes safe for terminals what others wrote.

use super::modules::{Crate, Target};

/// The file.
const WRITER: &str = "cli/io.rs";

/// Other files that name a stream, and what they do with it.
const EXCEPTIONS: [(&str, &str, &str); 5] = [
    ("cli/serve.rs", "std::io::stderr", "asks whether it is a terminal"),
    ("cli/plugin/run.rs", "std::io::stderr", "hands it to the log lines of plugins, whose fields are safe"),
    ("telemetry/mod.rs", "std::io::stderr", "hands it to the log lines, whose fields are safe"),
    ("sandbox/compiler/child.rs", "std::io::stdout", "writes compiled code to a file of its parent"),
    ("sandbox/compiler/child.rs", "std::io::stderr", "writes a reason to a file of its parent"),
];

/// The streams, by all the names they have.
const STREAMS: [&str; 5] =
    ["std::io::stdout", "std::io::stderr", "tokio::io::stdout", "tokio::io::stderr", "rustix::stdio"];

/// Macros that write to them.
const MACROS: [&str; 5] = ["print", "println", "eprint", "eprintln", "dbg"];

/// Describes each place in production code that writes past [`WRITER`], and each exception that is none any more.
pub(super) fn find(host: &Crate) -> Vec<String> {
    let mut found = Vec::new();
    let mut unused: Vec<_> =
        EXCEPTIONS.iter().filter(|(file, ..)| host.files.iter().any(|f| f.name == *file)).collect();
    for used in host.uses().iter().filter(|used| !used.in_test) {
        let Target::Outside(path) = &used.target else { continue };
        let (path, file) = (path.join("::"), &host.files[used.file].name);
        if !STREAMS.iter().any(|stream| path.starts_with(stream)) || file == WRITER {
            continue;
        }
        match EXCEPTIONS.iter().any(|(name, stream, _)| name == file && path == *stream) {
            true => unused.retain(|(name, stream, _)| name != file || path != *stream),
            false => found.push(format!("{file}:{}: {path}: only {WRITER} writes to it", used.path.line)),
        }
    }
    for file in host.files.iter().filter(|file| !file.in_test && file.name != WRITER) {
        let written = file.contents.macros.iter().filter(|call| !call.in_test);
        let written = written.filter(|call| call.segments.last().is_some_and(|name| MACROS.contains(&name.as_str())));
        found.extend(
            written.map(|call| {
                format!("{}:{}: {}!: only {WRITER} prints", file.name, call.line, call.segments.join("::"))
            }),
        );
    }
    found.extend(unused.iter().map(|(file, stream, _)| format!("{file} does not name {stream} any more")));
    found
}
