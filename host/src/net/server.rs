//! The HTTP server: connections of HTTP/1.1, or of HTTP/2 with prior knowledge, and their end.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Version;
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::activity::{InProgress, Verdict, Watch, Watched};
use super::listener::BoundedListener;
use super::unread::Unread;
use crate::limits::{
    HEAD_BYTES_MAX, HTTP2_PING_DEADLINE, HTTP2_PING_INTERVAL, HTTP2_SEND_BYTES_MAX, HTTP2_STREAMS_MAX,
};

/// What answers the requests of a server.
pub(crate) trait Answer: Send + Sync + 'static {
    /// What it remembers from one request on a connection to the next.
    type Session: Default + Send + Sync + 'static;

    fn answer(&self, request: Request, session: &Arc<Self::Session>) -> impl Future<Output = Response> + Send;
}

impl Answer for Router {
    type Session = ();

    async fn answer(&self, request: Request, _session: &Arc<()>) -> Response {
        self.clone().call(request).await.unwrap_or_else(|never| match never {})
    }
}

/// Serves HTTP until `draining` is cancelled. Then it accepts no more connections, and returns once every request in progress
/// is answered.
pub(crate) async fn serve(mut listener: BoundedListener, answer: Arc<impl Answer>, draining: CancellationToken) {
    let connections = TaskTracker::new();
    while let Some((stream, counted)) = draining.run_until_cancelled(listener.accept()).await {
        connections.spawn(serve_connection(stream, counted, answer.clone(), draining.clone()));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Serves a connection until it ends, or does nothing for too long. It holds `held` until then, or until the stream of an
/// upgraded connection ends.
async fn serve_connection<S, H, A: Answer>(stream: S, held: H, answer: Arc<A>, draining: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: Unpin + Send + 'static,
{
    let (stream, activity) = Watched::new(stream, held);
    let mut watch = Watch::new(activity.clone());
    let (unread, session) = (Unread::default(), Arc::<A::Session>::default());
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let in_progress = activity.begin(request.version() == Version::HTTP_2);
        let (answer, unread, session) = (answer.clone(), unread.clone(), session.clone());
        async move {
            let answer = answer.answer(unread.lend(request), &session).await;
            unread.discard(answer.status()).await;
            Ok::<_, Infallible>(answer.map(|body| Answered { body, _in_progress: in_progress }))
        }
    });
    let server = builder();
    let mut connection = pin!(server.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let mut is_closing = false;
    let ended = loop {
        let must_close = async {
            tokio::select! {
                verdict = watch.verdict() => verdict,
                () = draining.cancelled(), if !is_closing => Verdict::Close,
            }
        };
        tokio::select! {
            biased;
            ended = connection.as_mut() => break ended,
            verdict = must_close => match verdict {
                Verdict::Close => {
                    is_closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                Verdict::Cut => return,
            },
        }
    };
    ended.unwrap_or_else(|error| tracing::trace!(%error, "a connection broke"));
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // IMPORTANT: without a timer, which would cost each request; `Watch` has the limits of time.
    builder.http1().max_buf_size(HEAD_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_DEADLINE)
        .max_concurrent_streams(HTTP2_STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .max_send_buf_size(HTTP2_SEND_BYTES_MAX);
    builder
}

/// The body of an answer. The request is in progress until it was handed over.
struct Answered {
    body: Body,
    _in_progress: InProgress,
}

impl hyper::body::Body for Answered {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::routing::{get, put};
    use futures::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::time::{Instant, sleep, timeout};

    use super::*;
    use crate::limits::{HEAD_DEADLINE, IDLE_CONNECTION_MAX, REFUSED_BODY_DEADLINE, UNTAKEN_ANSWER_MAX};
    use crate::net::activity::LOOK_INTERVAL;

    const REQUEST: &[u8] = b"GET /short HTTP/1.1\r\nhost: h\r\n\r\n";

    /// Longer than any limit.
    const LONG: Duration = Duration::from_secs(600);

    /// A connection to a server, which holds few bytes on its way.
    #[expect(clippy::disallowed_methods, reason = "the handlers are of the test")]
    fn connect() -> DuplexStream {
        let large = || async { "x".repeat(1 << 20) };
        let slow = || async {
            sleep(LONG).await;
            "slow"
        };
        let quiet = || async {
            let late = futures::stream::once(sleep(LONG));
            Body::from_stream(late.map(|()| Ok::<_, Infallible>("quiet")))
        };
        let first = |body: Body| async {
            body.into_data_stream().next().await;
            "first"
        };
        let router = Router::new()
            .route("/short", get(|| async { "short" }))
            .route("/large", get(large))
            .route("/slow", get(slow))
            .route("/quiet", get(quiet))
            .route("/unread", put(|| async { "unread" }))
            .route("/first", put(first));
        let (client, server) = duplex(1_024);
        tokio::spawn(serve_connection(server, (), Arc::new(router), CancellationToken::new()));
        client
    }

    /// Reads until the server ends the connection; returns how long that took.
    async fn ended(client: &mut DuplexStream) -> Duration {
        let began = Instant::now();
        let mut answer = Vec::new();
        // A cut connection may be an error.
        let _ = client.read_to_end(&mut answer).await;
        began.elapsed()
    }

    fn assert_met(took: Duration, limit: Duration) {
        assert!((limit..=limit + 2 * LOOK_INTERVAL).contains(&took), "{took:?} for {limit:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_must_arrive_in_time_however_it_is_sent() {
        let mut client = connect();
        client.write_all(b"GET /short HTTP/1.1\r\nhost").await.unwrap();
        assert_met(ended(&mut client).await, HEAD_DEADLINE);

        let (began, mut client) = (Instant::now(), connect());
        client.write_all(REQUEST).await.unwrap();
        client.write_all(b"GET /short HTTP/1.1\r\nx: ").await.unwrap();
        while client.write_all(b"x").await.is_ok() && began.elapsed() < LONG {
            sleep(Duration::from_secs(1)).await;
        }
        assert_met(began.elapsed(), HEAD_DEADLINE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_requests_is_closed() {
        assert_met(ended(&mut connect()).await, IDLE_CONNECTION_MAX);
        let mut client = connect();
        for _ in 0..10 {
            client.write_all(REQUEST).await.unwrap();
            let mut answer = [0; 1_024];
            assert!(client.read(&mut answer).await.unwrap() > 0, "it is open");
            sleep(IDLE_CONNECTION_MAX - 2 * LOOK_INTERVAL).await;
        }
        assert!(ended(&mut client).await <= 4 * LOOK_INTERVAL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_take_its_answer_is_cut_off() {
        let mut client = connect();
        client.write_all(b"GET /large HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        // One that takes a little now and then is not.
        let mut taken = [0; 512];
        for _ in 0..10 {
            sleep(UNTAKEN_ANSWER_MAX - 2 * LOOK_INTERVAL).await;
            client.read_exact(&mut taken).await.unwrap();
        }
        sleep(UNTAKEN_ANSWER_MAX + 2 * LOOK_INTERVAL).await;
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
        assert!(rest.len() < 1 << 19, "{} bytes came", rest.len());
    }

    /// Reads an answer without its head.
    async fn answered(client: &mut DuplexStream, answer: &str) {
        let mut read = String::new();
        while !read.ends_with(answer) {
            read.push(char::from(timeout(LONG, client.read_u8()).await.unwrap().expect("it is answered")));
        }
        assert!(read.starts_with("HTTP/1.1 200"), "{read}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_handler_leaves_of_a_body_is_read_before_its_answer() {
        let body = vec![b'x'; 1 << 20];
        let mut client = connect();
        for path in ["unread", "first"] {
            let head = format!("PUT /{path} HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n", body.len());
            client.write_all(head.as_bytes()).await.unwrap();
            client.write_all(&body).await.unwrap();
            answered(&mut client, path).await;
        }
        client.write_all(REQUEST).await.unwrap();
        answered(&mut client, "short").await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_was_not_asked_for_is_not_waited_for() {
        let (began, mut client) = (Instant::now(), connect());
        client
            .write_all(b"PUT /unread HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n")
            .await
            .unwrap();
        answered(&mut client, "unread").await;
        assert_eq!(began.elapsed(), Duration::ZERO);

        // One that was announced is, for a while.
        let (began, mut client) = (Instant::now(), connect());
        client.write_all(b"PUT /unread HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n").await.unwrap();
        answered(&mut client, "unread").await;
        assert_eq!(began.elapsed().as_secs(), REFUSED_BODY_DEADLINE.as_secs());
        assert_eq!(ended(&mut client).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_long() {
        for path in ["slow", "quiet"] {
            let mut client = connect();
            client.write_all(format!("GET /{path} HTTP/1.1\r\nhost: h\r\n\r\n").as_bytes()).await.unwrap();
            let mut answer = String::new();
            while !answer.ends_with(path) && !answer.contains(&format!("{path}\r\n")) {
                let byte = timeout(LONG * 2, client.read_u8()).await.unwrap().expect("it goes on");
                answer.push(char::from(byte));
            }
        }
    }
}
