use axum::{
    body::{Body, Bytes},
    extract::rejection::BytesRejection,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{Error, request::Refusal};

/// An answer that is no success, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What kind of problem; belongs to the status.
    #[schema(example = "not_found")]
    pub error: String,
    /// What to do about it.
    #[schema(example = "no user has the id 5")]
    pub message: String,
}

/// Why a request fails: a status and the text for its caller.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    message: String,
}

impl Failure {
    pub(super) fn no_such_route() -> Failure {
        Failure::new(StatusCode::NOT_FOUND, "no such route; /openapi.json lists those there are")
    }

    pub(super) fn method_not_allowed() -> Failure {
        Failure::new(StatusCode::METHOD_NOT_ALLOWED, "this route does not take this method")
    }

    pub(super) fn too_slow() -> Failure {
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the request took too long; try again")
    }

    pub(super) fn not_found(kind: &str, id: &str) -> Failure {
        // A path may be long; its start is enough to recognise it.
        let id: String = id.chars().take(40).collect();
        Failure::new(StatusCode::NOT_FOUND, format!("no {kind} has the id {id}"))
    }

    fn new(status: StatusCode, message: impl Into<String>) -> Failure {
        Failure { status, message: message.into() }
    }

    fn code(&self) -> &'static str {
        match self.status {
            StatusCode::BAD_REQUEST => "bad_request",
            StatusCode::NOT_FOUND => "not_found",
            StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
            StatusCode::CONFLICT => "conflict",
            StatusCode::PAYLOAD_TOO_LARGE => "too_large",
            StatusCode::UNPROCESSABLE_ENTITY => "invalid",
            _ => "unavailable",
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        json(self.status, &Problem { error: self.code().to_owned(), message: self.message })
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let status = match refusal {
            Refusal::Syntax(_) => StatusCode::BAD_REQUEST,
            Refusal::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Failure::new(status, refusal.to_string())
    }
}

impl From<BytesRejection> for Failure {
    fn from(rejection: BytesRejection) -> Failure {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "a body may have 1 MiB at most")
        } else {
            Failure::new(StatusCode::BAD_REQUEST, "the body did not arrive whole")
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error {
            Error::EmailInUse => Failure::new(StatusCode::CONFLICT, error.to_string()),
            Error::NoSuchCustomer(_) | Error::NoSuchProduct(_) => {
                Failure::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
            }
            // The log has the cause; a caller could do nothing with it, and need not see the insides.
            other => {
                tracing::error!(error = %crate::error::chain(&other), "a request found no database");
                Failure::new(StatusCode::SERVICE_UNAVAILABLE, "the database does not answer; try again")
            }
        }
    }
}

/// A JSON answer of this value.
pub(super) fn json<T: Serialize>(status: StatusCode, value: &T) -> Response {
    let mut bytes = Vec::with_capacity(256);
    match serde_json::to_writer(&mut bytes, value) {
        Ok(()) => response(status, Bytes::from(bytes)),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            text(StatusCode::INTERNAL_SERVER_ERROR, r#"{"error":"unavailable","message":"try again"}"#)
        }
    }
}

/// A JSON answer that is written already.
pub(super) fn text(status: StatusCode, json: &'static str) -> Response {
    response(status, Bytes::from_static(json.as_bytes()))
}

pub(super) fn response(status: StatusCode, bytes: Bytes) -> Response {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
