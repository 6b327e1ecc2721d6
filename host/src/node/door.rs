//! The HTTP server of a node, from the first moment of its start on.

use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::telemetry::Telemetry;
use crate::{api, net};

/// Serves a listener: refusals while the node starts, and then its API. Each server has connections of its own, so the way of
/// requests to the API is as if there had been no other.
pub(super) struct Door {
    pub(super) listener: net::BoundedListener,
    pub(super) peer_urls: Vec<String>,
    pub(super) telemetry: Telemetry,
    /// Stops the server that refuses.
    pub(super) refusing: Option<DropGuard>,
}

impl Door {
    /// Answers the probes and refuses everything else, for another reason than before.
    pub(super) fn refuse(&mut self, reason: &'static str) {
        let (peer_urls, telemetry) = (self.peer_urls.clone(), self.telemetry.clone());
        let routes = api::starting_router(api::Starting { reason, peer_urls, telemetry });
        let stop = CancellationToken::new();
        tokio::spawn(net::serve(self.listener.clone(), routes, stop.clone()));
        self.refusing = Some(stop.drop_guard());
    }

    /// Serves the API until `draining` is cancelled.
    pub(super) fn open(self, api: api::Api, draining: CancellationToken) -> JoinHandle<()> {
        tokio::spawn(net::serve(self.listener, api, draining))
    }
}
