//! The history of the registry, and the activity of plugins on this node: `<base>/registry/…`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use futures::{StreamExt as _, future, stream};

use super::extract::{NoParameters, Parameters, Query, Values};
use super::problem::Problem;
use super::stream::{broadcast, json_lines};
use super::{App, answer, schema};
use crate::hooks::Line;

/// The parameters of `GET /registry/lines/`.
pub(super) struct Lines {
    /// Whether the response continues with new lines until the node stops.
    follow: bool,
    /// Only lines of this hook.
    hook: Option<String>,
    /// Only lines of this plugin.
    plugin: Option<String>,
}

/// `GET /registry/history/`: the changes of plugins and hooks, newest first.
pub(super) async fn history(_: Query<NoParameters>, State(app): State<Arc<App>>) -> Result<Response, Problem> {
    answer::ok(&schema::History { changes: app.registry.history().await? })
}

/// `GET /registry/stats/`: figures of the plugin calls on this node since it started.
pub(super) async fn stats(_: Query<NoParameters>, State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let (calls, hooks) = (app.plugin_record.tallies(), app.registry.starts());
    answer::ok(&schema::Stats { node: app.replication.url(), calls, hooks })
}

/// `GET /registry/lines/`: the last lines that plugins wrote on this node, one JSON object each.
pub(super) async fn lines(Query(wanted): Query<Lines>, State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let (kept, coming) = app.plugin_record.lines();
    let stopped = app.draining.clone().cancelled_owned();
    let all = match wanted.follow {
        true => stream::iter(kept).chain(broadcast(coming).take_until(stopped)).boxed(),
        false => stream::iter(kept).boxed(),
    };
    Ok(json_lines(all.filter(move |line| future::ready(wanted.includes(line)))))
}

impl Lines {
    fn includes(&self, line: &Line) -> bool {
        self.hook.as_ref().is_none_or(|hook| line.hook == *hook)
            && self.plugin.as_ref().is_none_or(|plugin| line.plugin == *plugin)
    }
}

impl Parameters for Lines {
    const NAMES: &'static [&'static str] = &["follow", "hook", "plugin"];

    fn from_values(values: &mut Values<'_>) -> Result<Self, Problem> {
        Ok(Self { follow: values.flag("follow")?, hook: values.text("hook"), plugin: values.text("plugin") })
    }
}
