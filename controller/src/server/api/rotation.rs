//! What the fleet believes its controller by, and how that is replaced.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};

use super::{Answer, Failure};
use crate::server::fleet::{AuthorityStep, Caller, Handle, RotateError};
use crate::view::{ErrorView, RotateAuthority, RotationView};

/// How far the fleet has come with what replaces something.
#[utoipa::path(get, path = "/api/v1/rotation",
    responses((status = 200, body = RotationView), (status = 409, body = ErrorView)))]
pub(super) async fn rotation(State(fleet): State<Handle>) -> Answer<Json<RotationView>> {
    answer(fleet.call(|fleet| fleet.rotation()).await?)
}

/// Begins to replace the authority, or ends that.
#[utoipa::path(post, path = "/api/v1/rotation/authority", request_body = RotateAuthority,
    responses((status = 200, body = RotationView), (status = 409, body = ErrorView)))]
pub(super) async fn authority(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<RotateAuthority>,
) -> Answer<Json<RotationView>> {
    let step = match (request.finish, request.force) {
        (false, _) => AuthorityStep::Begin,
        (true, false) => AuthorityStep::Finish,
        (true, true) => AuthorityStep::Force,
    };
    answer(fleet.call(move |fleet| fleet.rotate_authority(&caller, step)).await?)
}

/// Makes another key sign what devices are told; each takes it by a document that its former key
/// signs.
#[utoipa::path(post, path = "/api/v1/rotation/signing-key",
    responses((status = 200, body = RotationView), (status = 409, body = ErrorView)))]
pub(super) async fn signing_key(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
) -> Answer<Json<RotationView>> {
    answer(fleet.call(move |fleet| fleet.rotate_signing_key(&caller)).await?)
}

fn answer(done: Result<RotationView, RotateError>) -> Answer<Json<RotationView>> {
    done.map(Json).map_err(|why| {
        let status = match &why {
            RotateError::Authority(_) | RotateError::Key(_) => StatusCode::SERVICE_UNAVAILABLE,
            RotateError::Insecure
            | RotateError::UnderWay
            | RotateError::NotUnderWay
            | RotateError::TrustOnFirstUse
            | RotateError::Waiting { .. } => StatusCode::CONFLICT,
        };
        Failure(status, why.to_string())
    })
}
