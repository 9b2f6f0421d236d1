//! Backups, and what follows a restored one.

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::stream;
use limpet_protocol::DeviceId;

use super::{Answer, Failure, parse};
use crate::server::fleet::{Caller, Handle};
use crate::view::{ErrorView, HoldView, RecoverRequest, RecoverResult};

/// Devices that hold more than the controller knows of: nothing is published to them.
#[utoipa::path(get, path = "/api/v1/recover", responses((status = 200, body = [HoldView])))]
pub(super) async fn holds(State(fleet): State<Handle>) -> Answer<Json<Vec<HoldView>>> {
    Ok(Json(fleet.call(|fleet| fleet.hold_views()).await?))
}

/// Chooses what holds on such devices: what they hold, or what the store says.
#[utoipa::path(post, path = "/api/v1/recover", request_body = RecoverRequest,
    responses((status = 200, body = RecoverResult), (status = 409, body = ErrorView)))]
pub(super) async fn recover(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<RecoverRequest>,
) -> Answer<Json<RecoverResult>> {
    let devices: Vec<DeviceId> =
        request.devices.iter().map(|id| parse(id)).collect::<Answer<_>>()?;
    let done = fleet.call(move |fleet| fleet.recover(&caller, request.choice, &devices));
    done.await?.map(Json).map_err(|e| Failure(StatusCode::CONFLICT, e.to_string()))
}

/// A backup of the store as it is, and of the key that signs what the fleet is told.
#[utoipa::path(get, path = "/api/v1/backup", responses(
    (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
    (status = 503, body = ErrorView)))]
pub(super) async fn backup(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
) -> Answer<Response> {
    let failed = |why: String| Failure(StatusCode::SERVICE_UNAVAILABLE, why);
    let source = fleet.call(move |fleet| fleet.backup(&caller)).await?;
    let taken = tokio::task::spawn_blocking(move || source.take()).await;
    let pieces =
        taken.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(format!("no backup: {e}")))?;
    let body = stream::unfold(pieces, async |mut pieces| {
        let read = tokio::task::spawn_blocking(move || (pieces.next(), pieces)).await;
        let (piece, pieces) = read.ok()?;
        Some((piece?, pieces))
    });
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(body)).into_response())
}
