//! The HTTP server: connections of HTTP/1.1, or of HTTP/2 with prior knowledge, and their end.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::listener::{BoundedListener, BoundedStream};

/// What answers the requests of a server.
pub(crate) trait Answer: Send + Sync + 'static {
    fn answer(&self, request: Request) -> impl Future<Output = Response> + Send;
}

impl Answer for Router {
    async fn answer(&self, request: Request) -> Response {
        self.clone().call(request).await.unwrap_or_else(|never| match never {})
    }
}

/// Serves HTTP until `draining` is cancelled. Then it accepts no more connections, and returns once every request in progress
/// is answered.
pub(crate) async fn serve(mut listener: BoundedListener, answer: Arc<impl Answer>, draining: CancellationToken) {
    let connections = TaskTracker::new();
    while let Some(stream) = draining.run_until_cancelled(listener.accept()).await {
        connections.spawn(serve_connection(stream, answer.clone(), draining.clone()));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn serve_connection(stream: BoundedStream, answer: Arc<impl Answer>, draining: CancellationToken) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(answer.answer(request.map(Body::new)).await) }
    });
    let server = auto::Builder::new(TokioExecutor::new());
    let mut connection = pin!(server.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = draining.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.unwrap_or_else(|error| tracing::trace!(%error, "a connection broke"));
}
