//! The time until a node acknowledges a write.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::client::Client;

/// Sends a write in every interval without waiting for earlier answers, until one succeeds: one that is in flight to a lost
/// leader is lost, and one that waits for a slow disk is not given up. `path` makes the path of each from its number. Returns
/// the time from `since` on, or `limit` if that is over before.
pub async fn first_success(
    client: &Client,
    path: impl Fn(usize) -> String,
    interval: Duration,
    since: Instant,
    limit: Duration,
) -> Duration {
    let mut writes = JoinSet::new();
    for number in 0.. {
        let (client, path) = (client.clone(), path(number));
        writes.spawn(async move {
            let headers = [("content-type", "application/json"), ("prefer", "return=minimal")];
            let sent = client.try_send("PUT", &path, &headers, r#"{"value":1}"#).await;
            sent.is_ok_and(|answer| answer.status < 300)
        });
        let next = Instant::now() + interval;
        while let Ok(Some(written)) = tokio::time::timeout_at(next.into(), writes.join_next()).await {
            if written.unwrap() {
                return since.elapsed();
            }
        }
        if since.elapsed() >= limit {
            return limit;
        }
        // If all writes have failed, the interval is not over.
        tokio::time::sleep_until(next.into()).await;
    }
    limit
}
