//! The page of jobs beside the dashboard, and what it asks. Both stand behind the dashboard's door, and pages of other
//! sites may not send here.

use std::sync::Arc;

use anyhow::Result;
use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use greenwave_jobs::{JobFilter, JobId};
use greenwave_monitor::dashboard::{Link, own_page};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::OnceCell;

use crate::jobs::{Action, Jobs};

const PATH: &str = "/jobs";

/// The page's link on the dashboard.
pub(super) fn link() -> Link {
    Link { title: "Jobs".into(), path: PATH.into() }
}

/// The database, opened when it is first asked for: it may come later than the edge.
struct Database {
    url: String,
    jobs: OnceCell<Jobs>,
}

type Shared = State<Arc<Database>>;

impl Database {
    async fn jobs(&self) -> Result<&Jobs, Failed> {
        let open = || async {
            let jobs = Jobs::open(&self.url)?;
            jobs.check().await?;
            Ok(jobs)
        };
        self.jobs.get_or_try_init(open).await.map_err(Failed)
    }
}

/// The page, and the API: `GET /admin/jobs` with a [`JobFilter`] as the query, `/admin/jobs/ID` and `/admin/jobs/queues`;
/// `POST /admin/jobs/retry`, `…/cancel` and `…/discard` with `{"ids": […]}` or `{"filter": {…}}`, and `…/pause` and
/// `…/resume` with `{"queue": …}`.
pub(super) fn router(url: String) -> Router {
    Router::new()
        .route(PATH, get(page))
        .route("/admin/jobs", get(list))
        .route("/admin/jobs/queues", get(queues))
        .route("/admin/jobs/{id}", get(show))
        .route("/admin/jobs/retry", post(|db: Shared, which| act(db, Action::Retry, which)))
        .route("/admin/jobs/cancel", post(|db: Shared, which| act(db, Action::Cancel, which)))
        .route("/admin/jobs/discard", post(|db: Shared, which| act(db, Action::Discard, which)))
        .route("/admin/jobs/pause", post(|db: Shared, queue| set_paused(db, true, queue)))
        .route("/admin/jobs/resume", post(|db: Shared, queue| set_paused(db, false, queue)))
        .with_state(Arc::new(Database { url, jobs: OnceCell::new() }))
}

async fn page() -> Response {
    own_page("Jobs", include_str!("jobs.html"), include_str!("jobs.js"))
}

async fn list(State(database): Shared, Query(filter): Query<JobFilter>) -> Result<Response, Failed> {
    Ok(Json(database.jobs().await?.list(&filter).await?).into_response())
}

async fn queues(State(database): Shared) -> Result<Response, Failed> {
    Ok(Json(database.jobs().await?.stats().await?).into_response())
}

async fn show(State(database): Shared, Path(id): Path<JobId>) -> Result<Response, Failed> {
    Ok(match database.jobs().await?.show(id).await? {
        Some(job) => Json(job).into_response(),
        None => {
            let message = "it is completed and not kept, was discarded, or never was";
            (StatusCode::NOT_FOUND, Json(json!({ "error": "no_such_job", "message": message })))
                .into_response()
        }
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Which {
    Ids(Vec<JobId>),
    Filter(JobFilter),
}

/// Says how many jobs it was done to: of those named, some may have ended meanwhile.
async fn act(State(database): Shared, action: Action, Json(which): Json<Which>) -> Result<Response, Failed> {
    let jobs = database.jobs().await?;
    let done = match which {
        Which::Filter(filter) => jobs.act(action, &filter).await?,
        Which::Ids(ids) => {
            let mut done = 0;
            for id in ids {
                done += u64::from(jobs.act_on(action, id).await?);
            }
            done
        }
    };
    Ok(Json(json!({ "jobs": done })).into_response())
}

#[derive(Deserialize)]
struct QueueName {
    queue: String,
}

async fn set_paused(
    State(database): Shared,
    paused: bool,
    Json(QueueName { queue }): Json<QueueName>,
) -> Result<Response, Failed> {
    database.jobs().await?.set_paused(&queue, paused).await?;
    Ok(Json(json!({ "queue": queue, "paused": paused })).into_response())
}

/// The database is away, or has no jobs.
struct Failed(anyhow::Error);

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Failed {
        Failed(error)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let message = greenwave_shop::error_chain(&*self.0).to_string();
        (StatusCode::SERVICE_UNAVAILABLE, Json(json!({ "error": "failed", "message": message })))
            .into_response()
    }
}
