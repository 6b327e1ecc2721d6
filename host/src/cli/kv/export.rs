//! `brink kv export`: writes entries as lines of JSON, which `brink kv import` reads.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::super::client::{Client, Common};
use super::super::failure::Failure;
use super::super::output;
use super::range::{Pages, Range};

/// Entries of a page.
const PAGE_ENTRIES: usize = 1_000;

/// Write entries as lines of JSON: {"key", "value"}, or {"key", "value_base64", "content_type"}
///
/// Each page of 1,000 entries is consistent; writes between two pages may show.
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The output file; standard output if absent or -
    file: Option<PathBuf>,
    #[command(flatten)]
    range: Range,
    #[command(flatten)]
    common: Common,
}

/// A line of the export: the fields of an entry that a batch item has.
#[derive(Serialize, Deserialize)]
struct Line<'a> {
    key: &'a RawValue,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    value: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    value_base64: Option<&'a RawValue>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    content_type: Option<&'a RawValue>,
}

/// Runs the command.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let client = Client::new(&args.common)?;
    let file = args.file.filter(|file| file.as_os_str() != "-");
    let failed = |source| match &file {
        Some(path) => Failure::File { path: path.clone(), source },
        None => Failure::Output(source),
    };
    let out: Box<dyn Write> = match &file {
        Some(path) => Box::new(File::create(path).map_err(failed)?),
        None => Box::new(std::io::stdout()),
    };
    let mut out = BufWriter::new(out);
    let bar = output::progress(0, "entries");
    let mut pages = Pages::new(client, args.range, false, false);
    let mut count = 0;
    while let Some(page) = pages.next_page(PAGE_ENTRIES).await? {
        for entry in &page {
            let line = serde_json::from_str::<Line<'_>>(entry.get()).map_err(|error| failed(error.into()))?;
            serde_json::to_writer(&mut out, &line).map_err(|error| failed(error.into()))?;
            out.write_all(b"\n").map_err(failed)?;
        }
        count += page.len();
        bar.set_message(format!("{count} entries"));
        bar.tick();
    }
    out.flush().map_err(failed)?;
    bar.finish_and_clear();
    if file.is_some() {
        output::line(&format!("{count} entries exported"))?;
    }
    Ok(())
}
