//! Plugins and hooks in real clusters: deployment, judgement of writes, containment, history.

use std::time::Duration;

use brink_tests::{Answer, eventually};

mod authors;
mod compatibility;
mod compiling;
mod epochs;
mod examples;
mod history;
mod hostile;
mod logs;
mod references;
mod registry;
mod rules;
mod streams;
mod uploads;

/// Time for a cluster to choose a leader. Only a guard.
const LIMIT: Duration = Duration::from_secs(60);

/// Whether an election or too much work, which a busy machine may cause at any time, has cut off a request: no plugin has failed,
/// and none has judged.
fn was_cut_off(answer: &Answer) -> bool {
    let kinds = ["replication-failed", "leader-lost", "quorum-unavailable", "busy", "hooks-not-ready"];
    kinds.iter().any(|kind| answer.json["type"] == format!("urn:brink:problem:{kind}"))
}

/// Asks again while the request is cut off. Only for requests that do the same when they are repeated.
async fn repeated<F: Future<Output = Answer>>(ask: impl Fn() -> F) -> Answer {
    eventually(LIMIT, "the cluster takes the request", || async {
        let answer = ask().await;
        (!was_cut_off(&answer)).then_some(answer)
    })
    .await
}
