//! The settings of a node: flags, then `BRINK_*` variables, then a TOML file.
//!
//! The error for a wrong setting is one line that names the setting, its value and what is allowed.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::api::Anonymous;
use crate::limits::{DISK_RESERVE_BYTES, SNAPSHOT_ENTRIES_MIN};
use crate::net::{self, BASE_PATH};
use crate::telemetry::LogFormat;

/// Log entries between snapshots, by default.
const SNAPSHOT_ENTRIES_DEFAULT: u64 = 10_000;

/// What may be given with `--allow-host`.
const ALLOWED_HOST: &str =
    "it must be a host's name without a port, such as kv.example.org; IP addresses are always allowed";

/// What may be given with `--allow-origin`.
const ALLOWED_ORIGIN: &str = "it must be an origin, such as https://app.example.org or http://localhost:3000";

/// The log filter, by default. openraft logs each of its steps at `info`, and each call that a dead peer does not answer at
/// `warn`; brink itself logs once that the peer is gone.
const LOG_DEFAULT: &str = "info,openraft=error";

/// The settings in one source, unchecked. All are optional.
#[derive(Debug, Clone, Default, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Given {
    /// Address and port to listen on [default: 127.0.0.1:8000]
    ///
    /// Any address that is not a loopback one needs --anonymous, since there are no tokens yet. Port 0 lets the system choose.
    #[arg(long, env = "BRINK_LISTEN", value_name = "ADDR:PORT")]
    pub listen: Option<String>,

    /// Where this node keeps its data [default: ./brink-data]
    #[arg(long, env = "BRINK_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// The URL under which the other nodes reach this one [default: http://HOSTNAME:PORT/kv-store/v1]
    #[arg(long, env = "BRINK_ADVERTISE_URL", value_name = "URL")]
    pub advertise_url: Option<String>,

    /// The other nodes, as a JSON list: [{"url": "http://node2:8000/kv-store/v1"}]
    ///
    /// Absent or empty: a single node. Every node is started with the URLs of all the others; they find each other.
    #[arg(long, env = "REPLICA_NODES", value_name = "JSON")]
    #[serde(default, deserialize_with = "nodes_as_json")]
    pub replica_nodes: Option<String>,

    /// What anyone may do without credentials [default: all that clients may on a loopback address]
    ///
    /// Words separated by commas: `read` entries; `write` and read them; `deploy` plugins and hooks, and read all entries; read
    /// `metrics`; `admin`: change the cluster, and all of the former; `peers`: be a node without a proof; `plain`: come without
    /// TLS, which there is not yet. May be repeated. Everything else is refused but /livez and /readyz.
    #[arg(long, env = "BRINK_ANONYMOUS", value_name = "LIST", value_delimiter = ',')]
    pub anonymous: Option<Vec<String>>,

    /// A file with the secret by which the nodes of the cluster know each other
    ///
    /// `brink cluster secret` makes one; every node needs the same. A second line is accepted from other nodes, too, so that
    /// secrets can be exchanged while the nodes run. Nodes on a loopback address share one of their user if none is given.
    #[arg(long, env = "BRINK_CLUSTER_SECRET_FILE", value_name = "FILE")]
    pub cluster_secret_file: Option<PathBuf>,

    /// An older name for --anonymous with all words
    #[arg(
        long,
        env = "BRINK_ALLOW_ANONYMOUS",
        num_args = 0..=1,
        default_missing_value = "true",
        value_name = "BOOL",
        hide = true
    )]
    pub allow_anonymous: Option<bool>,

    /// A further name by which clients call this node [default: none]
    ///
    /// Requests that name any other host are refused, since a web page can point a name of its own at this node. IP addresses,
    /// `localhost`, the host of --advertise-url and the machine's name are always allowed. May be repeated; the variable has
    /// names separated by commas.
    #[arg(long, env = "BRINK_ALLOW_HOST", value_name = "NAME", value_delimiter = ',')]
    pub allow_host: Option<Vec<String>>,

    /// An origin whose web pages may use this node [default: none]
    ///
    /// Pages of all other sites are refused. May be repeated; the variable has origins separated by commas.
    #[arg(long, env = "BRINK_ALLOW_ORIGIN", value_name = "ORIGIN", value_delimiter = ',')]
    pub allow_origin: Option<Vec<String>>,

    /// Memory for cached blocks of data, in MiB [default: a sixteenth of the machine's, 32 to 64]
    #[arg(long, env = "BRINK_CACHE_MIB", value_name = "MIB")]
    pub cache_mib: Option<u64>,

    /// Log entries after which a snapshot is taken and the log is cut [default: 10000]
    #[arg(long, env = "BRINK_SNAPSHOT_ENTRIES", value_name = "N")]
    pub snapshot_entries: Option<u64>,

    /// Free space of the data directory below which writes are refused, in MiB [default: 256]
    #[arg(long, env = "BRINK_DISK_RESERVE_MIB", value_name = "MIB")]
    pub disk_reserve_mib: Option<u64>,

    /// Go on with the remaining data if the log has lost entries that it had made durable
    ///
    /// Acknowledged writes may be gone. Without this flag, a node with other nodes sets its data aside and gets everything
    /// from them; a single node does not start.
    #[arg(long, env = "BRINK_ACCEPT_DATA_LOSS", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub accept_data_loss: Option<bool>,

    /// Log lines as `text` or `json` [default: text on a terminal, else json]
    #[arg(long, env = "BRINK_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,

    /// Log filter, such as `info` or `brink=debug,warn` [default: info,openraft=error]
    #[arg(long, env = "BRINK_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// In a TOML file, the other nodes are a list of URLs or of tables, as in the JSON.
