//! How devices join, and what becomes of them.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use limpet_protocol::{DeviceId, Membership, cbor};

use super::{Answer, Failure, parse};
use crate::server::fleet::{Caller, Handle, JoinRefusal, MemberError, ReplaceError, Standing};
use crate::view::{ErrorView, ReplaceRequest};

/// Certificates (PEM) of the authorities that this controller's own comes from: who has a pin finds
/// in them what it is of.
#[utoipa::path(get, path = "/api/v1/authorities",
    responses((status = 200, body = String, content_type = "application/pem-certificate-chain")))]
pub(super) async fn authorities(State(fleet): State<Handle>) -> Answer<Response> {
    let pem = fleet.call(|fleet| fleet.authorities()).await?;
    Ok(([(header::CONTENT_TYPE, "application/pem-certificate-chain")], pem).into_response())
}

/// Makes a device a member of the fleet: its request is signed with its key (COSE_Sign1), the
/// answer is in CBOR.
#[utoipa::path(post, path = "/api/v1/join",
    request_body(content = Vec<u8>, content_type = "application/cose"),
    responses((status = 200, body = Vec<u8>, content_type = "application/cbor"),
              (status = 400, body = ErrorView), (status = 403, body = ErrorView),
              (status = 409, body = ErrorView), (status = 429, body = ErrorView)))]
pub(super) async fn join(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Answer<Response> {
    let from = caller.from.ok_or_else(nowhere)?;
    answer(fleet.call(move |fleet| fleet.join(&body, from)).await?)
}

/// Gives a member a new certificate, where its connection to the broker can bring it none.
#[utoipa::path(post, path = "/api/v1/renew",
    request_body(content = Vec<u8>, content_type = "application/cose"),
    responses((status = 200, body = Vec<u8>, content_type = "application/cbor"),
              (status = 400, body = ErrorView), (status = 403, body = ErrorView)))]
pub(super) async fn renew(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Answer<Response> {
    let from = caller.from.ok_or_else(nowhere)?;
    answer(fleet.call(move |fleet| fleet.renew(&body, from)).await?)
}

/// Lets a device in that waits for it.
#[utoipa::path(post, path = "/api/v1/devices/{id}/approve", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorView)))]
pub(super) async fn approve(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    stand(fleet, caller, parse(&id)?, Standing::Member).await
}

/// Lets a device in no more, and cuts its connection.
#[utoipa::path(post, path = "/api/v1/devices/{id}/revoke", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorView)))]
pub(super) async fn revoke_device(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    stand(fleet, caller, parse(&id)?, Standing::Revoked).await
}

/// Has another device take the place of this one, which is let in no more.
#[utoipa::path(post, path = "/api/v1/devices/{id}/replace", params(("id" = String, Path)),
    request_body = ReplaceRequest,
    responses((status = 204), (status = 404, body = ErrorView), (status = 409, body = ErrorView)))]
pub(super) async fn replace(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Json(ReplaceRequest { by }): Json<ReplaceRequest>,
) -> Answer<StatusCode> {
    let (old, new) = (parse(&id)?, parse(&by)?);
    let done = fleet.call(move |fleet| fleet.replace_device(&caller, &old, &new)).await?;
    done.map(|()| StatusCode::NO_CONTENT).map_err(|why| match why {
        ReplaceError::Member(why) => failure(why),
        ReplaceError::Itself | ReplaceError::NotThere(_) => {
            Failure(StatusCode::CONFLICT, why.to_string())
        }
    })
}

async fn stand(
    fleet: Handle,
    caller: Caller,
    id: DeviceId,
    standing: Standing,
) -> Answer<StatusCode> {
    let done = fleet.call(move |fleet| fleet.set_standing(&caller, &id, standing)).await?;
    done.map(|()| StatusCode::NO_CONTENT).map_err(failure)
}

fn nowhere() -> Failure {
    Failure(StatusCode::BAD_REQUEST, "the request came from nowhere".to_owned())
}

fn answer(made: Result<Membership, MemberError>) -> Answer<Response> {
    let membership = made.map_err(failure)?;
    let kind = [(header::CONTENT_TYPE, "application/cbor")];
    Ok((kind, cbor::encode(&membership)).into_response())
}

fn failure(why: MemberError) -> Failure {
    let status = match &why {
        MemberError::Envelope(_) => StatusCode::BAD_REQUEST,
        MemberError::Token(JoinRefusal::Failures(_)) => StatusCode::TOO_MANY_REQUESTS,
        MemberError::Unknown(_) => StatusCode::NOT_FOUND,
        MemberError::Taken { .. } | MemberError::Believes(_) | MemberError::Insecure => {
            StatusCode::CONFLICT
        }
        MemberError::Token(_) | MemberError::Revoked(_) | MemberError::TooLate(_) => {
            StatusCode::FORBIDDEN
        }
        MemberError::Authority(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    Failure(status, why.to_string())
}
