use axum::{
    body::Bytes,
    extract::{
        Path, State,
        rejection::{BytesRejection, PathRejection},
    },
    http::StatusCode,
    response::Response,
};

use super::{Failure, Problem, answer};
use crate::{
    Shop,
    model::User,
    request::{self, NewUser},
};

/// A user by id, from the cache where it is there.
#[utoipa::path(
    get, path = "/users/{id}", tag = "users",
    params(("id" = i64, Path, minimum = 1)),
    responses(
        (status = OK, body = User),
        (status = NOT_FOUND, body = Problem, description = "no such user"),
        (status = SERVICE_UNAVAILABLE, body = Problem, description = "the database does not answer"),
    ),
)]
pub(super) async fn get_user(
    State(shop): State<Shop>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Failure> {
    let (id, text) = super::path_id(path);
    let user = match id {
        Some(id) => shop.user(id).await?,
        None => None,
    };
    match user {
        Some(user) => Ok(answer::json(StatusCode::OK, &*user)),
        None => Err(Failure::not_found("user", &text)),
    }
}

/// Makes a user. A welcome email follows.
#[utoipa::path(
    post, path = "/users", tag = "users",
    request_body = NewUser,
    responses(
        (status = CREATED, body = User),
        (status = BAD_REQUEST, body = Problem, description = "the body is not JSON"),
        (status = CONFLICT, body = Problem, description = "the email is in use"),
        (status = UNPROCESSABLE_ENTITY, body = Problem, description = "the body breaks a rule"),
        (status = SERVICE_UNAVAILABLE, body = Problem, description = "the database does not answer"),
    ),
)]
pub(super) async fn create_user(
    State(shop): State<Shop>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let new: NewUser = request::body(&body?)?;
    let user = shop.create_user(new).await?;
    Ok(answer::json(StatusCode::CREATED, &user))
}