fn nodes_as_json<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let nodes: Vec<NodeEntry> = Vec::deserialize(deserializer)?;
    let urls: Vec<String> = nodes.into_iter().map(NodeEntry::into_url).collect();
    serde_json::to_string(&urls).map(Some).map_err(serde::de::Error::custom)
}

/// Another node: `{"url": "…"}`, or only the URL.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum NodeEntry {
    Url(String),
    Table { url: String },
}

impl NodeEntry {
    fn into_url(self) -> String {
        match self {
            Self::Url(url) | Self::Table { url } => url,
        }
    }
}

impl Given {
    /// Reads settings from a TOML file. An unknown setting is an error.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let wrong = |reason| wrong("--config", path.display(), reason);
        let text = std::fs::read_to_string(path).map_err(|error| wrong(format!("it cannot be read: {error}")))?;
        toml::from_str(&text).map_err(|error| wrong(error.message().to_owned()))
    }

    /// These settings, completed with those of `other`.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            listen: self.listen.or(other.listen),
            data_dir: self.data_dir.or(other.data_dir),
            advertise_url: self.advertise_url.or(other.advertise_url),
            replica_nodes: self.replica_nodes.or(other.replica_nodes),
            anonymous: self.anonymous.or(other.anonymous),
            cluster_secret_file: self.cluster_secret_file.or(other.cluster_secret_file),
            allow_anonymous: self.allow_anonymous.or(other.allow_anonymous),
            allow_host: self.allow_host.or(other.allow_host),
            allow_origin: self.allow_origin.or(other.allow_origin),
            cache_mib: self.cache_mib.or(other.cache_mib),
            snapshot_entries: self.snapshot_entries.or(other.snapshot_entries),
            disk_reserve_mib: self.disk_reserve_mib.or(other.disk_reserve_mib),
            accept_data_loss: self.accept_data_loss.or(other.accept_data_loss),
            log_format: self.log_format.or(other.log_format),
            log: self.log.or(other.log),
        }
    }

    /// Checks the settings and fills in the defaults. The first wrong setting is the error.
    pub fn check(self) -> Result<Settings, Error> {
        let listen = self.listen.unwrap_or_else(|| "127.0.0.1:8000".to_owned());
        let listen: SocketAddr = listen.parse().map_err(|_| {
            wrong("--listen", &listen, "it must be an IP address and a port, such as 127.0.0.1:8000 or [::]:8000")
        })?;
        let anonymous = anonymous(listen, self.anonymous, self.allow_anonymous.unwrap_or(false))?;
        let advertise_url = self.advertise_url.map(|url| base_url("--advertise-url", &url)).transpose()?;
        let peer_urls = parse_nodes(self.replica_nodes.as_deref().unwrap_or_default())?;
        let has_secret = self.cluster_secret_file.is_some() || listen.ip().is_loopback();
        if !peer_urls.is_empty() && !has_secret && !anonymous.peers() {
            let reason = "it is reachable from other machines, so other nodes must prove themselves; name a \
                          --cluster-secret-file, which `brink cluster secret` makes, or let anyone be a node by --anonymous peers";
            return Err(wrong("--listen", listen, reason));
        }
        let snapshot_entries = self.snapshot_entries.unwrap_or(SNAPSHOT_ENTRIES_DEFAULT);
        if snapshot_entries < SNAPSHOT_ENTRIES_MIN {
            let reason = format!("it must be at least {SNAPSHOT_ENTRIES_MIN}");
            return Err(wrong("--snapshot-entries", snapshot_entries, reason));
        }
        Ok(Settings {
            listen,
            anonymous,
            data_dir: self.data_dir.unwrap_or_else(|| PathBuf::from("brink-data")),
            advertise_url,
            peer_urls,
            cluster_secret_file: self.cluster_secret_file,
            allowed_hosts: parse_all("--allow-host", self.allow_host, ALLOWED_HOST, net::host_name)?,
            allowed_origins: parse_all("--allow-origin", self.allow_origin, ALLOWED_ORIGIN, net::origin)?,
            cache_bytes: self.cache_mib.unwrap_or_else(default_cache_mib).saturating_mul(1024 * 1024),
            snapshot_entries,
            disk_reserve_bytes: self.disk_reserve_mib.map_or(DISK_RESERVE_BYTES, |mib| mib.saturating_mul(1024 * 1024)),
            accept_data_loss: self.accept_data_loss.unwrap_or(false),
            log_format: self.log_format.as_deref().map(parse_log_format).transpose()?,
            log: self.log.unwrap_or_else(|| LOG_DEFAULT.to_owned()),
        })
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub listen: SocketAddr,
    /// What anyone may do without credentials.
    pub anonymous: Anonymous,
    pub data_dir: PathBuf,
    /// The URL under which the others reach this node. The default depends on the bound port.
    pub advertise_url: Option<String>,
    pub peer_urls: Vec<String>,
    /// Where the secrets of the cluster are.
    pub cluster_secret_file: Option<PathBuf>,
    /// Names of this node besides those of [`Settings::hosts`].
    pub allowed_hosts: Vec<String>,
    /// Origins whose pages may use this node, in the form in which browsers send them.
    pub allowed_origins: Vec<String>,
    /// Memory for cached blocks, in bytes.
    pub cache_bytes: u64,
    pub snapshot_entries: u64,
    /// Free space below which writes are refused, in bytes.
    pub disk_reserve_bytes: u64,
    /// Whether to go on with the remaining data after a loss.
    pub accept_data_loss: bool,
    /// The format of log lines. `None`: text if standard error is a terminal, else JSON.
    pub log_format: Option<LogFormat>,
    pub log: String,
}

