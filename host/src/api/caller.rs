//! Which node has sent a request: it has proved itself on its connection, or is refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use parking_lot::Mutex;

use crate::net::BASE_PATH;
use crate::replication::{Challenge, Credentials, PROOF_HEADER};
use crate::text;

/// Interval at which refused callers are reported.
const REFUSED_REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Characters of the URL of a refused caller that are logged.
const LOGGED_URL_CHARS_MAX: usize = 200;

/// The challenge that a caller was given on a connection and has not answered yet.
pub(crate) type Session = Mutex<Option<Challenge>>;

/// Whether the handler of a request needs the [`Session`] of its connection.
pub(super) fn is_for_nodes(request: &Request) -> bool {
    request.uri().path().strip_prefix(BASE_PATH).is_some_and(|path| path.starts_with("/peer/"))
}

/// Decides which nodes are served.
pub(crate) struct Callers {
    pub(super) credentials: Credentials,
    /// When a refusal was last logged.
    reported: Mutex<Option<Instant>>,
}

impl Callers {
    pub(crate) fn new(credentials: Credentials) -> Arc<Self> {
        Arc::new(Self { credentials, reported: Mutex::default() })
    }

    /// `url`: what the caller says is its own.
    fn report_refused(&self, url: &str) {
        let mut reported = self.reported.lock();
        if reported.is_none_or(|reported| reported.elapsed() >= REFUSED_REPORT_INTERVAL) {
            *reported = Some(Instant::now());
            let url: String = text::safe(url).chars().take(LOGGED_URL_CHARS_MAX).collect();
            tracing::warn!(url, "a caller that does not prove that it is a node of this cluster was refused");
        }
    }
}

/// Serves a request if its caller has proved itself. The handler finds the [`crate::replication::Caller`] beside its request.
pub(super) async fn admitted(State(callers): State<Arc<Callers>>, mut request: Request, next: Next) -> Response {
    let session: Option<&Arc<Session>> = request.extensions().get();
    let challenge = session.and_then(|session| session.lock().take());
    let proof = request.headers().get(PROOF_HEADER).map(|proof| proof.to_str().unwrap_or_default());
    let url = challenge.as_ref().map_or_else(String::new, |challenge| challenge.caller_url().to_owned());
    let asked = (request.method().as_str(), request.uri().path());
    let Some(caller) = callers.credentials.admit(challenge, proof, asked) else {
        callers.report_refused(&url);
        return refused();
    };
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// The answer to whoever is no node of this cluster.
pub(super) fn refused() -> Response {
    // RFC 9110, section 11.6.1.
    let scheme = [(header::WWW_AUTHENTICATE, "Brink-Peer")];
    (StatusCode::UNAUTHORIZED, scheme, "this is for the nodes of this cluster").into_response()
}
