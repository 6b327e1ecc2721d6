//! Paths and their handlers.
//!
//! The router has all of them. Most requests are for one key; they bypass it, since matching their path and the services around
//! their handlers would cost a tenth of a write.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodRouter, delete, get, post};

use super::observe::{observe, observed};
use super::problem::{Kind, Problem};
use super::request::{App, Call, raw_key, seal};
use super::{cluster, health, kv, peer, registry};
use crate::net::{self, BASE_PATH};

/// The whole API of a node, for clients and for other nodes.
pub(crate) struct Api {
    app: Arc<App>,
    router: Router,
    /// The route of one key, which the metrics of its requests name.
    key_route: String,
}

impl Api {
    pub(crate) fn new(app: Arc<App>) -> Self {
        Self { router: router(app.clone()), app, key_route: key_route() }
    }

    async fn key(&self, request: Request) -> Result<Response, Problem> {
        match *request.method() {
            Method::PUT => kv::one::put(Call::new(&self.app, request).await?).await,
            Method::DELETE => kv::one::delete(Call::new(&self.app, request).await?).await,
            _ => kv::one::get(Call::new(&self.app, request).await?).await,
        }
    }
}

impl net::Answer for Api {
    async fn answer(&self, request: Request) -> Response {
        if !is_for_key(&request) {
            return self.router.answer(request).await;
        }
        let key = async |request| self.key(request).await.into_response();
        observed(&self.app.telemetry, &self.app.browsers, &self.key_route, request, key).await
    }
}

/// Whether [`Api::key`] takes a request.
fn is_for_key(request: &Request) -> bool {
    raw_key(request.uri()).is_some_and(|key| !key.is_empty())
        && matches!(*request.method(), Method::GET | Method::PUT | Method::DELETE)
}

fn key_route() -> String {
    format!("{BASE_PATH}/kv/{{*key}}")
}

fn router(app: Arc<App>) -> Router {
    let key = || get(kv::one::get).put(kv::one::put).delete(kv::one::delete);
    let clients = Router::new().route(&key_route(), key()).merge(under_base([
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
        .layer(from_fn_with_state((app.telemetry.clone(), app.browsers.clone()), observe))
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

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[test]
    fn requests_for_one_key_bypass_the_router_and_no_others() {
        let is_for_key = |method: Method, path: &str| {
            is_for_key(&Request::builder().method(method).uri(path).body(Body::empty()).unwrap())
        };
        for path in ["a", "a/", "a/b?consistency=local", "batch/", "stream", "/", "%2F"] {
            for method in [Method::GET, Method::PUT, Method::DELETE] {
                assert!(is_for_key(method, &format!("{BASE_PATH}/kv/{path}")), "{path}");
            }
        }
        for (method, path) in [
            (Method::GET, "/kv-store/v1/kv"),
            (Method::GET, "/kv-store/v1/kv/"),
            (Method::GET, "/kv-store/v1/kv/?limit=1"),
            (Method::HEAD, "/kv-store/v1/kv/a"),
            (Method::POST, "/kv-store/v1/kv/batch/"),
            (Method::PATCH, "/kv-store/v1/kv/a"),
            (Method::GET, "/kv-store/v1/kvs/a"),
            (Method::GET, "/kv-store/v1/hooks/a"),
            (Method::GET, "/kv/a"),
        ] {
            assert!(!is_for_key(method.clone(), path), "{method} {path}");
        }
    }
}
