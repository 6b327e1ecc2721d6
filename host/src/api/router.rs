//! Paths, the rights that they need, and their handlers.
//!
//! The router has all of them. Most requests are for one key; they bypass it, since matching their path and the services around
//! their handlers would cost a tenth of a write.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;

use super::access::{Grant, Right};
use super::observe::{Surroundings, observed};
use super::problem::{Kind, Problem};
use super::request::{App, Call, Sealed, raw_key, seal};
use super::route::{Probes, Route, at_root, below_base, guarded};
use super::{caller, cluster, health, kv, peer, registry};
use crate::net::{self, BASE_PATH};

/// The path of one key, below [`BASE_PATH`].
const KEY: &str = "/kv/{*key}";

/// The whole API of a node, for clients and for other nodes.
pub(crate) struct Api {
    app: Arc<App>,
    surroundings: Arc<Surroundings>,
    router: Router,
    /// The route of one key, which the metrics of its requests name.
    key_route: String,
}

impl Api {
    pub(crate) fn new(app: Arc<App>, surroundings: Arc<Surroundings>) -> Self {
        let router = router(app.clone(), &surroundings);
        Self { app, surroundings, router, key_route: format!("{BASE_PATH}{KEY}") }
    }

    async fn key(&self, request: Request, grant: Grant) -> Result<Response, Problem> {
        match *request.method() {
            Method::PUT => kv::one::put(Call::new(&self.app, request, grant).await?).await,
            Method::DELETE => kv::one::delete(Call::new(&self.app, request, grant).await?).await,
            _ => kv::one::get(Call::new(&self.app, request, grant).await?).await,
        }
    }
}

impl net::Answer for Api {
    type Session = caller::Session;

    async fn answer(&self, mut request: Request, session: &Arc<caller::Session>) -> Response {
        if !is_for_key(&request) {
            if caller::is_for_nodes(&request) {
                request.extensions_mut().insert(session.clone());
            }
            return without_hints(self.router.answer(request, &Arc::default()).await);
        }
        let right = right_of_key(request.method());
        let key = async |request, grant| self.key(request, grant).await.into_response();
        observed(&self.surroundings, &self.key_route, right, request, key).await
    }
}

/// Whether [`Api::key`] takes a request.
fn is_for_key(request: &Request) -> bool {
    raw_key(request.uri()).is_some_and(|key| !key.is_empty())
        && matches!(*request.method(), Method::GET | Method::PUT | Method::DELETE)
}

/// axum names the methods of a path wherever no handler answered, also to those who may not know that the path exists.
fn without_hints(mut response: Response) -> Response {
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().remove(header::ALLOW);
    }
    response
}

/// What a method of one key needs.
fn right_of_key(method: &Method) -> Right {
    if *method == Method::GET { Right::Read } else { Right::Write }
}

/// The methods of one key.
fn key(path: &'static str) -> Route<Sealed> {
    let right = right_of_key;
    Route::at(path)
        .get(right(&Method::GET), kv::one::get)
        .put(right(&Method::PUT), kv::one::put)
        .delete(right(&Method::DELETE), kv::one::delete)
}

/// What clients may ask for; probes apart.
fn routes() -> Vec<Route<Sealed>> {
    use Right::{Admin, Any, Deploy, Read, Write};
    vec![
        key(KEY),
        Route::at("/kv").get(Read, kv::range::list),
        // Only POST is the batch or the stream: `batch` and `stream` are keys like any other.
        key("/kv/batch").post(Write, kv::batch::post),
        key("/kv/stream").post(Write, kv::stream::post),
        Route::at("/plugins").get(Deploy, registry::plugins),
        Route::at("/plugins/{name}")
            .get(Deploy, registry::plugin)
            .put(Deploy, registry::put_plugin)
            .delete(Deploy, registry::delete_plugin),
        // What is configured and what plugins log may be what was written.
        Route::at("/hooks").get(Deploy, registry::hooks),
        Route::at("/hooks/{name}")
            .get(Deploy, registry::hook)
            .put(Deploy, registry::put_hook)
            .delete(Deploy, registry::delete_hook),
        Route::at("/hooks/{name}/rollback").post(Deploy, registry::roll_back),
        Route::at("/registry/history").get(Deploy, registry::history),
        Route::at("/registry/lines").get(Deploy, registry::lines),
        Route::at("/registry/stats").get(Deploy, registry::stats),
        Route::at("/cluster/members").get(Any, cluster::members).post(Admin, cluster::add),
        Route::at("/cluster/members/{url}").delete(Admin, cluster::remove),
        Route::at("/cluster/leader").get(Any, cluster::leader).put(Admin, cluster::transfer),
        Route::at("/cluster/feature-level").get(Any, cluster::level).put(Admin, cluster::raise_level),
    ]
}

