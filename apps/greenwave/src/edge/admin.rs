//! The admin API, beside the dashboard and behind the same door.

use std::{path::PathBuf, sync::Arc};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use greenwave_edge::{CacheStats, HttpCache, InstanceStatus};
use serde_json::json;
use tokio::sync::watch;

use crate::{
    client,
    control::{self, Place, Purge, Reply},
};

#[derive(Clone)]
struct Admin {
    control: Arc<PathBuf>,
    instances: watch::Receiver<Vec<InstanceStatus>>,
    cache: HttpCache,
}

/// `POST /admin/purge` with `{"url": …}`, `{"prefix": …}`, `{"tag": …}` or `"all"`; `GET /admin/cache` for what the
/// cache has done; `GET /admin/instances`. And the routes about `jobs`.
pub(super) fn router(
    control: PathBuf,
    instances: watch::Receiver<Vec<InstanceStatus>>,
    cache: HttpCache,
    jobs: Router,
) -> Router {
    let own = Router::new()
        .route("/admin/purge", post(purge))
        .route("/admin/cache", get(stats))
        .route("/admin/instances", get(list))
        .with_state(Admin { control: Arc::new(control), instances, cache });
    own.merge(jobs).layer(middleware::from_fn(refuse_other_sites))
}

async fn list(State(admin): State<Admin>) -> Json<Vec<InstanceStatus>> {
    Json(admin.instances.borrow().clone())
}

async fn stats(State(admin): State<Admin>) -> Json<CacheStats> {
    Json(admin.cache.stats())
}

/// By way of the supervisor, which knows of every edge that still serves from a cache.
async fn purge(State(admin): State<Admin>, Json(purge): Json<Purge>) -> Response {
    let place = Place::Given(admin.control.to_path_buf());
    match client::ask(&place, control::Request::Purge(purge)).await {
        Ok(Reply::Purged(answers)) => Json(json!({ "purged": answers })).into_response(),
        Ok(_) => failed("the supervisor is not understood"),
        Err(error) => failed(&format!("{error:#}")),
    }
}

fn failed(why: &str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": "failed", "message": why }))).into_response()
}

/// A page of another site can send requests here by its visitor's browser. Browsers say where they come from.
async fn refuse_other_sites(request: Request, next: Next) -> Response {
    if !follows_link(&request) && is_from_another_site(request.headers()) {
        let message = "requests of other sites' pages are refused";
        let body = json!({ "error": "cross_site", "message": message });
        return (StatusCode::FORBIDDEN, Json(body)).into_response();
    }
    next.run(request).await
}

/// Whether a link leads a person here, as one of an alert does: the page that has it cannot read what is answered.
fn follows_link(request: &Request) -> bool {
    let mode = request.headers().get("sec-fetch-mode");
    request.method() == Method::GET && mode.is_some_and(|mode| mode == "navigate")
}

fn is_from_another_site(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let site = text(header::HeaderName::from_static("sec-fetch-site"));
    if site.is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return true;
    }
    let host = text(header::HOST).unwrap_or_default();
    let is_here = |origin: &str| origin.split_once("://").is_some_and(|(_, origin)| origin == host);
    text(header::ORIGIN).is_some_and(|origin| !is_here(origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(headers: &[(&'static str, &'static str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| {
            (header::HeaderName::from_static(name), header::HeaderValue::from_static(value))
        });
        is_from_another_site(&headers.collect())
    }

    #[test]
    fn only_pages_of_this_site_and_programs_may_send() {
        assert!(!refused(&[("host", "localhost:1")]));
        assert!(!refused(&[("host", "localhost:1"), ("origin", "http://localhost:1")]));
        assert!(!refused(&[("host", "localhost:1"), ("sec-fetch-site", "same-origin")]));
        assert!(refused(&[("host", "localhost:1"), ("origin", "http://localhost:2")]));
        assert!(refused(&[("host", "localhost:1"), ("origin", "null")]));
        assert!(refused(&[("host", "localhost:1"), ("sec-fetch-site", "same-site")]));
        assert!(refused(&[("host", "localhost:1"), ("sec-fetch-site", "cross-site")]));
    }
}
