//! Paths and their handlers.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse as _;
use axum::routing::{MethodRouter, get};
use tower_http::catch_panic::CatchPanicLayer;

use super::extract::Query;
use super::observe::observe;
use super::problem::{Kind, Problem};
use super::{App, cluster, health, hooks, kv, peer, plugins, registry};
use crate::net::BASE_PATH;

/// The whole API of a node, for clients and for other nodes.
pub fn router(app: App) -> Router {
    let replication = app.replication.clone();
    let key = || Methods::new().get(kv::one::get).put(kv::one::put).delete(kv::one::delete);
    let paths = [
        ("/kv", Methods::new().get(kv::range::list)),
        // Only POST is the batch: `batch` is a key like any other.
        ("/kv/batch", key().post(kv::batch::post)),
        ("/cluster/members", Methods::new().get(cluster::members).post(cluster::add)),
        ("/cluster/members/{url}", Methods::new().delete(cluster::remove)),
        ("/cluster/leader", Methods::new().get(cluster::leader).put(cluster::transfer)),
        ("/plugins", Methods::new().get(plugins::list)),
        ("/plugins/{name}", Methods::new().get(plugins::get).put(plugins::put).delete(plugins::delete)),
        ("/hooks", Methods::new().get(hooks::list)),
        ("/hooks/{name}", Methods::new().get(hooks::get).put(hooks::put).delete(hooks::delete)),
        ("/hooks/{name}/rollback", Methods::new().post(hooks::roll_back)),
        ("/registry/history", Methods::new().get(registry::history)),
        ("/registry/lines", Methods::new().get(registry::lines)),
        ("/registry/stats", Methods::new().get(registry::stats)),
    ];
    // For orchestrators and scrapers, which add query parameters of their own.
    let probes = [
        ("/health", get(health::health)),
        ("/livez", get(health::livez)),
        ("/readyz", get(health::readyz)),
        ("/metrics", get(health::metrics)),
    ];
    let mut clients = Router::new().route("/kv/{*key}", key().0);
    for (path, methods) in paths.map(|(path, Methods(methods))| (path, methods)).into_iter().chain(probes) {
        clients = clients.route(path, methods.clone()).route(&format!("{path}/"), methods);
    }
    let root = Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics));
    Router::new()
        .nest(BASE_PATH, clients)
        .merge(root)
        .fallback(|| async {
            Problem::new(Kind::NOT_FOUND, format!("there is no such path; the API is under {BASE_PATH}/"))
        })
        .method_not_allowed_fallback(|| async {
            Problem::new(Kind::METHOD_NOT_ALLOWED, "the method is not allowed here; Allow names those that are")
        })
        .layer(CatchPanicLayer::custom(|_| Problem::internal("a handler panicked").into_response()))
        .layer(from_fn_with_state(app.telemetry.clone(), observe))
        .with_state(Arc::new(app))
        .merge(Router::new().nest(BASE_PATH, peer::router(replication)))
}

/// The handlers of a path, by method. Every handler declares the query parameters that it takes.
struct Methods(MethodRouter<Arc<App>>);

impl Methods {
    fn new() -> Self {
        Self(MethodRouter::new())
    }

    fn get<T: DeclaresQuery>(self, handler: impl Handler<T, Arc<App>>) -> Self {
        Self(self.0.get(handler))
    }

    fn put<T: DeclaresQuery>(self, handler: impl Handler<T, Arc<App>>) -> Self {
        Self(self.0.put(handler))
    }

    fn post<T: DeclaresQuery>(self, handler: impl Handler<T, Arc<App>>) -> Self {
        Self(self.0.post(handler))
    }

    fn delete<T: DeclaresQuery>(self, handler: impl Handler<T, Arc<App>>) -> Self {
        Self(self.0.delete(handler))
    }
}

/// The arguments of a handler of which the first is a [`Query`], so that no handler forgets to check its parameters.
#[diagnostic::on_unimplemented(
    message = "the first argument of a handler must be a `Query`; see `extract::NoParameters`"
)]
trait DeclaresQuery: 'static {}

macro_rules! declares_query {
    ($($argument:ident)*) => {
        /// Arguments as `axum` writes them: a marker, then the types.
        impl<M: 'static, Q: 'static, $($argument: 'static),*> DeclaresQuery for (M, Query<Q>, $($argument),*) {}
    };
}

declares_query!(A);
declares_query!(A B);
declares_query!(A B C);
declares_query!(A B C D);
declares_query!(A B C D E);
declares_query!(A B C D E F);
