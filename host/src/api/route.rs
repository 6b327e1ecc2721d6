//! Routes: each method of a path has a handler and the right that it needs.
//!
//! This is the only file that mounts handlers; a lint refuses `Router::route` elsewhere.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, post, put};

use super::access::Right;
use super::caller::admitted;
use super::observe::{Surroundings, observe};
use crate::net::BASE_PATH;

/// The methods of a path.
#[derive(Clone)]
pub(super) struct Route<S> {
    pub(super) path: &'static str,
    pub(super) methods: Vec<(Method, Right, MethodRouter<S>)>,
}

impl<S: Clone + Send + Sync + 'static> Route<S> {
    pub(super) fn at(path: &'static str) -> Self {
        Self { path, methods: Vec::new() }
    }

    /// A handler of `GET`, and of `HEAD`.
    pub(super) fn get<H: Handler<T, S>, T: 'static>(self, right: Right, handler: H) -> Self {
        self.with(Method::GET, right, get(handler))
    }

    pub(super) fn put<H: Handler<T, S>, T: 'static>(self, right: Right, handler: H) -> Self {
        self.with(Method::PUT, right, put(handler))
    }

    pub(super) fn post<H: Handler<T, S>, T: 'static>(self, right: Right, handler: H) -> Self {
        self.with(Method::POST, right, post(handler))
    }

    pub(super) fn delete<H: Handler<T, S>, T: 'static>(self, right: Right, handler: H) -> Self {
        self.with(Method::DELETE, right, delete(handler))
    }

    fn with(mut self, method: Method, right: Right, handler: MethodRouter<S>) -> Self {
        self.methods.push((method, right, handler));
        self
    }

    /// Its handlers, each behind its right.
    fn guarded(self, surroundings: &Arc<Surroundings>) -> MethodRouter<S> {
        let guarded = |right, handler: MethodRouter<S>| match right {
            Right::Proof => handler,
            Right::Node => handler.route_layer(from_fn_with_state(surroundings.callers.clone(), admitted)),
            _ => handler.route_layer(from_fn_with_state((surroundings.clone(), right), observe)),
        };
        self.methods
            .into_iter()
            .fold(MethodRouter::new(), |all, (_, right, handler)| all.merge(guarded(right, handler)))
    }
}

/// Routes at their paths.
#[expect(clippy::disallowed_methods, reason = "the handlers are behind their rights")]
pub(super) fn at_root<S: Clone + Send + Sync + 'static>(
    routes: impl IntoIterator<Item = Route<S>>,
    surroundings: &Arc<Surroundings>,
) -> Router<S> {
    routes.into_iter().fold(Router::new(), |router, route| router.route(route.path, route.guarded(surroundings)))
}

/// Routes below [`BASE_PATH`], each with and without a slash at its end. They are not nested, since nesting makes axum rebuild the
/// URI of each request.
#[expect(clippy::disallowed_methods, reason = "the handlers are behind their rights")]
pub(super) fn below_base<S: Clone + Send + Sync + 'static>(
    routes: impl IntoIterator<Item = Route<S>>,
    surroundings: &Arc<Surroundings>,
) -> Router<S> {
    routes.into_iter().fold(Router::new(), |router, route| {
        let path = format!("{BASE_PATH}{}", route.path);
        let takes_rest = path.contains("{*");
        let methods = route.guarded(surroundings);
        match takes_rest {
            true => router.route(&path, methods),
            false => router.route(&path, methods.clone()).route(&format!("{path}/"), methods),
        }
    })
}

/// A handler of what no route takes, behind a right.
pub(super) fn guarded<H: Handler<T, S>, T: 'static, S: Clone + Send + Sync + 'static>(
    surroundings: &Arc<Surroundings>,
    right: Right,
    handler: H,
) -> impl Handler<T, S> + use<H, T, S> {
    handler.layer(from_fn_with_state((surroundings.clone(), right), observe))
}

/// Handlers of the probes.
pub(super) struct Probes<S> {
    pub(super) livez: MethodRouter<S>,
    pub(super) readyz: MethodRouter<S>,
    pub(super) metrics: MethodRouter<S>,
    pub(super) health: MethodRouter<S>,
}

impl<S: Clone + Send + Sync + 'static> Probes<S> {
    /// Their routes below [`BASE_PATH`].
    pub(super) fn routes(self) -> [Route<S>; 4] {
        let route = |path, right, handler| Route::at(path).with(Method::GET, right, handler);
        [
            route("/livez", Right::Open, self.livez),
            route("/readyz", Right::Open, self.readyz),
            route("/metrics", Right::Metrics, self.metrics),
            route("/health", Right::Any, self.health),
        ]
    }

    /// All of them below [`BASE_PATH`], and those that others than clients ask at the root as well.
    pub(super) fn router(self, surroundings: &Arc<Surroundings>) -> Router<S> {
        let [livez, readyz, metrics, health] = self.routes();
        let root = at_root([livez.clone(), readyz.clone(), metrics.clone()], surroundings);
        root.merge(below_base([livez, readyz, metrics, health], surroundings))
    }
}
