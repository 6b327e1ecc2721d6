//! Input of commands: files, standard input, and arguments that may name a file.

use std::io::Read as _;
use std::path::Path;

use super::failure::Failure;

/// Reads a file, or standard input if the path is `-`.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    read.map_err(|source| Failure::File { path: path.to_owned(), source })
}

/// The text of an argument, or the content of the file that it names as `@FILE`.
pub(super) fn text_or_file(argument: &str) -> Result<Vec<u8>, Failure> {
    match argument.strip_prefix('@') {
        Some(file) => read_file(file.as_ref()),
        None => Ok(argument.as_bytes().to_vec()),
    }
}

/// The value of `--config`: JSON, or `@FILE` with JSON.
pub(super) fn config(argument: &str) -> Result<serde_json::Value, Failure> {
    serde_json::from_slice(&text_or_file(argument)?).map_err(|error| {
        Failure::Usage(format!("--config: {argument}: it must be JSON, or @ and a file of JSON ({error})"))
    })
}
