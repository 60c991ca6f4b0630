use axum::{
    body::Bytes,
    extract::{
        Path, Query, State,
        rejection::{BytesRejection, PathRejection, QueryRejection},
    },
    http::StatusCode,
    response::Response,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Failure, Problem, answer};
use crate::{
    Shop,
    model::{Order, Status},
    request::{self, ListQuery, NewOrder, Refusal},
};

/// The newest orders of a customer.
#[derive(Serialize, ToSchema)]
pub(super) struct OrderList {
    /// At most 20, newest first.
    #[schema(max_items = 20)]
    orders: Vec<Order>,
}

/// An order by id.
#[utoipa::path(
    get, path = "/orders/{id}", tag = "orders",
    params(("id" = i64, Path, minimum = 1)),
    responses(
        (status = OK, body = Order),
        (status = NOT_FOUND, body = Problem, description = "no such order"),
        (status = SERVICE_UNAVAILABLE, body = Problem, description = "the database does not answer"),
    ),
)]
pub(super) async fn get_order(
    State(shop): State<Shop>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Failure> {
    let (id, text) = super::path_id(path);
    let order = match id {
        Some(id) => shop.order(id).await?,
        None => None,
    };
    match order {
        Some(order) => Ok(answer::json(StatusCode::OK, &order)),
        None => Err(Failure::not_found("order", &text)),
    }
}

/// The newest 20 orders of a customer, of one status if it is given.
#[utoipa::path(
    get, path = "/orders", tag = "orders",
    params(("customer_id" = i64, Query, minimum = 1), ("status" = Option<Status>, Query)),
    responses(
        (status = OK, body = OrderList),
        (status = UNPROCESSABLE_ENTITY, body = Problem, description = "a bad query string"),
        (status = SERVICE_UNAVAILABLE, body = Problem, description = "the database does not answer"),
    ),
)]
pub(super) async fn list_orders(
    State(shop): State<Shop>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, Failure> {
    let Query(query) = query.map_err(|rejection| Refusal::Invalid(rejection.body_text()))?;
    let (customer, status) = query.parse()?;
    let orders = shop.order_list(customer, status).await?;
    Ok(answer::json(StatusCode::OK, &OrderList { orders }))
}

/// Makes an order at the prices of now. A notification and a lower stock follow.
#[utoipa::path(
    post, path = "/orders", tag = "orders",
    request_body = NewOrder,
    responses(
        (status = CREATED, body = Order),
        (status = BAD_REQUEST, body = Problem, description = "the body is not JSON"),
        (status = UNPROCESSABLE_ENTITY, body = Problem, description = "the body breaks a rule, or names no customer or product"),
        (status = SERVICE_UNAVAILABLE, body = Problem, description = "the database does not answer"),
    ),
)]
pub(super) async fn create_order(
    State(shop): State<Shop>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Failure> {
    let new: NewOrder = request::body(&body?)?;
    let order = shop.create_order(new).await?;
    Ok(answer::json(StatusCode::CREATED, &order))
}