impl Settings {
    /// The URL under which the others reach this node, once the port is known. It must not be in the list of the others.
    pub fn self_url(&self, bound: SocketAddr) -> Result<String, Error> {
        let url = match &self.advertise_url {
            Some(url) => url.clone(),
            None => {
                let host = gethostname::gethostname();
                let url = format!("http://{}:{}{BASE_PATH}", host.to_string_lossy(), bound.port());
                // In its normal form, as others find it in their lists.
                let reason = |error| format!("the host's name makes no URL: {error}");
                net::member_url(&url).map_err(|error| wrong("--advertise-url", url, reason(error)))?
            }
        };
        if self.peer_urls.contains(&url) {
            let reason = "that is this node's own URL; the list names the other nodes only";
            return Err(wrong("REPLICA_NODES", url, reason));
        }
        Ok(url)
    }

    /// The names by which clients may call this node, which is at `self_url`.
    pub fn hosts(&self, self_url: &str) -> Vec<String> {
        let (authority, _) = net::authority_and_path(self_url);
        let machine = gethostname::gethostname().to_string_lossy().into_owned();
        let own = ["localhost".to_owned(), net::without_port(authority).to_owned(), machine];
        own.into_iter().chain(self.allowed_hosts.iter().cloned()).collect()
    }
}

