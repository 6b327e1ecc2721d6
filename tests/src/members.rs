//! Changes of the membership, as an operator makes them who wants them made.
//!
//! A cluster refuses a change at once if a node does not answer one question in time, or says that it is still changing. On a
//! machine that stands still now and then this says nothing about the change, so it is requested again. Every other refusal is
//! an answer. A test of refusals sends the request itself.

use std::time::Duration;

use serde_json::json;

use crate::client::{Answer, Client};
use crate::eventually;

/// Time for a change that is requested again and again.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);

/// What a refusal says if a node did not answer.
const UNANSWERED: [&str; 4] = ["must answer", "cannot be reached", "can be reached", "nothing answers"];

impl Client {
    /// Adds a member, or gives it another role.
    pub async fn add_member(&self, url: &str, role: &str) -> Answer {
        let body = json!({ "url": url, "role": role }).to_string();
        self.change("POST", "/cluster/members/", &body).await.0
    }

    /// Removes a member. Panics if that is refused.
    pub async fn remove_member(&self, url: &str) {
        let (answer, in_doubt) =
            self.change("DELETE", &format!("/cluster/members/{}/", url.replace('/', "%2F")), "").await;
        // An earlier request may have removed it whose answer was lost.
        assert!(answer.status == 204 || in_doubt && answer.status == 404, "{}: {}", answer.status, answer.json);
    }

    /// Transfers the leadership to a member.
    pub async fn make_leader(&self, url: &str) -> Answer {
        self.change("PUT", "/cluster/leader/", &json!({ "url": url }).to_string()).await.0
    }

    /// Requests a change until it is answered. Returns, too, whether an earlier request may have made it.
    async fn change(&self, method: &str, path: &str, body: &str) -> (Answer, bool) {
        let in_doubt = std::cell::Cell::new(false);
        eventually(CHANGE_LIMIT, &format!("{method} {path} {body}"), || async {
            let sent = self.try_send(method, path, &[("content-type", "application/json")], body.to_owned()).await;
            let answer = sent.ok().filter(|answer| answer.status < 500);
            let Some(answer) = answer else {
                in_doubt.set(true);
                return None;
            };
            let detail = answer.json["detail"].as_str().unwrap_or_default();
            let is_unanswered = answer.status == 409 && UNANSWERED.iter().any(|words| detail.contains(words));
            (!is_unanswered).then_some((answer, in_doubt.get()))
        })
        .await
    }
}
