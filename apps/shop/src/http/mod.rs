//! The API: routes, answers, and the server under them.

mod answer;
mod openapi;
mod orders;
mod products;
mod server;
mod users;

use std::time::Duration;

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Path, Request, rejection::PathRejection},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use greenwave_db::query_stats::Scope;
use greenwave_monitor::Monitor;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{Shop, request};
use answer::Failure;
pub use answer::Problem;
pub use server::{Reserved, bind, reserve, serve};

/// The longest body that a request may have.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// How long a request may take, reading its body included.
const DEADLINE: Duration = Duration::from_secs(10);

/// All routes over the shop, each request watched by the monitor.
pub fn router(shop: Shop, monitor: &Monitor) -> Router {
    let (router, document) = documented().split_for_parts();
    let document = openapi::serve(&document);
    router
        .route("/openapi.json", document)
        .fallback(|| async { Failure::no_such_route() })
        .method_not_allowed_fallback(|| async { Failure::method_not_allowed() })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(deadline))
        .layer(middleware::from_fn(in_scope))
        .layer(monitor.http_layer())
        .with_state(shop)
}

/// The OpenAPI document, made from the handlers that [`router`] serves.
pub fn openapi() -> utoipa::openapi::OpenApi {
    documented().into_openapi()
}

fn documented() -> OpenApiRouter<Shop> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(health))
        .routes(routes!(users::get_user))
        .routes(routes!(users::create_user))
        .routes(routes!(products::get_product))
        .routes(routes!(orders::get_order))
        .routes(routes!(orders::list_orders, orders::create_order))
}

/// Whether the process answers. It asks no database, so a database's outage does not restart the instances.
#[utoipa::path(get, path = "/health", tag = "service", responses((status = OK, body = openapi::Health)))]
async fn health() -> Response {
    answer::text(StatusCode::OK, r#"{"status":"ok"}"#)
}

async fn deadline(request: Request, next: Next) -> Response {
    match tokio::time::timeout(DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Failure::too_slow().into_response(),
    }
}

/// Counts the request's statements under its route.
async fn in_scope(route: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    Scope::new(route).run(next.run(request)).await
}

/// The id in the path and the text it stands as. What is no positive integer is nobody's id.
fn path_id(path: Result<Path<String>, PathRejection>) -> (Option<i64>, String) {
    let text = path.map(|Path(text)| text).unwrap_or_default();
    (request::id(&text), text)
}
