//! Streamed responses: one JSON object per line (NDJSON), perhaps without an end.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use futures::{Stream, StreamExt as _, future, stream};
use serde::Serialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::answer;

/// A response with one line of JSON per item, sent as the items come. Other responses may share the items.
pub(super) fn json_lines<T: Serialize>(items: impl Stream<Item = Arc<T>> + Send + 'static) -> Response {
    let lines = items.filter_map(|item| {
        let line = serde_json::to_string(&*item).map(|line| Ok::<_, Infallible>(line + "\n"));
        future::ready(line.ok())
    });
    answer::with_body(StatusCode::OK, HeaderValue::from_static("application/x-ndjson"), Body::from_stream(lines))
}

/// The items of a broadcast channel until its senders are gone. A reader that is too slow misses the oldest items.
pub(super) fn broadcast<T: Clone + Send + 'static>(receiver: Receiver<T>) -> impl Stream<Item = T> + Send {
    stream::unfold(receiver, |mut receiver| async move {
        loop {
            match receiver.recv().await {
                Ok(item) => return Some((item, receiver)),
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_item_is_a_line_of_json() {
        let response = json_lines(stream::iter([Arc::new(vec![1, 2]), Arc::default()]));
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(body, "[1,2]\n[]\n");
    }

    #[tokio::test]
    async fn a_slow_reader_misses_the_oldest_items_and_gets_the_rest() {
        let (sender, receiver) = tokio::sync::broadcast::channel(2);
        for number in 1..=3 {
            sender.send(number).unwrap();
        }
        drop(sender);
        assert_eq!(broadcast(receiver).collect::<Vec<_>>().await, [2, 3]);
    }
}