/// A wrong setting.
#[derive(Debug, thiserror::Error)]
#[error("{setting}: {found:?}: {reason}")]
pub(crate) struct Error {
    setting: &'static str,
    found: String,
    /// The fault, and what is allowed.
    reason: String,
}

fn wrong(setting: &'static str, found: impl Display, reason: impl Into<String>) -> Error {
    Error { setting, found: found.to_string(), reason: reason.into() }
}

/// What anyone may do: what is named, or all that clients may on a loopback address where nothing is.
fn anonymous(listen: SocketAddr, words: Option<Vec<String>>, is_all: bool) -> Result<Anonymous, Error> {
    let is_default = words.is_none() && listen.ip().is_loopback();
    let allowed = format!("it must be one of {}", Anonymous::words());
    let named = parse_all("--anonymous", words, &allowed, Anonymous::of_word)?;
    if is_all || is_default {
        return Ok(if is_all { Anonymous::ALL } else { Anonymous::CLIENTS });
    }
    if named.is_empty() && !listen.ip().is_loopback() {
        let reason = "it is reachable from other machines, and there are no tokens yet; use a loopback address, or name \
                      what anyone there may do, such as --anonymous read";
        return Err(wrong("--listen", listen, reason));
    }
    Ok(named.into_iter().fold(Anonymous::default(), Anonymous::with))
}

fn parse_nodes(json: &str) -> Result<Vec<String>, Error> {
    const SETTING: &str = "REPLICA_NODES";
    if json.trim().is_empty() {
        return Ok(Vec::new());
    }
    let nodes: Vec<NodeEntry> = serde_json::from_str(json).map_err(|error| {
        let allowed =
            format!("a JSON list of the other nodes, such as [{{\"url\": \"http://node2:8000{BASE_PATH}\"}}]");
        wrong(SETTING, json, format!("it must be {allowed} ({error})"))
    })?;
    let mut urls = Vec::with_capacity(nodes.len());
    for node in nodes {
        let url = base_url(SETTING, &node.into_url())?;
        if urls.contains(&url) {
            return Err(wrong(SETTING, url, "it is in the list twice"));
        }
        urls.push(url);
    }
    Ok(urls)
}

/// Checks the base URL of a node and normalizes it; the result has no trailing slash.
fn base_url(setting: &'static str, found: &str) -> Result<String, Error> {
    net::member_url(found).map_err(|error| {
        wrong(setting, found, format!("{error}; a node's URL looks like http://node2:8000{BASE_PATH}"))
    })
}