fn probes() -> Probes<Arc<App>> {
    Probes {
        livez: get(health::livez),
        readyz: get(health::readyz),
        metrics: get(health::metrics),
        health: get(health::health),
    }
}

fn router(app: Arc<App>, surroundings: &Arc<Surroundings>) -> Router {
    let called = peer::Called { replication: app.replication.clone(), callers: surroundings.callers.clone() };
    let nodes = at_root(peer::routes(), surroundings).with_state(called);
    Router::new()
        .merge(below_base(routes(), surroundings).with_state(seal(app.clone())))
        .merge(probes().router(surroundings).with_state(app))
        .merge(Router::new().nest(BASE_PATH, nodes))
        .fallback(guarded(surroundings, Right::Any, not_found))
        .method_not_allowed_fallback(guarded(surroundings, Right::Any, not_allowed))
}

async fn not_found() -> Problem {
    Problem::new(Kind::NOT_FOUND, format!("there is no such path; the API is under {BASE_PATH}/"))
}

async fn not_allowed() -> Problem {
    Problem::new(Kind::METHOD_NOT_ALLOWED, "the method is not allowed here; Allow names those that are")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

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

    /// The methods of each path and their rights: the path, the method, and the right.
    fn rows() -> Vec<(&'static str, Method, Right)> {
        fn rows_of<S>(routes: impl IntoIterator<Item = Route<S>>) -> Vec<(&'static str, Method, Right)> {
            let rows = |route: Route<S>| {
                let path = route.path;
                route.methods.into_iter().map(move |(method, right, _)| (path, method, right))
            };
            routes.into_iter().flat_map(rows).collect()
        }
        [rows_of(routes()), rows_of(probes().routes()), rows_of(peer::routes())].concat()
    }

    /// The table of rights, as a page of the documentation has it.
    fn table() -> String {
        let mut table = String::from("| path | methods | right |\n|---|---|---|\n");
        let rows = rows();
        for of_path in rows.chunk_by(|(path, _, right), (next, _, next_right)| path == next && right == next_right) {
            let methods: Vec<_> = of_path.iter().map(|(_, method, _)| format!("`{method}`")).collect();
            let [(path, _, right), ..] = of_path else { unreachable!() };
            table += &format!("| `{path}` | {} | `{right}` |\n", methods.join(", "));
        }
        table
    }

    #[test]
    fn the_rights_of_all_routes_are_documented() {
        let (page, table) = (include_str!("../../../docs/security.md"), table());
        assert!(page.contains(&table), "docs/security.md lacks this table:\n{table}");
    }

    #[test]
    fn each_method_of_a_path_has_one_right() {
        let rows = rows();
        let distinct: BTreeSet<_> = rows.iter().map(|(path, method, _)| (path, method.as_str())).collect();
        assert_eq!(distinct.len(), rows.len());
        let is_of_nodes = |right: Right| [Right::Node, Right::Proof].contains(&right);
        let nodes = rows.iter().filter(|(path, ..)| path.starts_with("/peer/"));
        assert!(nodes.clone().all(|(.., right)| is_of_nodes(*right)));
        assert_eq!(nodes.count(), rows.iter().filter(|(.., right)| is_of_nodes(*right)).count());
        assert_eq!(rows.iter().filter(|(.., right)| *right == Right::Proof).count(), 1);
    }

    #[test]
    fn requests_that_bypass_the_router_need_what_its_table_says() {
        for (path, method, right) in rows().into_iter().filter(|(path, ..)| path.starts_with("/kv/")) {
            let uri = format!("{BASE_PATH}{}", path.replace("{*key}", "a"));
            if is_for_key(&Request::builder().method(&method).uri(uri).body(Body::empty()).unwrap()) {
                assert_eq!(right_of_key(&method), right, "{method} {path}");
            }
        }
    }
}
