//! Connections to nodes.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;

use super::url::authority_and_path;

/// The port of a URL that names none.
const HTTP_PORT: u16 = 80;

/// Connects to the node at a base URL.
///
/// The kernel breaks the connection once sent bytes have been unacknowledged for `unacknowledged_max`.
///
/// # Errors
///
/// The system's. There is no timeout; the caller sets one.
pub async fn connect(base_url: &str, unacknowledged_max: Option<Duration>) -> io::Result<TcpStream> {
    let (authority, _) = authority_and_path(base_url);
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let stream = match has_port {
        true => TcpStream::connect(authority).await?,
        false => TcpStream::connect((authority.trim_matches(['[', ']']), HTTP_PORT)).await?,
    };
    stream.set_nodelay(true)?;
    if unacknowledged_max.is_some() {
        socket2::SockRef::from(&stream).set_tcp_user_timeout(unacknowledged_max)?;
    }
    Ok(stream)
}

/// How an HTTP client treats its connections.
#[derive(Debug, Clone, Copy)]
pub struct HttpClientOptions {
    /// How long a connection attempt may take.
    pub connect_timeout: Duration,
    /// How long a whole exchange may take; `None` if each request sets its own timeout.
    pub timeout: Option<Duration>,
    /// After how long a connection to a vanished peer breaks; `None` means never.
    pub vanished_after: Option<Duration>,
    /// Whether the environment may name a proxy.
    pub uses_proxy: bool,
}

/// Unanswered probes after which a silent connection breaks.
const KEEPALIVE_PROBES: u32 = 3;

/// The builder of an HTTP/1.1 client, which has connections of its own. The caller may add options before it builds.
pub fn http_client(options: HttpClientOptions) -> reqwest::ClientBuilder {
    let mut client = reqwest::Client::builder()
        .http1_only()
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .user_agent(concat!("brink/", env!("CARGO_PKG_VERSION")));
    if let Some(timeout) = options.timeout {
        client = client.timeout(timeout);
    }
    if let Some(vanished_after) = options.vanished_after {
        let interval = vanished_after / (KEEPALIVE_PROBES + 1);
        client =
            client.tcp_keepalive(interval).tcp_keepalive_interval(interval).tcp_keepalive_retries(KEEPALIVE_PROBES);
    }
    if options.uses_proxy { client } else { client.no_proxy() }
}
