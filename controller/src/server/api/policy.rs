//! The fleet's policy.

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Answer, format};
use crate::server::fleet::{Breaking, Caller, Handle};
use crate::view::PolicyResult;

/// What the images of all deployments must be, in YAML; empty where everything is permitted.
#[utoipa::path(get, path = "/api/v1/policy",
    responses((status = 200, body = String, content_type = "application/yaml")))]
pub(super) async fn policy(State(fleet): State<Handle>) -> Answer<Response> {
    let text = fleet.call(|fleet| fleet.policy_text()).await?;
    Ok(([(header::CONTENT_TYPE, "application/yaml")], text).into_response())
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PolicyQuery {
    /// Set it though deployments break it: they go on where they run, and are not started again.
    #[serde(default)]
    force: bool,
}

/// Sets the fleet's policy whole, in YAML, JSON or CBOR: `digest: required`, `registries`, `keys`.
#[utoipa::path(put, path = "/api/v1/policy", params(PolicyQuery), request_body(content(
        (String = "application/yaml"), (String = "application/json"), (String = "application/cbor"))),
    responses((status = 200, body = PolicyResult), (status = 409, body = PolicyResult),
              (status = 422, body = PolicyResult)))]
pub(super) async fn set_policy(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<PolicyQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let format = format(&headers);
    let breaking = if query.force { Breaking::Accept } else { Breaking::Refuse };
    let result =
        fleet.call(move |fleet| fleet.set_policy(&caller, &body, format, breaking)).await?;
    let status = match (result.accepted, result.faults.is_empty()) {
        (true, _) => StatusCode::OK,
        (false, true) => StatusCode::CONFLICT,
        (false, false) => StatusCode::UNPROCESSABLE_ENTITY,
    };
    Ok((status, Json(result)).into_response())
}
