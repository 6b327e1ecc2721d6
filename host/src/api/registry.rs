//! Plugins and hooks, their history, and the activity of plugins on this node: `<base>/plugins/…`, `<base>/hooks/…` and
//! `<base>/registry/…`.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use futures::{Stream, StreamExt as _, future, stream};
use serde::Deserialize;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::problem::{Kind, Problem};
use super::request::{self, Call, Parameters, Segment, Values};
use super::{answer, body, schema};
use crate::hooks::{Binding, Line};
use crate::limits::{HOOK_BODY_BYTES_MAX, ROLL_BACK_BODY_BYTES_MAX};

pub(super) async fn plugins(call: Call) -> Result<Response, Problem> {
    let plugins: Vec<_> = call.app.registry.catalog().await?.plugins.into_values().collect();
    answer::ok(&BTreeMap::from([("plugins", plugins)]))
}

pub(super) async fn plugin(Segment(name): Segment, call: Call) -> Result<Response, Problem> {
    let catalog = call.app.registry.catalog().await?;
    answer::ok(catalog.plugins.get(&name).ok_or_else(|| absent("plugin", &name))?)
}

/// `PUT /plugins/<name>/`: uploads a component.
pub(super) async fn put_plugin(Segment(name): Segment, call: Call) -> Result<Response, Problem> {
    let upload = call.app.registry.reserve_upload()?;
    let author = request::author(&call.headers)?;
    let bytes = body::read_upload(&call.headers, call.body).await?;
    answer::ok(&call.app.registry.put_plugin(&name, bytes, &author, upload).await?)
}

pub(super) async fn delete_plugin(Segment(name): Segment, call: Call) -> Result<Response, Problem> {
    match call.app.registry.delete_plugin(&name, &request::author(&call.headers)?).await? {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(absent("plugin", &name)),
    }
}

/// `GET /hooks/`: the hooks, and which of the nodes that can be reached have them in force.
pub(super) async fn hooks(call: Call) -> Result<Response, Problem> {
    let hooks = call.app.registry.catalog().await?.hooks.into_values().collect();
    answer::ok(&schema::Hooks { hooks, nodes: call.app.registry.readiness().await? })
}

pub(super) async fn hook(Segment(name): Segment, call: Call) -> Result<Response, Problem> {
    let catalog = call.app.registry.catalog().await?;
    answer::ok(catalog.hooks.get(&name).ok_or_else(|| absent("hook", &name))?)
}

/// `PUT /hooks/<name>/`: sets which plugin judges which writes.
pub(super) async fn put_hook(Segment(name): Segment, call: Call) -> Result<Response, Problem> {
    let body = body::read(&call.app, &call.headers, call.body, HOOK_BODY_BYTES_MAX).await?;
    let binding = Binding::parse(&body.bytes)?;
    answer::ok(&call.app.registry.put_hook(&name, binding, &request::author(&call.headers)?).await?)
}

pub(super) async fn delete_hook(Segment(name): Segment, call: Call) -> Result<Response, Problem> {
    match call.app.registry.delete_hook(&name, &request::author(&call.headers)?).await? {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(absent("hook", &name)),
    }
}

/// The body of `POST /hooks/<name>/rollback/`: the number of a change. An empty body means the state before the last one.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RollBack {
    to: Option<u64>,
}

/// `POST /hooks/<name>/rollback/`: restores an earlier state of a hook; 204 if the hook did not exist then.
pub(super) async fn roll_back(Segment(name): Segment, call: Call) -> Result<Response, Problem> {
    let author = request::author(&call.headers)?;
    let body = body::read(&call.app, &call.headers, call.body, ROLL_BACK_BODY_BYTES_MAX).await?;
    let RollBack { to } = match body.bytes.is_empty() {
        true => RollBack::default(),
        false => request::json(&body.bytes, "empty or {\"to\": <the number of a change>}")?,
    };
    match call.app.registry.roll_back(&name, to, &author).await? {
        Some(hook) => answer::ok(&hook),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

fn absent(what: &str, name: &str) -> Problem {
    Problem::new(Kind::NOT_FOUND, format!("there is no {what} {name:?}"))
}

/// `GET /registry/history/`: the changes of plugins and hooks, newest first.
pub(super) async fn history(call: Call) -> Result<Response, Problem> {
    answer::ok(&BTreeMap::from([("changes", call.app.registry.history().await?)]))
}

/// `GET /registry/stats/`: figures of the plugin calls on this node since it started.
pub(super) async fn stats(Call { app, .. }: Call) -> Result<Response, Problem> {
    let (calls, hooks) = (app.plugin_record.tallies(), app.registry.starts());
    answer::ok(&schema::Stats { node: app.replication.url(), calls, hooks })
}

/// The parameters of `GET /registry/lines/`: only lines of a hook or a plugin, and whether the response continues with new
/// lines until the node stops.
pub(super) struct Lines {
    follow: bool,
    hook: Option<String>,
    plugin: Option<String>,
}

impl Parameters for Lines {
    const NAMES: &'static [&'static str] = &["follow", "hook", "plugin"];

    fn from_values(values: &mut Values<'_>) -> Result<Self, Problem> {
        Ok(Self { follow: values.flag("follow")?, hook: values.text("hook"), plugin: values.text("plugin") })
    }
}

/// `GET /registry/lines/`: the last lines that plugins wrote on this node, one JSON object each.
pub(super) async fn lines(Call { app, parameters, .. }: Call<Lines>) -> Response {
    let Lines { follow, hook, plugin } = parameters;
    let (kept, coming) = app.plugin_record.lines();
    let stopped = app.draining.clone().cancelled_owned();
    let all = match follow {
        true => stream::iter(kept).chain(broadcast(coming).take_until(stopped)).boxed(),
        false => stream::iter(kept).boxed(),
    };
    let is_wanted = move |line: &Line| {
        hook.as_ref().is_none_or(|hook| line.hook == *hook)
            && plugin.as_ref().is_none_or(|plugin| line.plugin == *plugin)
    };
    answer::json_lines(all.filter(move |line| future::ready(is_wanted(line))))
}

/// The items of a broadcast channel until its senders are gone. A reader that is too slow misses the oldest items.
fn broadcast<T: Clone + Send + 'static>(receiver: Receiver<T>) -> impl Stream<Item = T> + Send {
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
    async fn a_slow_reader_misses_the_oldest_items_and_gets_the_rest() {
        let (sender, receiver) = tokio::sync::broadcast::channel(2);
        for number in 1..=3 {
            sender.send(number).unwrap();
        }
        drop(sender);
        assert_eq!(broadcast(receiver).collect::<Vec<_>>().await, [2, 3]);
    }
}
