//! One kept-alive connection to a node, as lean as it can be: a loader shares the machine with what it measures.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use super::client::{Failure, Refusal, Request, TIMEOUT};

/// A connection that is made when it is first needed, and again after it broke.
pub(super) struct Wire {
    /// Host and port.
    authority: String,
    base_path: String,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Wire {
    /// A connection to a node by its base URL.
    pub(super) fn to(base_url: &str) -> Self {
        let rest = base_url.strip_prefix("http://").unwrap_or(base_url);
        let (authority, path) = rest.split_once('/').map_or((rest, String::new()), |(a, p)| (a, format!("/{p}")));
        Self { authority: authority.to_owned(), base_path: path, sender: None }
    }

    /// Sends a request and reads the whole answer, which must be one of success.
    pub(super) async fn send(&mut self, request: Request) -> Result<(), Failure> {
        match tokio::time::timeout(TIMEOUT, self.exchange(request)).await {
            Ok(Ok((status, _))) if status.is_success() => Ok(()),
            Ok(Ok((status, body))) => {
                let problem = serde_json::from_slice(&body).unwrap_or(Value::Null);
                Err(Failure::Refused(Refusal { status, problem }))
            }
            Ok(Err(reason)) => Err(self.broken(reason)),
            Err(_) => Err(self.broken("it did not answer in time".to_owned())),
        }
    }

    fn broken(&mut self, reason: String) -> Failure {
        self.sender = None;
        Failure::Strange { url: self.authority.clone(), reason }
    }

    async fn exchange(&mut self, request: Request) -> Result<(http::StatusCode, Bytes), String> {
        let request = request.into_http(&self.base_path, &self.authority).map_err(|error| error.to_string())?;
        let sender = match &mut self.sender {
            Some(sender) => sender,
            None => self.sender.insert(connect(&self.authority).await?),
        };
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?;
        Ok((status, body.to_bytes()))
    }
}

async fn connect(authority: &str) -> Result<SendRequest<Full<Bytes>>, String> {
    let stream = TcpStream::connect(authority).await.map_err(|error| error.to_string())?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // It ends when the sender is dropped; what breaks it shows in the request that is in flight.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
