//! Answers that are errors, all in one form.

use axum::Json;
use axum::body::to_bytes;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::BODY_BYTES_MAX;
use crate::server::fleet::CallError;
use crate::view::ErrorView;

/// What axum says of a request at most: it repeats some of it.
const TEXT_BYTES_MAX: usize = 128 * 1024;
const CHARS_MAX: usize = 500;

/// An answer that is an error.
pub(in crate::server) struct Failure(
    pub(in crate::server) StatusCode,
    pub(in crate::server) String,
);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorView { error: self.1 })).into_response()
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

pub(super) type Answer<T> = Result<T, Failure>;

/// Gives what axum itself refuses the form of all errors: paths, queries and bodies that do not fit.
pub(super) async fn in_our_form(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    let is_error = parts.status.is_client_error() || parts.status.is_server_error();
    let kind = parts.headers.get(header::CONTENT_TYPE);
    if !is_error || kind.is_some_and(|kind| kind == "application/json") {
        return Response::from_parts(parts, body);
    }
    let text = to_bytes(body, TEXT_BYTES_MAX).await.unwrap_or_default();
    let text: String = String::from_utf8_lossy(&text).chars().take(CHARS_MAX).collect();
    let why = match parts.status {
        StatusCode::METHOD_NOT_ALLOWED => {
            "this path does not take this method: see /api/v1/openapi.json".to_owned()
        }
        StatusCode::PAYLOAD_TOO_LARGE => {
            format!("the body is too large: at most {BODY_BYTES_MAX} bytes")
        }
        _ => text,
    };
    let mut answer = Failure(parts.status, why).into_response();
    let allow = parts.headers.remove(header::ALLOW);
    answer.headers_mut().extend(allow.map(|allow| (header::ALLOW, allow)));
    answer
}
