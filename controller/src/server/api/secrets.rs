//! Secrets. Nothing here gives a value back.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use limpet_protocol::{Plaintext, SecretName};

use super::{Answer, Failure, parse};
use crate::server::fleet::{Caller, Handle, SecretRefusal};
use crate::view::{ErrorView, SecretResult, SecretView};

impl From<SecretRefusal> for Failure {
    fn from(refusal: SecretRefusal) -> Self {
        let status = match refusal {
            SecretRefusal::Restricted(_) => StatusCode::FORBIDDEN,
            SecretRefusal::Absent(_) => StatusCode::NOT_FOUND,
            SecretRefusal::InUse { .. } => StatusCode::CONFLICT,
            SecretRefusal::Empty(_)
            | SecretRefusal::TooLong(_)
            | SecretRefusal::TooMany
            | SecretRefusal::Deployment { .. } => StatusCode::UNPROCESSABLE_ENTITY,
        };
        Self(status, refusal.to_string())
    }
}

/// All secrets: names, versions and sizes, never values.
#[utoipa::path(get, path = "/api/v1/secrets", responses((status = 200, body = [SecretView])))]
pub(super) async fn secrets(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
) -> Answer<Json<Vec<SecretView>>> {
    let read = fleet.call(move |fleet| fleet.secret_views(caller.scope())).await?;
    read.map(Json).map_err(|why| Failure(StatusCode::SERVICE_UNAVAILABLE, why))
}

/// Sets a secret to the bytes of the request: its next version, which deployments that name it
/// follow.
#[utoipa::path(put, path = "/api/v1/secrets/{name}", params(("name" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = SecretResult), (status = 400, body = ErrorView),
              (status = 403, body = ErrorView), (status = 422, body = ErrorView)))]
pub(super) async fn set(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer<Json<SecretResult>> {
    let name: SecretName = parse(&name)?;
    let value = Plaintext::from(Vec::from(body));
    Ok(Json(fleet.call(move |fleet| fleet.set_secret(&caller, &name, &value)).await??))
}

/// Deletes a secret that no deployment names.
#[utoipa::path(delete, path = "/api/v1/secrets/{name}", params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorView), (status = 409, body = ErrorView)))]
pub(super) async fn delete(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Answer<StatusCode> {
    let name: SecretName = parse(&name)?;
    fleet.call(move |fleet| fleet.delete_secret(&caller, &name)).await??;
    Ok(StatusCode::NO_CONTENT)
}
