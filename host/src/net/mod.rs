//! The network: the only room that opens a socket. Base URLs of nodes, connections to them, and the listener and
//! the HTTP server of a node.
//!
//! Every socket that carries small messages has `TCP_NODELAY` set: a call or an answer must not wait for the
//! acknowledgement of an earlier one.
//!
//! Clients are bounded: their connections are counted (`listener`), and one that does nothing ends (`activity`). A connection that has
//! been upgraded is a peer's, which may be quiet for long; its owner watches it.
//!
//! A request of HTTP/1.1 is answered once its body was read, to its end or to a limit (`unread`), so that the answer reaches its client.

mod activity;
mod listener;
mod server;
mod unread;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

pub(crate) use self::listener::BoundedListener;
pub(crate) use self::server::{Answer, serve};

/// The path under which every node serves its API.
pub(crate) const BASE_PATH: &str = "/kv-store/v1";

/// Whether a base URL must name its path.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    Required,
    /// The URL may end after the port; [`BASE_PATH`] is added then.
    Optional,
}

/// The reason why a text is not the base URL of a node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UrlError {
    #[error("it is not a URL ({reason})")]
    Malformed { reason: String },
    #[error("only http:// is supported")]
    Scheme,
    /// The path is another, or there is a query or a fragment.
    #[error("its path must be {BASE_PATH}")]
    Path,
    #[error("it must not contain a user or password")]
    Credentials,
}

/// Checks the base URL of a node and returns it in its normal form: `http://host:port/kv-store/v1`, without a trailing
/// slash and without capitals.
pub(crate) fn base_url(found: &str, path: Path) -> Result<String, UrlError> {
    let mut url =
        reqwest::Url::parse(found.trim()).map_err(|error| UrlError::Malformed { reason: error.to_string() })?;
    if url.scheme() != "http" {
        return Err(UrlError::Scheme);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlError::Credentials);
    }
    let found_path = url.path().trim_end_matches('/');
    let is_allowed = found_path == BASE_PATH || (found_path.is_empty() && path == Path::Optional);
    if !is_allowed || url.query().is_some() || url.fragment().is_some() {
        return Err(UrlError::Path);
    }
    url.set_path(BASE_PATH);
    Ok(url.into())
}

/// Checks the base URL of a member of a cluster and returns its normal form, in which each node has one URL.
pub(crate) fn member_url(found: &str) -> Result<String, UrlError> {
    base_url(found, Path::Required).map(with_one_localhost)
}

/// A base URL with 127.0.0.1 for `localhost`.
pub(crate) fn with_one_localhost(base_url: String) -> String {
    match base_url.strip_prefix("http://localhost") {
        Some(rest) if rest.starts_with([':', '/']) => format!("http://127.0.0.1{rest}"),
        _ => base_url,
    }
}

/// Splits a base URL into the parts that a request needs: `host:port` and the path.
pub(crate) fn authority_and_path(base_url: &str) -> (&str, &str) {
    let rest = base_url.strip_prefix("http://").unwrap_or(base_url);
    rest.split_at(rest.find('/').unwrap_or(rest.len()))
}

/// The host in `host:port`; the port may be absent.
pub(crate) fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

/// The normal form of a host's name without a port, as clients send it; `None` for anything else.
pub(crate) fn host_name(found: &str) -> Option<String> {
    if found.contains([':', '/', '\\', '?', '#', '@', '*']) {
        return None;
    }
    let url = reqwest::Url::parse(&format!("http://{found}/")).ok()?;
    url.host_str().map(str::to_owned)
}

/// The normal form of an origin, as browsers send it: `https://host`, or with a port other than the scheme's own.
pub(crate) fn origin(found: &str) -> Option<String> {
    let url = reqwest::Url::parse(found).ok()?;
    let origin = url.origin().ascii_serialization();
    // A URL has a path in any case.
    let is_alone = url.as_str().strip_prefix(&origin) == Some("/");
    (is_alone && ["http", "https"].contains(&url.scheme())).then_some(origin)
}

/// The port of a URL that names none.
const HTTP_PORT: u16 = 80;

/// When the kernel breaks a connection whose other end has vanished.
#[derive(Clone, Copy)]
pub(crate) enum Vanished {
    /// After the kernel's own times, which are hours.
    Whenever,
    /// Once sent bytes have been unacknowledged for so long.
    Unacknowledged(Duration),
    /// Once the other end has not answered probes for so long, though nothing is sent to it.
    Silent(Duration),
}

/// Unanswered probes after which a silent connection breaks.
const KEEPALIVE_PROBES: u32 = 2;

