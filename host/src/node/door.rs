//! The HTTP server of a node: one from the first moment of its start to its end, so that no connection is cut in between.

use std::sync::{Arc, OnceLock};

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use parking_lot::RwLock;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::net::Answer;
use crate::{api, net};

/// Serves a listener: refusals while the node starts, and then its API.
pub(super) struct Door {
    starting: api::Starting,
    answers: Arc<Answers>,
    server: JoinHandle<()>,
}

/// What answers requests now.
struct Answers {
    /// Until there is an API.
    refusing: RwLock<Router>,
    api: OnceLock<api::Api>,
}

impl Answer for Answers {
    type Session = <api::Api as Answer>::Session;

    async fn answer(&self, request: Request, session: &Arc<Self::Session>) -> Response {
        match self.api.get() {
            Some(api) => api.answer(request, session).await,
            None => {
                let refusing = self.refusing.read().clone();
                refusing.answer(request, &Arc::default()).await
            }
        }
    }
}

impl Door {
    /// Answers the probes and refuses everything else. Serves until `draining` is cancelled.
    pub(super) fn serve(listener: net::BoundedListener, starting: api::Starting, draining: CancellationToken) -> Self {
        let refusing = RwLock::new(api::starting_router(starting.clone()));
        let answers = Arc::new(Answers { refusing, api: OnceLock::new() });
        let server = tokio::spawn(net::serve(listener, answers.clone(), draining));
        Self { starting, answers, server }
    }

    /// Refuses for another reason than before.
    pub(super) fn refuse(&self, reason: &'static str) {
        let starting = api::Starting { reason, ..self.starting.clone() };
        *self.answers.refusing.write() = api::starting_router(starting);
    }

    /// Serves the API from now on. Returns the server's task.
    pub(super) fn open(self, api: api::Api) -> JoinHandle<()> {
        self.answers.api.get_or_init(|| api);
        self.server
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::api::Anonymous;
    use crate::replication::Credentials;
    use crate::telemetry::Telemetry;

    fn starting(reason: &'static str, anonymous: Anonymous) -> api::Starting {
        let surroundings = api::Surroundings {
            telemetry: Telemetry::disabled(),
            browsers: api::Browsers::new(vec!["h".to_owned()], &[]),
            access: api::Access::new(anonymous),
            callers: api::Callers::new(Credentials::new("http://h:1/kv-store/v1", None, false)),
        };
        api::Starting { reason, peer_urls: vec![], surroundings: Arc::new(surroundings) }
    }

    /// The status of the answer to a request that begins so.
    async fn status(address: SocketAddr, head: &str) -> String {
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        connection.write_all(format!("{head}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        connection.read_exact(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[9..]).into_owned()
    }

    #[tokio::test]
    async fn a_connection_outlives_the_reason_of_its_refusals() {
        let (listener, address) = net::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let starting = starting("first", Anonymous::ALL);
        let door = Door::serve(listener, starting, CancellationToken::new());
        let mut connection = tokio::net::TcpStream::connect(address).await.unwrap();
        for reason in ["first", "second", "third"] {
            door.refuse(reason);
            connection.write_all(b"GET /readyz HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            while !answer.ends_with(&format!("{reason}\n")) {
                let byte = connection.read_u8().await.expect("the connection goes on");
                answer.push(char::from(byte));
            }
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_node_that_starts_is_closed_to_pages_of_other_sites() {
        let (listener, address) = net::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let _door = Door::serve(listener, starting("why", Anonymous::ALL), CancellationToken::new());
        for (headers, expected) in [
            ("host: h", "503"),
            ("host: evil.example", "421"),
            ("host: h\r\norigin: http://evil.example", "403"),
            ("host: h\r\nsec-fetch-site: cross-site", "403"),
        ] {
            let head = format!("PUT /kv-store/v1/kv/a HTTP/1.1\r\n{headers}");
            assert_eq!(status(address, &head).await, expected, "{headers}");
        }
    }

    #[tokio::test]
    async fn a_node_that_starts_shows_strangers_no_more_than_later() {
        for (word, metrics, health) in [("plain", "401", "401"), ("read", "401", "200"), ("metrics", "200", "200")] {
            let (listener, address) = net::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
            let anonymous = Anonymous::of_word(word).unwrap();
            let _door = Door::serve(listener, starting("why", anonymous), CancellationToken::new());
            for (path, expected) in [
                ("/livez", "200"),
                ("/readyz", "503"),
                ("/metrics", metrics),
                ("/kv-store/v1/livez/", "200"),
                ("/kv-store/v1/metrics", metrics),
                ("/kv-store/v1/health/", health),
                ("/kv-store/v1/kv/a", "503"),
                ("/kv-store/v1/nowhere", "503"),
            ] {
                let head = format!("GET {path} HTTP/1.1\r\nhost: h");
                assert_eq!(status(address, &head).await, expected, "{word} {path}");
            }
        }
    }
}
