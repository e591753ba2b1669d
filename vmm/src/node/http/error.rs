//! What a request gets that is not carried out: always an [`ErrorBody`].

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa::IntoResponses;

use crate::api::ErrorBody;
use crate::node::error::NodeError;

/// The longest message, in characters: a request's own words may be in it.
const MAX_MESSAGE: usize = 2000;

/// Why a request was not carried out.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    body: ErrorBody,
}

/// The status for a kind of error.
fn status(kind: &str) -> StatusCode {
    match kind {
        "bad_request" => StatusCode::BAD_REQUEST,
        "not_found" | "image_not_found" => StatusCode::NOT_FOUND,
        "method" => StatusCode::METHOD_NOT_ALLOWED,
        "slow" => StatusCode::REQUEST_TIMEOUT,
        "exists" | "state" | "aborted" => StatusCode::CONFLICT,
        "too_large" => StatusCode::PAYLOAD_TOO_LARGE,
        "media_type" => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "invalid" | "image_does_not_fit" => StatusCode::UNPROCESSABLE_ENTITY,
        "image_damaged" => StatusCode::BAD_GATEWAY,
        "capacity" | "draining" | "cache_unavailable" | "host" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl ApiError {
    /// Of a kind that [`ErrorBody`] lists.
    pub fn new(kind: &'static str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE) {
            message.truncate(end);
        }
        Self { status: status(kind), body: ErrorBody { kind: kind.to_owned(), message } }
    }

    /// A request that makes no sense.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new("bad_request", message)
    }
}

impl From<NodeError> for ApiError {
    fn from(error: NodeError) -> Self {
        let kind = error.kind();
        if kind == "internal" {
            tracing::error!("{error}");
        }
        Self::new(kind, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// What any request may get, for the document.
#[derive(Debug, IntoResponses)]
#[expect(dead_code, reason = "it describes responses")]
pub enum Refused {
    /// The request makes no sense.
    #[response(status = 400)]
    BadRequest(ErrorBody),
    /// Something went wrong in the agent or its host.
    #[response(status = 500)]
    Internal(ErrorBody),
    /// The node cannot do it now, or at all: it is full, is being drained, cannot run guests, or cannot
    /// reach its cache.
    #[response(status = 503)]
    Unavailable(ErrorBody),
}

/// What a request with a body may get besides, for the document.
#[derive(Debug, IntoResponses)]
#[expect(dead_code, reason = "it describes responses")]
pub enum BodyRefused {
    /// The body did not come in time.
    #[response(status = 408)]
    Slow(ErrorBody),
    /// The body is too large.
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// The body is of another media type.
    #[response(status = 415)]
    MediaType(ErrorBody),
}

/// What a request of a VM may get besides, for the document.
#[derive(Debug, IntoResponses)]
#[expect(dead_code, reason = "it describes responses")]
pub enum VmRefused {
    /// There is no such VM.
    #[response(status = 404)]
    NotFound(ErrorBody),
}

/// What a request that changes something may get besides, for the document.
#[derive(Debug, IntoResponses)]
#[expect(dead_code, reason = "it describes responses")]
pub enum Conflict {
    /// It is not in a state in which that can be done.
    #[response(status = 409)]
    State(ErrorBody),
}

/// What a request that needs an image may get besides, for the document.
#[derive(Debug, IntoResponses)]
#[expect(dead_code, reason = "it describes responses")]
pub enum ImageRefused {
    /// There is no such image.
    #[response(status = 404)]
    NotFound(ErrorBody),
    /// What is asked for has the right shape, but cannot be: a text that is no such name or address, fields
    /// that do not go together, an image that does not fit the machine.
    #[response(status = 422)]
    DoesNotFit(ErrorBody),
    /// The image is not as it was pushed.
    #[response(status = 502)]
    Damaged(ErrorBody),
}

/// No such resource.
pub async fn not_found() -> ApiError {
    ApiError::new("not_found", "there is nothing here; GET /v1/openapi.json says what there is")
}

/// A method that the resource does not have; what it has is in the header `allow`.
pub async fn no_such_method() -> ApiError {
    ApiError::new("method", "this has no such method; the header 'allow' says which it has")
}