/// Reads a setting that may be given several times. Empty texts are left out, so that a variable may be empty.
fn parse_all<T>(
    setting: &'static str,
    found: Option<Vec<String>>,
    allowed: &str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, Error> {
    let found = found.unwrap_or_default();
    let given = found.iter().map(|one| one.trim()).filter(|one| !one.is_empty());
    given.map(|one| parse(one).ok_or_else(|| wrong(setting, one, allowed))).collect()
}

fn parse_log_format(found: &str) -> Result<LogFormat, Error> {
    match found {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(wrong("--log-format", found, "it must be `text` or `json`")),
    }
}

/// A sixteenth of the machine's memory, within bounds that keep a node small: the system's page cache helps too.
fn default_cache_mib() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total_kib: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse().ok())
        .unwrap_or(1024 * 1024);
    (total_kib / 1024 / 16).clamp(32, 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_nodes(json: &str) -> Result<Settings, Error> {
        Given { replica_nodes: Some(json.to_owned()), ..Given::default() }.check()
    }

    #[test]
    fn nodes_may_be_objects_or_urls_with_or_without_a_trailing_slash() {
        let settings = with_nodes(r#"[{"url":"http://node2:8000/kv-store/v1"},"http://node3:8000/kv-store/v1/"]"#);
        let expected = ["http://node2:8000/kv-store/v1", "http://node3:8000/kv-store/v1"];
        assert_eq!(settings.unwrap().peer_urls, expected);
        assert!(with_nodes("").unwrap().peer_urls.is_empty());
        assert!(with_nodes("[]").unwrap().peer_urls.is_empty());
    }

    #[test]
    fn a_wrong_list_of_nodes_is_named_with_what_is_allowed() {
        let wrong = [
            "{",
            r#"{"url":"x"}"#,
            "[1]",
            r#"["node2:8000"]"#,
            r#"["http://node2:8000"]"#,
            r#"["https://n/kv-store/v1"]"#,
        ];
        for json in wrong {
            let error = with_nodes(json).unwrap_err();
            assert_eq!(error.setting, "REPLICA_NODES");
            assert!(error.to_string().contains("http://node2:8000/kv-store/v1"), "{error}");
        }
    }

    #[test]
    fn a_node_must_not_be_named_twice_nor_name_itself() {
        let twice = r#"["http://a:1/kv-store/v1","http://a:1/kv-store/v1/"]"#;
        assert!(with_nodes(twice).unwrap_err().to_string().contains("twice"));

        let mut settings = with_nodes(r#"["http://a:1/kv-store/v1"]"#).unwrap();
        settings.advertise_url = Some("http://a:1/kv-store/v1".to_owned());
        assert!(settings.self_url("127.0.0.1:1".parse().unwrap()).unwrap_err().to_string().contains("own URL"));
    }

    #[test]
    fn an_address_others_can_reach_needs_to_be_allowed() {
        let open = Given { listen: Some("0.0.0.0:8000".to_owned()), ..Given::default() };
        assert!(open.clone().check().unwrap_err().to_string().contains("--anonymous"));
        let anonymous = |words: &[&str]| {
            let words = words.iter().map(|&word| word.to_owned()).collect();
            Given { anonymous: Some(words), ..open.clone() }.check().map(|settings| settings.anonymous)
        };
        assert!(anonymous(&[]).is_err());
        assert!(anonymous(&["", " "]).is_err());
        assert_eq!(anonymous(&["read", " peers "]).unwrap(), opened(&["read", "peers"]));
        let everything = Given { allow_anonymous: Some(true), ..open.clone() }.check().unwrap();
        assert_eq!(everything.anonymous, Anonymous::ALL);
        assert!(Given { allow_anonymous: Some(false), ..open.clone() }.check().is_err());
        let error = anonymous(&["read", "tokens"]).unwrap_err().to_string();
        let allowed = "it must be one of read, write, deploy, metrics, admin, peers, plain";
        assert_eq!(error, format!("--anonymous: \"tokens\": {allowed}"));
    }

    #[test]
    fn nodes_that_others_can_reach_need_a_secret_or_none_of_them_does() {
        let nodes = |more: Given| {
            let nodes = r#"["http://node2:8000/kv-store/v1"]"#.to_owned();
            let given = Given { replica_nodes: Some(nodes), anonymous: Some(vec!["read".to_owned()]), ..more };
            given.check().map(|_| ()).map_err(|error| error.to_string())
        };
        let reachable = Given { listen: Some("0.0.0.0:8000".to_owned()), ..Given::default() };
        let error = nodes(reachable.clone()).unwrap_err();
        assert!(error.contains("--cluster-secret-file") && error.contains("--anonymous peers"), "{error}");
        let secret = Some(PathBuf::from("secret"));
        assert_eq!(nodes(Given { cluster_secret_file: secret, ..reachable.clone() }), Ok(()));
        assert_eq!(nodes(Given { allow_anonymous: Some(true), ..reachable }), Ok(()));
        assert_eq!(nodes(Given::default()), Ok(()));
    }

    #[test]
    fn on_loopback_everything_is_open_to_clients_unless_something_is_named() {
        let anonymous = |file: &str| toml::from_str::<Given>(file).unwrap().check().unwrap().anonymous;
        assert_eq!(anonymous(""), opened(&["admin", "plain"]));
        assert_eq!(anonymous("allow-anonymous = false"), opened(&["admin", "plain"]));
        assert_eq!(anonymous("anonymous = [\"read\"]"), opened(&["read"]));
        assert_eq!(anonymous("anonymous = [\"read\", \"metrics\"]"), opened(&["read", "metrics"]));
        assert_eq!(anonymous("anonymous = []"), Anonymous::default());
        assert_eq!(anonymous("anonymous = [\"read\"]\nallow-anonymous = true"), Anonymous::ALL);
    }

    fn opened(words: &[&str]) -> Anonymous {
        let words = words.iter().map(|word| Anonymous::of_word(word).unwrap());
        words.fold(Anonymous::default(), Anonymous::with)
    }

    #[test]
    fn hosts_and_origins_are_allowed_by_name() {
        let file: Given = toml::from_str(
            "advertise-url = \"http://node1:8000/kv-store/v1\"\nallow-host = [\"KV.example.org\"]\nallow-origin = [\"https://a.b/\"]",
        )
        .unwrap();
        let settings = Given::default().or(file.clone()).check().unwrap();
        let hosts = settings.hosts("http://node1:8000/kv-store/v1");
        for name in ["localhost", "node1", "kv.example.org"] {
            assert!(hosts.contains(&name.to_owned()), "{hosts:?}");
        }
        assert_eq!(settings.allowed_origins, ["https://a.b"]);

        let flags = |host: &str, origin: &str| {
            let (host, origin) = (vec![host.to_owned()], vec![origin.to_owned()]);
            Given { allow_host: Some(host), allow_origin: Some(origin), ..Given::default() }.or(file.clone()).check()
        };
        let settings = flags("other", "").unwrap();
        assert_eq!((settings.allowed_hosts, settings.allowed_origins), (vec!["other".to_owned()], vec![]));
        let error = flags("other:8000", "").unwrap_err().to_string();
        assert!(error.starts_with("--allow-host: \"other:8000\": it must be a host's name without a port"), "{error}");
        let error = flags("", "*").unwrap_err().to_string();
        assert!(error.starts_with("--allow-origin: \"*\": it must be an origin"), "{error}");
    }

    #[test]
    fn flags_win_over_the_file() {
        let file: Given =
            toml::from_str("listen = \"127.0.0.1:1\"\nreplica-nodes = [{ url = \"http://b:2/kv-store/v1\" }]").unwrap();
        let flags = Given { listen: Some("127.0.0.1:9".to_owned()), ..Given::default() };
        let settings = flags.or(file).check().unwrap();
        assert_eq!(settings.listen.port(), 9);
        assert_eq!(settings.peer_urls, ["http://b:2/kv-store/v1"]);
        assert!(toml::from_str::<Given>("lisen = 1").is_err());
    }
}
