//! The APIs that a load speaks: each turns a write or a read into one exchange on a connection.
//!
//! Every client of the load has one connection and one request in flight. A connection is opened by its first request, and
//! again after it broke. hyper speaks HTTP/1.1 and HTTP/2, without a pool. The frames of Redis and NATS are written by hand: a
//! load sends two kinds of them, and a client library would bring tasks and queues that cost more CPU than the request.
//!
//! An answer counts as a success only if it says so and, for a read, holds an entry. etcd's gateway is an exception: it answers with
//! success for a key that is absent.
//!
//! ```text
//! mod → {http, grpc, redis, nats} → wire → call
//! ```

mod call;
mod grpc;
mod http;
mod nats;
mod redis;
mod wire;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;

pub(super) use self::call::Call;
use self::call::Error;
pub(super) use self::http::{Dialect, open, refusal};
use super::super::{Failure, client, root_cause};
use super::args::Api;

/// How an API is spoken over HTTP/1.1, if it is.
pub(super) fn dialect(api: Api) -> Option<Dialect> {
    match api {
        Api::Brink => Some(Dialect::Brink),
        Api::Etcd => Some(Dialect::Etcd),
        Api::EtcdGrpc | Api::Redis | Api::Nats => None,
    }
}

/// The connection of a client to its node.
pub(super) struct Connection {
    api: Api,
    url: String,
    open: Option<Open>,
}

impl Connection {
    /// A connection that its first request opens. `url` is the node's base URL.
    pub(super) fn new(api: Api, url: &str) -> Self {
        Self { api, url: url.to_owned(), open: None }
    }

    /// Opens the connection before the first request.
    pub(super) async fn open(&mut self) -> Result<(), Failure> {
        let opened = tokio::time::timeout(client::TIMEOUT, Open::new(self.api, &self.url)).await;
        self.open = Some(opened.unwrap_or_else(|_| Err(self.late()))?);
        Ok(())
    }

    /// Sends a request and reads the whole answer, which must be a success.
    pub(super) async fn send(&mut self, call: &Call<'_>) -> Result<(), Failure> {
        let answered = tokio::time::timeout(client::TIMEOUT, self.exchange(call)).await;
        answered.unwrap_or_else(|_| Err(self.late()))
    }

    async fn exchange(&mut self, call: &Call<'_>) -> Result<(), Failure> {
        // It is put back only after a whole answer, so that an error or a timeout closes the connection.
        let mut open = match self.open.take().filter(|open| !open.is_closed()) {
            Some(open) => open,
            None => Open::new(self.api, &self.url).await?,
        };
        let result = open.exchange(call, &self.url).await;
        if matches!(result, Ok(()) | Err(Failure::Refused(_))) {
            self.open = Some(open);
        }
        result
    }

    fn late(&self) -> Failure {
        Failure::BadAnswer { url: self.url.clone(), reason: "it did not answer in time".to_owned() }
    }
}

/// An open connection.
enum Open {
    Http { dialect: Dialect, sender: SendRequest<Full<Bytes>> },
    Grpc(grpc::Connection),
    Redis(redis::Connection),
    Nats(nats::Connection),
}

impl Open {
    async fn new(api: Api, url: &str) -> Result<Self, Failure> {
        let opened = match api {
            Api::Brink => return Ok(Self::Http { dialect: Dialect::Brink, sender: open(url).await? }),
            Api::Etcd => return Ok(Self::Http { dialect: Dialect::Etcd, sender: open(url).await? }),
            Api::EtcdGrpc => grpc::Connection::open(url).await.map(Self::Grpc),
            Api::Redis => redis::Connection::open(url).await.map(Self::Redis),
            Api::Nats => nats::Connection::open(url).await.map(Self::Nats),
        };
        opened.map_err(|error| Failure::Unreachable { url: url.to_owned(), reason: root_cause(&error) })
    }

    /// Whether it is known that the node has closed the connection.
    fn is_closed(&self) -> bool {
        match self {
            Self::Http { sender, .. } => sender.is_closed(),
            Self::Grpc(connection) => connection.is_closed(),
            Self::Redis(_) | Self::Nats(_) => false,
        }
    }

    async fn exchange(&mut self, call: &Call<'_>, url: &str) -> Result<(), Failure> {
        let answered = match self {
            Self::Http { dialect, sender } => return http::exchange(sender, url, dialect.request(call)).await,
            Self::Grpc(connection) => connection.exchange(call).await,
            Self::Redis(connection) => connection.exchange(call).await,
            Self::Nats(connection) => connection.exchange(call).await,
        };
        answered.map_err(|error: Error| Failure::BadAnswer { url: url.to_owned(), reason: root_cause(&error) })
    }
}