/// Shortest interval of probes: the kernel counts in seconds.
const KEEPALIVE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// Connects to the node at a base URL. There is no timeout; the caller sets one.
pub(crate) async fn connect(base_url: &str, vanished: Vanished) -> io::Result<TcpStream> {
    let (authority, _) = authority_and_path(base_url);
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let stream = match has_port {
        true => TcpStream::connect(authority).await?,
        false => TcpStream::connect((authority.trim_matches(['[', ']']), HTTP_PORT)).await?,
    };
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(&stream);
    match vanished {
        Vanished::Whenever => {}
        Vanished::Unacknowledged(max) => socket.set_tcp_user_timeout(Some(max))?,
        Vanished::Silent(max) => {
            let interval = (max / (KEEPALIVE_PROBES + 1)).max(KEEPALIVE_INTERVAL_MIN);
            let keepalive = socket2::TcpKeepalive::new().with_time(interval).with_interval(interval);
            socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_PROBES))?;
        }
    }
    Ok(stream)
}

/// The builder of an HTTP/1.1 client, which has connections of its own. The caller may add options before it builds.
pub(crate) fn http_client(connect_timeout: Duration) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .http1_only()
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .user_agent(concat!("brink/", env!("CARGO_PKG_VERSION")))
}

/// Binds an address; port 0 lets the system choose. Returns the bound address, too.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<(BoundedListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    Ok((BoundedListener::new(listener), address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_has_one_normal_form() {
        for text in ["http://h:1/kv-store/v1", " http://h:1/kv-store/v1/ ", "http://H:1/kv-store/v1"] {
            assert_eq!(base_url(text, Path::Required).unwrap(), "http://h:1/kv-store/v1");
        }
        assert_eq!(member_url("http://LocalHost:1/kv-store/v1").unwrap(), "http://127.0.0.1:1/kv-store/v1");
        assert_eq!(base_url("http://h:1", Path::Optional).unwrap(), "http://h:1/kv-store/v1");
        assert_eq!(base_url("http://h:1/", Path::Optional).unwrap(), "http://h:1/kv-store/v1");
    }

    #[test]
    fn anything_else_is_refused_with_the_reason() {
        for (text, error) in [
            ("https://h:1/kv-store/v1", UrlError::Scheme),
            ("http://h:1/v2", UrlError::Path),
            ("http://h:1", UrlError::Path),
            ("http://h:1/kv-store/v1?a=1", UrlError::Path),
            ("http://user@h:1/kv-store/v1", UrlError::Credentials),
        ] {
            assert_eq!(base_url(text, Path::Required), Err(error), "{text}");
        }
        for text in ["", "h:1", "http://"] {
            assert!(base_url(text, Path::Optional).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_connection_breaks_when_its_other_end_has_vanished() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/kv-store/v1", listener.local_addr().unwrap());
        // Linux counts the times of probes in seconds.
        for max in [Duration::from_millis(100), Duration::from_secs(3), Duration::from_secs(60)] {
            let stream = connect(&url, Vanished::Silent(max)).await.unwrap();
            let socket = socket2::SockRef::from(&stream);
            assert!(socket.keepalive().unwrap());
            let (time, interval) = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
            let silent = time + interval * socket.tcp_keepalive_retries().unwrap();
            assert_eq!(silent, max.max(Duration::from_secs(3)));
            let stream = connect(&url, Vanished::Unacknowledged(max)).await.unwrap();
            assert_eq!(socket2::SockRef::from(&stream).tcp_user_timeout().unwrap(), Some(max));
        }
    }

    #[test]
    fn a_host_has_one_normal_form() {
        for (found, host) in
            [("KV.example.org", "kv.example.org"), ("node1", "node1"), ("b\u{fc}cher.de", "xn--bcher-kva.de")]
        {
            assert_eq!(host_name(found).unwrap(), host);
        }
        for found in ["", "kv.example.org:80", "http://h", "h/", "u@h", "*", "*.example.org", "a b", "[::1]"] {
            assert_eq!(host_name(found), None, "{found}");
        }
        for (authority, host) in [("h:1", "h"), ("h", "h"), ("[::1]:1", "[::1]"), ("[::1]", "[::1]"), ("h:", "h")] {
            assert_eq!(without_port(authority), host);
        }
    }

    #[test]
    fn an_origin_has_one_normal_form() {
        for (found, normal) in [
            ("https://app.example.org", "https://app.example.org"),
            ("https://APP.example.org:443/", "https://app.example.org"),
            ("http://localhost:3000", "http://localhost:3000"),
        ] {
            assert_eq!(origin(found).unwrap(), normal);
        }
        for found in
            ["*", "null", "app.example.org", "https://h/path", "https://h/?a", "https://u@h", "file:///a", "ws://h"]
        {
            assert_eq!(origin(found), None, "{found}");
        }
    }

    #[test]
    fn a_request_needs_authority_and_path() {
        assert_eq!(authority_and_path("http://[::1]:8000/kv-store/v1"), ("[::1]:8000", "/kv-store/v1"));
    }
}
