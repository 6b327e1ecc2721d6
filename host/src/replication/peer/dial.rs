//! A request to another node, on a connection of its own, after both nodes have proved themselves (see [`credential`]).
//!
//! [`credential`]: super::credential

use std::io;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;

use super::credential::{Credentials, Greeting};
use super::protocol::{CHALLENGE_PATH, CallError, Failure, NONCE_HEADER, PROOF_HEADER, REFUSAL_HEADER, URL_HEADER};
use crate::net::{self, Vanished};

/// The body of a request.
pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Most bytes that are read of an answer which should have none.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Why a node without a secret calls nobody: whoever answers at a member's URL would be believed.
const NO_SECRET: &str = "this node has no cluster secret (--cluster-secret-file), so it cannot know other nodes";

/// Why a node is not spoken to. It says nothing of what else may answer at its address.
const UNPROVEN: &str =
    "it does not prove that it is of this cluster: the cluster secrets differ, or it has another URL";

/// A connection to a node, for one request.
pub(crate) struct Dialed<'a> {
    sender: SendRequest<Body>,
    credentials: &'a Credentials,
    url: &'a str,
    /// What the other node has proved; none if it need not.
    proven: Option<Proven>,
}

/// This node's greeting, the other's nonce and proof, and the id of the secret that it has.
struct Proven {
    greeting: Greeting,
    nonce: String,
    proof: String,
    secret: [u8; 4],
}

/// Connects to the node at a base URL, and has it prove itself. There is no timeout; the caller sets one.
///
/// # Errors
///
/// If the node cannot be reached, is starting, or does not prove itself: it has seen no request.
pub(crate) async fn dial<'a>(
    credentials: &'a Credentials,
    url: &'a str,
    vanished: Vanished,
) -> Result<Dialed<'a>, CallError> {
    let unreachable = |error: io::Error| CallError::new(Failure::NotSent, url, error);
    let has_secret = credentials.proves_by().is_some();
    if !has_secret && !credentials.accepts_anyone() {
        return Err(CallError::new(Failure::NotSent, url, NO_SECRET));
    }
    let stream = net::connect(url, vanished).await.map_err(unreachable)?;
    let connected = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = connected.map_err(|error| unproven(url, &error))?;
    tokio::spawn(connection.with_upgrades());
    let mut dialed = Dialed { sender, credentials, url, proven: None };
    if has_secret {
        dialed.greet().await?;
    }
    Ok(dialed)
}

/// The answer of something that has not proved itself is for nobody but the log.
fn unproven(url: &str, error: &dyn std::fmt::Display) -> CallError {
    tracing::debug!(url, %error, "a node does not prove itself");
    CallError::new(Failure::NotSent, url, UNPROVEN)
}

impl Dialed<'_> {
    /// The id of the secret by which the node has proved itself; none if it has not.
    pub(crate) fn secret(&self) -> Option<[u8; 4]> {
        self.proven.as_ref().map(|proven| proven.secret)
    }

    /// Asks the node for a challenge, and checks its proof.
    async fn greet(&mut self) -> Result<(), CallError> {
        let failed = |failure, reason: &dyn ToString| CallError::new(failure, self.url, reason.to_string());
        let unsent = |error: io::Error| failed(Failure::NotSent, &error);
        let greeting = self.credentials.greet().map_err(unsent)?;
        let headers = [(NONCE_HEADER, greeting.nonce()), (URL_HEADER, greeting.url().to_owned())];
        let request = request(self.url, Method::GET, CHALLENGE_PATH, headers_of(headers).map_err(unsent)?, empty());
        let answer = self.sender.send_request(request.map_err(unsent)?).await;
        let answer = answer.map_err(|error| unproven(self.url, &error))?;
        let (head, body) = answer.into_parts();
        // The connection is used again, so the body is read to its end; of a node it is empty.
        let rest = http_body_util::Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        if head.status == StatusCode::SERVICE_UNAVAILABLE && head.headers.contains_key(REFUSAL_HEADER) {
            return Err(failed(Failure::Starting, &"it has no state to take part with yet"));
        }
        let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok().map(str::to_owned));
        let proved = text(NONCE_HEADER).zip(text(PROOF_HEADER)).filter(|_| head.status.is_success());
        self.proven = proved.and_then(|(nonce, proof)| {
            let secret = self.credentials.recognize(&greeting, self.url, (&nonce, &proof))?;
            Some(Proven { greeting, nonce, proof, secret })
        });
        // Earlier versions know no challenge, and other nodes may have no secret, or another one.
        if self.proven.is_none() && !(self.credentials.accepts_anyone() && rest.is_ok()) {
            return Err(unproven(self.url, &head.status));
        }
        self.sender.ready().await.map_err(|error| unproven(self.url, &error))
    }

    /// This node's proof for a request; none if the other node's is wrong.
    fn proof(&self, method: &str, path: &str) -> Option<String> {
        let Proven { greeting, nonce, proof, .. } = self.proven.as_ref()?;
        self.credentials.respond(greeting, self.url, (nonce, proof), (method, path))
    }

    /// Sends the request, to a path below the base URL.
    ///
    /// # Errors
    ///
    /// If the connection breaks before the head of the answer has arrived.
    pub(crate) async fn send(
        mut self,
        method: Method,
        path: &str,
        mut headers: HeaderMap,
        body: Body,
    ) -> io::Result<Response<Incoming>> {
        if let Some(proof) = self.proof(method.as_str(), path) {
            headers.insert(PROOF_HEADER, HeaderValue::try_from(proof).map_err(io::Error::other)?);
        }
        let request = request(self.url, method, path, headers, body)?;
        self.sender.send_request(request).await.map_err(io::Error::other)
    }
}

/// Why a node refuses this one, which has recognized it.
pub(crate) const NOT_ACCEPTED: &str = "it does not accept the proof of this node: it lacks a secret that this node has";

/// Headers from their names and values.
pub(crate) fn headers_of<const N: usize>(headers: [(&'static str, String); N]) -> io::Result<HeaderMap> {
    let header = |(name, value): (_, String)| Ok((HeaderName::from_static(name), HeaderValue::try_from(value)?));
    headers.into_iter().map(header).collect::<Result<_, http::header::InvalidHeaderValue>>().map_err(io::Error::other)
}

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never: std::convert::Infallible| match never {}).boxed_unsync()
}

fn request(url: &str, method: Method, path: &str, headers: HeaderMap, body: Body) -> io::Result<Request<Body>> {
    let (authority, base_path) = net::authority_and_path(url);
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = format!("{base_path}{path}").parse().map_err(io::Error::other)?;
    *request.headers_mut() = headers;
    request.headers_mut().insert(header::HOST, HeaderValue::try_from(authority).map_err(io::Error::other)?);
    Ok(request)
}
