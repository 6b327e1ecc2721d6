//! How a node finds its cluster, or forms it with others.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::change::{Change, Progress};
use super::identity::{Identity, Stage};
use super::{formation::Formation, membership::Membership, peer_table::Survey, view::ClusterView};
use crate::replication::{error::Error, peer::protocol::ANYONE};

/// Interval at which a node without a cluster looks for one.
const SEARCH_INTERVAL: Duration = Duration::from_millis(25);

/// Time for which a majority of the founders waits for the rest before it forms the cluster. Founders that come later have
/// to join, which takes a little longer.
const FORM_PATIENCE: Duration = Duration::from_millis(500);

/// Time for which the first founder may form the cluster alone before the others try as well.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// Longest pause after a failed formation. The pause is random, so that two nodes do not keep disturbing each other.
const FORM_PAUSE_MAX: Duration = Duration::from_millis(100);

/// Interval at which a node makes sure that it still has its place. The membership that shows it may be replaced, if it was not
/// committed, or be an old one.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Interval at which a node asks to be let in.
const JOIN_INTERVAL: Duration = Duration::from_millis(100);

pub(crate) struct Discovery {
    pub(crate) identity: Arc<Identity>,
    pub(crate) view: Arc<ClusterView>,
    pub(crate) formation: Arc<Formation>,
    pub(crate) membership: Arc<Membership>,
    pub(crate) began: Instant,
    /// The highest ballot number seen so far.
    pub(crate) highest: u64,
    /// The last answer to the request to be let in.
    pub(crate) joining: Option<Progress>,
}

impl Discovery {
    /// Looks for the cluster whenever this node does not have its place in it.
    pub(crate) async fn discover(mut self, stop: CancellationToken) {
        let mut interval = SEARCH_INTERVAL;
        while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
            if self.view.raft.with_metrics(|metrics| self.view.has_its_place(metrics)) {
                interval = LOOK_INTERVAL;
                continue;
            }
            interval = SEARCH_INTERVAL;
            if let Err(error) = self.search().await {
                tracing::debug!(%error, "no cluster found yet");
            }
        }
    }

    async fn search(&mut self) -> Result<(), Error> {
        let stage = self.identity.stage();
        let survey = self.view.peers.survey(stage.cluster());
        let waited = self.began.elapsed();
        match stage {
            Stage::Unidentified if survey.in_cluster.is_empty() => {
                self.form_if_due(&survey.without_cluster, waited).await?;
            }
            Stage::Unidentified => self.formation.identify().await?,
            Stage::Member { id, .. } if id == self.view.founders.own_id() => self.found(id, &survey, waited).await,
            Stage::Waiting { id } | Stage::Member { id, .. } => self.ask_to_join(id, &survey).await,
        }
        Ok(())
    }

    /// Forms the cluster with founders that have none, once enough of them can be reached and it is this node's turn.
    async fn form_if_due(&mut self, others: &[String], waited: Duration) -> Result<(), Error> {
        if !self.formation.may_found || !self.is_due(others, waited) {
            return Ok(());
        }
        self.formation.form(others, &mut self.highest).await?;
        if !self.identity.is_identified() {
            tokio::time::sleep(FORM_PAUSE_MAX.mul_f64(fastrand::f64())).await;
        }
        Ok(())
    }

    /// Brings a founder to its place.
    async fn found(&mut self, id: u64, survey: &Survey, waited: Duration) {
        if !self.view.raft.is_initialized() && !survey.is_initialized {
            // The nodes that chose the cluster may all have stopped before one of them initialised it.
            if self.is_due(&survey.fellows, waited) {
                self.view.raft.initialize(&self.view.founders.nodes).await;
            }
            return;
        }
        // A founder is a member, and the leader sends it the log. If that takes too long, another node has its place.
        if waited >= FORM_PATIENCE + FIRST_PATIENCE {
            self.ask_to_join(id, survey).await;
        }
    }

    /// Whether this node should form or initialise the cluster now, with these others.
    fn is_due(&self, others: &[String], waited: Duration) -> bool {
        let count = others.len() + 1;
        let is_complete = count == self.view.founders.nodes.len();
        let is_enough = is_complete || (self.view.founders.is_majority(count) && waited > FORM_PATIENCE);
        let is_first = others.iter().all(|url| self.view.founders.own_url < *url);
        is_enough && (is_first || waited > FIRST_PATIENCE)
    }

    /// Asks members of the cluster to let this node in.
    async fn ask_to_join(&mut self, id: u64, survey: &Survey) {
        if survey.in_cluster.is_empty() {
            return;
        }
        let change = Change::Join { id, url: self.view.founders.own_url.clone() };
        // A node that leads already may still have to change its own URL.
        let mut progress = self.membership.step(&change).await;
        let own_url = &self.view.founders.own_url;
        let others = survey.named.iter().filter(|url| !survey.in_cluster.contains(url) && *url != own_url);
        for url in survey.in_cluster.iter().chain(others) {
            if progress != Progress::NotLeader {
                break;
            }
            progress = self.membership.ask(ANYONE, url, &change).await.unwrap_or(Progress::NotLeader);
        }
        if progress != Progress::NotLeader {
            self.note_join(progress);
        }
        tokio::time::sleep(JOIN_INTERVAL).await;
    }

    /// Records the answer to the request to be let in, and reports it if it is new.
    fn note_join(&mut self, progress: Progress) {
        if self.joining.as_ref() == Some(&progress) {
            return;
        }
        match &progress {
            Progress::Unknown => tracing::warn!(
                url = self.view.founders.own_url,
                "the cluster does not know this node; `brink cluster add` on one of its nodes lets it in"
            ),
            Progress::Refused(reason) => {
                tracing::warn!(url = self.view.founders.own_url, reason, "the cluster refuses this node")
            }
            progress => tracing::info!(?progress, "this node has asked to be let in"),
        }
        self.joining = Some(progress);
    }
}
