use axum::{
    body::Bytes,
    http::StatusCode,
    routing::{MethodRouter, get},
};
use serde::Serialize;
use utoipa::{OpenApi, ToSchema, openapi::OpenApi as Document};

use super::{Problem, answer};
use crate::Shop;

/// What `GET /health` says.
#[derive(Serialize, ToSchema)]
pub(super) struct Health {
    /// Always `ok`.
    #[schema(example = "ok")]
    status: String,
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Greenwave shop",
        description = "Users, products and orders. Every answer is JSON; every failure is a `Problem`.",
    ),
    components(schemas(Problem)),
    tags(
        (name = "users", description = "Customers"),
        (name = "products", description = "Things to sell"),
        (name = "orders", description = "What customers bought"),
        (name = "service", description = "The service itself"),
    )
)]
struct Base;

pub(super) fn base() -> Document {
    Base::openapi()
}

/// A route that answers the document. It is made once; a document that describes itself would help nobody.
pub(super) fn serve(document: &Document) -> MethodRouter<Shop> {
    let bytes = Bytes::from(document.to_json().unwrap_or_default());
    get(move || {
        let bytes = bytes.clone();
        async move { answer::response(StatusCode::OK, bytes) }
    })
}
