//! A plugin that misbehaves on demand, to test that nodes contain it.
//!
//! Its configuration says what it does, and in which role; in the other role it accepts everything and changes nothing.
//! `README.md` lists the deeds and what a node should make of each.

use std::hint::black_box;

use brink_guest::{Invalid, Plugin, Rejection, Replacement, Write, log, store};
use serde::Deserialize;

/// Bytes of `huge-output` unless the configuration says otherwise.
const HUGE_BYTES: usize = 100_000_000;

/// Lines of `log-flood`: 1 MB in all.
const LOG_LINES: usize = 10_000;

/// Violations of `many-violations`.
const VIOLATIONS: usize = 10_000;

/// Reads of `read-flood`.
const READS: usize = 100_000;

/// A position that no request reaches.
const BAD_INDEX: u32 = 1_000_000;

/// What the plugin does, and when.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The deed.
    #[serde(rename = "do")]
    pub deed: Deed,
    /// The only role to do it in; both if absent.
    pub role: Option<Role>,
    /// The size of `huge-output`, in bytes.
    pub bytes: Option<usize>,
}

/// What a plugin can do wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// Never answers.
    Loop,
    /// Takes memory until there is no more.
    Allocate,
    /// Panics with the message `this panic is intended`.
    Panic,
    /// Returns a rejection whose message is huge, or a huge replacement.
    HugeOutput,
    /// Never comes back from `configure`.
    LoopInConfigure,
    /// Refuses its configuration at `/do`.
    RefuseConfig,
    /// Calls itself until the stack is full.
    DeepRecursion,
    /// Logs 10,000 lines, then answers as it should.
    LogFlood,
    /// Rejects with 10,000 violations.
    ManyViolations,
    /// Names a write that it was not given: in a violation, or in a replacement.
    BadIndex,
    /// Replaces a value by text that is not JSON. As a validator, it accepts.
    InvalidJson,
    /// Reads 100,000 keys; rejects with what the host says to that.
    ReadFlood,
    /// Ends its process.
    Exit,
    /// Asks for the time of day; rejects if it gets it.
    Clock,
    /// Opens a file of the node's machine; rejects if it can.
    File,
    /// Connects to another machine; rejects if it can.
    Network,
}

/// A role of the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Judging.
    Validator,
    /// Rewriting.
    Transformer,
}

/// The plugin.
#[derive(Debug)]
pub struct Hostile(Config);

impl Plugin for Hostile {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, Invalid> {
        match config.deed {
            Deed::LoopInConfigure => spin(),
            Deed::RefuseConfig => Err(Invalid::new("/do", "this configuration is refused, as it asks for")),
            _ => Ok(Self(config)),
        }
    }

    fn transform(&self, writes: &[Write]) -> Result<Vec<Replacement>, Rejection> {
        if !self.acts_as(Role::Transformer) {
            return Ok(Vec::new());
        }
        match self.0.deed {
            Deed::HugeOutput => Ok(vec![Replacement::new(0, vec![b'1'; self.huge_bytes()])]),
            Deed::BadIndex => Ok(vec![Replacement::new(BAD_INDEX, "1")]),
            Deed::InvalidJson => Ok(writes.iter().map(|write| write.replace("{\"never\":")).collect()),
            deed => act(deed).map(|()| Vec::new()),
        }
    }

    fn validate(&self, _: &[Write]) -> Result<(), Rejection> {
        if !self.acts_as(Role::Validator) {
            return Ok(());
        }
        match self.0.deed {
            Deed::HugeOutput => Err(Rejection::new("huge", "x".repeat(self.huge_bytes()))),
            Deed::BadIndex => {
                Err(Rejection::new("index", "a write that was not given").violation(BAD_INDEX, "", "", ""))
            }
            deed => act(deed),
        }
    }
}

impl Hostile {
    fn acts_as(&self, role: Role) -> bool {
        self.0.role.is_none_or(|only| only == role)
    }

    fn huge_bytes(&self) -> usize {
        self.0.bytes.unwrap_or(HUGE_BYTES)
    }
}

