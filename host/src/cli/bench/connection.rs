//! A kept-alive HTTP/1.1 connection to a node.
//!
//! It uses hyper's client without a pool: every client of the load has one connection and one request in flight.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;

use super::super::client::TIMEOUT;
use super::super::failure::{Failure, Refusal, root_cause};
use super::super::request::Request;
use crate::net;

/// Maximum bytes of a problem object.
const PROBLEM_BYTES_MAX: usize = 1024 * 1024;

/// A connection that is opened by the first request, and again after it broke.
pub(super) struct Connection {
    url: String,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Connection {
    /// A connection to a node by its base URL.
    pub(super) fn new(url: &str) -> Self {
        Self { url: url.to_owned(), sender: None }
    }

    /// Sends a request and reads the whole answer, which must be a success.
    pub(super) async fn send(&mut self, request: Request) -> Result<(), Failure> {
        match tokio::time::timeout(TIMEOUT, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::BadAnswer { url: self.url.clone(), reason: "it did not answer in time".to_owned() }),
        }
    }

    async fn exchange(&mut self, request: Request) -> Result<(), Failure> {
        let request = request.into_http(&self.url).map_err(|error| Failure::Usage(error.to_string()))?;
        // The sender is put back only after a whole answer, so that an error or a timeout closes the connection.
        let mut sender = match self.sender.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => open(&self.url).await?,
        };
        let url = &self.url;
        let bad_answer = |error: &(dyn std::error::Error + 'static)| Failure::BadAnswer {
            url: url.clone(),
            reason: root_cause(error),
        };
        sender.ready().await.map_err(|error| bad_answer(&error))?;
        let response = sender.send_request(request).await.map_err(|error| bad_answer(&error))?;
        let (status, mut body) = (response.status(), response.into_body());
        if !status.is_success() {
            let problem = Limited::new(body, PROBLEM_BYTES_MAX).collect().await.map_err(|error| bad_answer(&*error))?;
            self.sender = Some(sender);
            return Err(Failure::Refused(Refusal::parse(status, &problem.to_bytes())));
        }
        while let Some(frame) = body.frame().await {
            frame.map_err(|error| bad_answer(&error))?;
        }
        self.sender = Some(sender);
        Ok(())
    }
}

/// Opens a connection. Its task ends when the sender is dropped, or when the node closes the connection.
async fn open(url: &str) -> Result<SendRequest<Full<Bytes>>, Failure> {
    let unreachable = |reason: String| Failure::Unreachable { url: url.to_owned(), reason };
    let stream = net::connect(url, None).await.map_err(|error| unreachable(error.to_string()))?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| unreachable(error.to_string()))?;
    // An error of the connection fails its request as well.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
