//! A plugin that misbehaves on demand, for tests of containment.
//!
//! Its configuration selects the misbehavior and the role. In the other role it accepts every write and changes nothing.
//! `README.md` lists each misbehavior with its expected outcome.

use std::hint::black_box;

use brink_guest::{Invalid, Plugin, Rejection, Replacement, Write, log, store};
use serde::Deserialize;

/// Default size of `huge-output`, in bytes.
const HUGE_BYTES: usize = 100_000_000;

/// Number of lines of `log-flood`, 1 MB in total.
const LOG_LINES: usize = 10_000;

/// Number of violations of `many-violations`.
const VIOLATIONS: usize = 10_000;

/// Number of reads of `read-flood`.
const READS: usize = 100_000;

/// An index beyond every request.
const BAD_INDEX: u32 = 1_000_000;

/// The plugin's configuration.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The misbehavior.
    #[serde(rename = "do")]
    pub misbehavior: Misbehavior,
    /// The role in which the plugin misbehaves; both if absent.
    pub role: Option<Role>,
    /// The size of `huge-output`, in bytes.
    pub bytes: Option<usize>,
}

/// A way to misbehave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Misbehavior {
    /// Never returns.
    Loop,
    /// Allocates memory without end.
    Allocate,
    /// Panics with the message `this panic is intended`.
    Panic,
    /// Returns a rejection with a huge message, or a huge replacement for each write.
    HugeOutput,
    /// Never returns from `configure`.
    LoopInConfigure,
    /// Refuses its configuration at `/do`.
    RefuseConfig,
    /// Recurses until the stack overflows.
    DeepRecursion,
    /// Logs 10,000 lines, then accepts.
    LogFlood,
    /// Rejects with 10,000 violations.
    ManyViolations,
    /// Uses an index beyond the request, in a violation or in a replacement.
    BadIndex,
    /// Replaces a value by text that is not JSON. The validator accepts.
    InvalidJson,
    /// Reads 100,000 keys, and rejects with the host's error.
    ReadFlood,
    /// Exits the process.
    Exit,
    /// Reads the clock, and rejects if that succeeds.
    Clock,
    /// Opens a file of the node's machine, and rejects if that succeeds.
    File,
    /// Opens a network connection, and rejects if that succeeds.
    Network,
}

/// A role of the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The validator.
    Validator,
    /// The transformer.
    Transformer,
}

/// The plugin.
#[derive(Debug)]
pub struct Hostile(Config);

impl Plugin for Hostile {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, Invalid> {
        match config.misbehavior {
            Misbehavior::LoopInConfigure => spin(),
            Misbehavior::RefuseConfig => Err(Invalid::new("/do", "this configuration is refused, as it asks for")),
            _ => Ok(Self(config)),
        }
    }

    fn transform(&self, writes: &[Write]) -> Result<Vec<Replacement>, Rejection> {
        if !self.acts_as(Role::Transformer) {
            return Ok(Vec::new());
        }
        match self.0.misbehavior {
            Misbehavior::HugeOutput => {
                Ok(writes.iter().map(|write| write.replace(vec![b'1'; self.huge_bytes()])).collect())
            }
            Misbehavior::BadIndex => Ok(vec![Replacement::new(BAD_INDEX, "1")]),
            Misbehavior::InvalidJson => Ok(writes.iter().map(|write| write.replace("{\"never\":")).collect()),
            misbehavior => act(misbehavior).map(|()| Vec::new()),
        }
    }

    fn validate(&self, _: &[Write]) -> Result<(), Rejection> {
        if !self.acts_as(Role::Validator) {
            return Ok(());
        }
        match self.0.misbehavior {
            Misbehavior::HugeOutput => Err(Rejection::new("huge", "x".repeat(self.huge_bytes()))),
            Misbehavior::BadIndex => {
                Err(Rejection::new("index", "a write that was not given").violation(BAD_INDEX, "", "", ""))
            }
            misbehavior => act(misbehavior),
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

/// Misbehaves in the same way in both roles.
#[allow(clippy::panic, reason = "the requested misbehavior")]
fn act(misbehavior: Misbehavior) -> Result<(), Rejection> {
    match misbehavior {
        Misbehavior::Loop => spin(),
        Misbehavior::Allocate => allocate(),
        Misbehavior::Panic => panic!("this panic is intended"),
        Misbehavior::DeepRecursion => {
            black_box(descend(0));
            Ok(())
        }
        Misbehavior::LogFlood => {
            for line in 0..LOG_LINES {
                log::info!("line {line:06} of many, which says nothing that the lines before it have not said already");
            }
            Ok(())
        }
        Misbehavior::ManyViolations => Err((0..VIOLATIONS)
            .fold(Rejection::new("many", "many rules are broken"), |all, n| {
                all.violation(0, format!("/{n}"), "many", "one of many")
            })),
        Misbehavior::ReadFlood => {
            for n in 0..READS {
                store::get(&format!("flood/{n}"))?;
            }
            Ok(())
        }
        Misbehavior::Exit => std::process::exit(1),
        Misbehavior::Clock => {
            let now = std::time::SystemTime::now();
            Err(Rejection::new("escaped", format!("it is {now:?}")))
        }
        Misbehavior::File => escaped("a file was opened", std::fs::File::open("/etc/hostname").is_ok()),
        Misbehavior::Network => escaped("a connection was made", std::net::TcpStream::connect("127.0.0.1:1").is_ok()),
        Misbehavior::HugeOutput
        | Misbehavior::LoopInConfigure
        | Misbehavior::RefuseConfig
        | Misbehavior::BadIndex
        | Misbehavior::InvalidJson => Ok(()),
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

/// Each call keeps a kilobyte on the stack, which it reads after the recursive call.
#[allow(unconditional_recursion, reason = "the requested misbehavior")]
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
    fn the_other_role_behaves() {
        let hostile = hostile(json!({"do": "panic", "role": "validator"})).unwrap();
        assert_eq!(hostile.transform(&writes()), Ok(Vec::new()));
    }

    #[test]
    #[should_panic(expected = "this panic is intended")]
    fn a_panic_panics() {
        let _ = hostile(json!({"do": "panic"})).unwrap().validate(&writes());
    }

    #[test]
    fn output_has_the_configured_size() {
        let hostile = hostile(json!({"do": "huge-output", "bytes": 1_000})).unwrap();
        assert_eq!(hostile.transform(&writes()).unwrap()[0].value.len(), 1_000);
        assert_eq!(hostile.validate(&writes()).unwrap_err().message.len(), 1_000);
    }

    #[test]
    fn answers_are_invalid_as_configured() {
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
    fn floods_exceed_the_limits() {
        let _open = mock::Store::new().open();
        let reads = hostile(json!({"do": "read-flood"})).unwrap();
        assert_eq!(reads.validate(&writes()).unwrap_err().code, "read-limit");
        let lines = hostile(json!({"do": "log-flood"})).unwrap();
        lines.validate(&writes()).unwrap();
        assert_eq!(mock::take_lines().len(), LOG_LINES);
    }
}
