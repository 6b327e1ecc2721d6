//! Paths and their handlers.

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, post};

use super::observe::observe;
use super::problem::{Kind, Problem};
use super::request::{App, seal};
use super::{cluster, health, kv, peer, registry};
use crate::net::BASE_PATH;

/// The whole API of a node, for clients and for other nodes.
pub(crate) fn router(app: Arc<App>) -> Router {
    let key = || get(kv::one::get).put(kv::one::put).delete(kv::one::delete);
    let clients = Router::new().route(&format!("{BASE_PATH}/kv/{{*key}}"), key()).merge(under_base([
        ("/kv", get(kv::range::list)),
        // Only POST is the batch or the stream: `batch` and `stream` are keys like any other.
        ("/kv/batch", key().post(kv::batch::post)),
        ("/kv/stream", key().post(kv::stream::post)),
        ("/cluster/members", get(cluster::members).post(cluster::add)),
        ("/cluster/members/{url}", delete(cluster::remove)),
        ("/cluster/feature-level", get(cluster::level).put(cluster::raise_level)),
        ("/cluster/leader", get(cluster::leader).put(cluster::transfer)),
        ("/plugins", get(registry::plugins)),
        ("/plugins/{name}", get(registry::plugin).put(registry::put_plugin).delete(registry::delete_plugin)),
        ("/hooks", get(registry::hooks)),
        ("/hooks/{name}", get(registry::hook).put(registry::put_hook).delete(registry::delete_hook)),
        ("/hooks/{name}/rollback", post(registry::roll_back)),
        ("/registry/history", get(registry::history)),
        ("/registry/lines", get(registry::lines)),
        ("/registry/stats", get(registry::stats)),
    ]));
    let probes = [("/livez", get(health::livez)), ("/readyz", get(health::readyz)), ("/metrics", get(health::metrics))];
    let root = probes.clone().into_iter().fold(Router::new(), |root, (path, probe)| root.route(path, probe));
    let probes = under_base(probes.into_iter().chain([("/health", get(health::health))]));
    Router::new()
        .merge(clients.with_state(seal(app.clone())))
        .merge(probes.with_state(app.clone()))
        .merge(root.with_state(app.clone()))
        .fallback(|| async {
            Problem::new(Kind::NOT_FOUND, format!("there is no such path; the API is under {BASE_PATH}/"))
        })
        .method_not_allowed_fallback(|| async {
            Problem::new(Kind::METHOD_NOT_ALLOWED, "the method is not allowed here; Allow names those that are")
        })
        .layer(from_fn_with_state(app.telemetry.clone(), observe))
        .merge(Router::new().nest(BASE_PATH, peer::router(app.replication.clone())))
}

/// Routes below [`BASE_PATH`], each with and without a slash at its end. They are not nested, since nesting makes axum rebuild the
/// URI of each request.
pub(super) fn under_base<S: Clone + Send + Sync + 'static>(
    paths: impl IntoIterator<Item = (&'static str, MethodRouter<S>)>,
) -> Router<S> {
    paths.into_iter().fold(Router::new(), |router, (path, methods)| {
        let path = format!("{BASE_PATH}{path}");
        router.route(&path, methods.clone()).route(&format!("{path}/"), methods)
    })
}
