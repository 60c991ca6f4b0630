use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::StatusCode,
    response::Response,
};

use super::{Failure, Problem, answer};
use crate::{Shop, model::Product};

/// A product by id, from memory where it is there.
#[utoipa::path(
    get, path = "/products/{id}", tag = "products",
    params(("id" = i64, Path, minimum = 1)),
    responses(
        (status = OK, body = Product),
        (status = NOT_FOUND, body = Problem, description = "no such product"),
        (status = SERVICE_UNAVAILABLE, body = Problem, description = "the database does not answer"),
    ),
)]
pub(super) async fn get_product(
    State(shop): State<Shop>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Failure> {
    let (id, text) = super::path_id(path);
    let product = match id {
        Some(id) => shop.product(id).await?,
        None => None,
    };
    match product {
        Some(product) => Ok(answer::json(StatusCode::OK, &*product)),
        None => Err(Failure::not_found("product", &text)),
    }
}
