//! HTTP/1.1: brink's API, and the JSON gateway of etcd
//! (<https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/>).

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use super::super::super::kv::Consistency;
use super::super::super::{Failure, Method, Refusal, Request, key_path, root_cause};
use super::call::Call;
use crate::net;

/// Maximum bytes of a problem object.
const PROBLEM_BYTES_MAX: usize = 1024 * 1024;

/// Whose requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli::bench) enum Dialect {
    Brink,
    Etcd,
}

impl Dialect {
    /// A path that every node answers.
    pub(in crate::cli::bench) fn probe_path(self) -> &'static str {
        match self {
            Self::Brink => "/health/",
            Self::Etcd => "/version",
        }
    }

    pub(super) fn request(self, call: &Call<'_>) -> Request {
        match (self, call) {
            (Self::Brink, Call::Write { key, value, .. }) => {
                Request::new(Method::PUT, key_path(key)).body("application/json", format!("{{\"value\":\"{value}\"}}"))
            }
            (Self::Etcd, Call::Write { key, value, .. }) => {
                etcd("put", format!("{{\"key\":\"{}\",\"value\":\"{}\"}}", base64(key), base64(value)))
            }
            (Self::Brink, Call::Read { key, consistency }) => {
                let query = consistency.map_or(String::new(), |consistency| format!("?consistency={consistency}"));
                Request::get(format!("{}{query}", key_path(key)))
            }
            (Self::Etcd, Call::Read { key, consistency }) => {
                let local = matches!(consistency, Some(Consistency::Local));
                etcd("range", format!("{{\"key\":\"{}\",\"serializable\":{local}}}", base64(key)))
            }
        }
    }

    /// Writes several keys in one batch.
    pub(in crate::cli::bench) fn write_all(self, keys: impl Iterator<Item = String>, value: &str) -> Request {
        match self {
            Self::Brink => {
                let items: Vec<Value> = keys.map(|key| json!({"key": key, "value": value})).collect();
                Request::new(Method::POST, "/kv/batch/").json(&json!({ "items": items }))
            }
            Self::Etcd => {
                let put = |key: String| json!({"requestPut": {"key": base64(&key), "value": base64(value)}});
                etcd("txn", json!({"success": keys.map(put).collect::<Vec<_>>()}).to_string())
            }
        }
    }
}

fn etcd(call: &str, body: String) -> Request {
    Request::new(Method::POST, format!("/v3/kv/{call}")).body("application/json", body)
}

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Sends a request and reads the whole answer. After a refusal, too, the connection can be used again.
pub(super) async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    url: &str,
    request: Request,
) -> Result<(), Failure> {
    let request = request.into_http(url).map_err(|error| Failure::Usage(error.to_string()))?;
    let bad_answer = |error: hyper::Error| Failure::BadAnswer { url: url.to_owned(), reason: root_cause(&error) };
    sender.ready().await.map_err(bad_answer)?;
    let response = sender.send_request(request).await.map_err(bad_answer)?;
    let (status, mut body) = (response.status(), response.into_body());
    if !status.is_success() {
        return Err(refusal(url, status, body).await?);
    }
    while let Some(frame) = body.frame().await {
        frame.map_err(bad_answer)?;
    }
    Ok(())
}

/// The failure that an answer without success tells.
pub(in crate::cli::bench) async fn refusal(url: &str, status: StatusCode, body: Incoming) -> Result<Failure, Failure> {
    let collected = Limited::new(body, PROBLEM_BYTES_MAX).collect().await;
    let problem = collected.map_err(|error| Failure::BadAnswer { url: url.to_owned(), reason: root_cause(&*error) })?;
    Ok(Failure::Refused(Refusal::parse(status, &problem.to_bytes())))
}

/// Opens a connection. Its task ends when the sender is dropped, or when the node closes the connection.
pub(in crate::cli::bench) async fn open<B>(url: &str) -> Result<SendRequest<B>, Failure>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let unreachable = |reason: String| Failure::Unreachable { url: url.to_owned(), reason };
    let stream = net::connect(url, net::Vanished::Whenever).await.map_err(|error| unreachable(error.to_string()))?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| unreachable(error.to_string()))?;
    // An error of the connection fails its request as well.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