/// The deeds that are the same in both roles.
#[allow(clippy::panic, reason = "a deed")]
fn act(deed: Deed) -> Result<(), Rejection> {
    match deed {
        Deed::Loop => spin(),
        Deed::Allocate => allocate(),
        Deed::Panic => panic!("this panic is intended"),
        Deed::DeepRecursion => {
            black_box(descend(0));
            Ok(())
        }
        Deed::LogFlood => {
            for line in 0..LOG_LINES {
                log::info!("line {line:06} of many, which says nothing that the lines before it have not said already");
            }
            Ok(())
        }
        Deed::ManyViolations => Err((0..VIOLATIONS).fold(Rejection::new("many", "many rules are broken"), |all, n| {
            all.violation(0, format!("/{n}"), "many", "one of many")
        })),
        Deed::ReadFlood => {
            for n in 0..READS {
                store::get(&format!("flood/{n}"))?;
            }
            Ok(())
        }
        Deed::Exit => std::process::exit(1),
        Deed::Clock => {
            let now = std::time::SystemTime::now();
            Err(Rejection::new("escaped", format!("it is {now:?}")))
        }
        Deed::File => escaped("a file was opened", std::fs::File::open("/etc/hostname").is_ok()),
        Deed::Network => escaped("a connection was made", std::net::TcpStream::connect("127.0.0.1:1").is_ok()),
        Deed::HugeOutput | Deed::LoopInConfigure | Deed::RefuseConfig | Deed::BadIndex | Deed::InvalidJson => Ok(()),
    }
}

fn escaped(how: &str, has_escaped: bool) -> Result<(), Rejection> {
    if has_escaped { Err(Rejection::new("escaped", how)) } else { Ok(()) }
}

fn spin() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

fn allocate() -> ! {
    let mut taken = Vec::new();
    loop {
        taken.push(black_box(vec![1_u8; 1 << 20]));
    }
}

/// Each turn keeps a kilobyte on the stack and is needed after the next one returns.
#[allow(unconditional_recursion, reason = "a deed")]
fn descend(depth: u64) -> u64 {
    let frame = black_box([depth; 128]);
    descend(depth.wrapping_add(1)).wrapping_add(frame.iter().copied().fold(0, u64::wrapping_add))
}

brink_guest::export_plugin!(Hostile);

#[cfg(test)]
mod tests {
    use brink_guest::{config, mock};
    use serde_json::json;

    use super::*;

    fn hostile(config: serde_json::Value) -> Result<Hostile, Invalid> {
        Hostile::configure(config::parse(&config.to_string())?)
    }

    fn writes() -> Vec<Write> {
        vec![Write::json_value(0, "k", &json!({"a": 1}))]
    }

    #[test]
    fn a_configuration_can_be_refused() {
        assert_eq!(hostile(json!({"do": "refuse-config"})).unwrap_err().path, "/do");
        assert_eq!(hostile(json!({"do": "nothing"})).unwrap_err().path, "/do");
    }

    #[test]
    fn a_role_that_is_not_asked_for_behaves() {
        let hostile = hostile(json!({"do": "panic", "role": "validator"})).unwrap();
        assert_eq!(hostile.transform(&writes()), Ok(Vec::new()));
    }

    #[test]
    #[should_panic(expected = "this panic is intended")]
    fn a_panic_is_a_panic() {
        let _ = hostile(json!({"do": "panic"})).unwrap().validate(&writes());
    }

    #[test]
    fn output_is_as_large_as_asked() {
        let hostile = hostile(json!({"do": "huge-output", "bytes": 1_000})).unwrap();
        assert_eq!(hostile.transform(&writes()).unwrap()[0].value.len(), 1_000);
        assert_eq!(hostile.validate(&writes()).unwrap_err().message.len(), 1_000);
    }

    #[test]
    fn answers_are_bad_as_asked() {
        let bad_index = hostile(json!({"do": "bad-index"})).unwrap();
        assert_eq!(bad_index.transform(&writes()).unwrap()[0].item, BAD_INDEX);
        assert_eq!(bad_index.validate(&writes()).unwrap_err().violations[0].item, BAD_INDEX);
        let invalid_json = hostile(json!({"do": "invalid-json"})).unwrap();
        let replacements = invalid_json.transform(&writes()).unwrap();
        assert!(serde_json::from_slice::<serde_json::Value>(&replacements[0].value).is_err());
        let many = hostile(json!({"do": "many-violations"})).unwrap();
        assert_eq!(many.validate(&writes()).unwrap_err().violations.len(), VIOLATIONS);
    }

    #[test]
    fn floods_flood() {
        let _open = mock::Store::new().open();
        let reads = hostile(json!({"do": "read-flood"})).unwrap();
        assert_eq!(reads.validate(&writes()).unwrap_err().code, "read-limit");
        let lines = hostile(json!({"do": "log-flood"})).unwrap();
        lines.validate(&writes()).unwrap();
        assert_eq!(mock::take_lines().len(), LOG_LINES);
    }
}
