//! Tokens, and the audit log.

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use limpet_controller_core::token::{PublisherWish, Ttl, Wish};
use limpet_protocol::TokenId;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{Answer, Failure, absent, parse};
use crate::server::fleet::{Caller, Handle, TokenError};
use crate::server::store::AuditFilter;
use crate::view::{
    AuditView, ErrorView, PublisherMade, PublisherRequest, TokenMade, TokenRequest, TokenView,
    WhoView,
};

const AUDIT_DEFAULT: u32 = 100;
const AUDIT_MAX: u32 = 10_000;

/// Who asks, as far as this controller knows.
#[utoipa::path(get, path = "/api/v1/whoami", responses((status = 200, body = WhoView)))]
pub(super) async fn whoami(Extension(caller): Extension<Caller>) -> Json<WhoView> {
    Json(WhoView {
        who: caller.who.to_string(),
        role: caller.role().map(|role| role.to_string()).unwrap_or_default(),
        select: caller.scope().0.clone(),
    })
}

/// All tokens, without their secrets.
#[utoipa::path(get, path = "/api/v1/tokens", responses((status = 200, body = [TokenView])))]
pub(super) async fn tokens(State(fleet): State<Handle>) -> Answer<Json<Vec<TokenView>>> {
    Ok(Json(fleet.call(|fleet| fleet.token_views()).await?))
}

/// Makes a token. Its secret is in this answer, and nowhere else.
#[utoipa::path(post, path = "/api/v1/tokens", request_body = TokenRequest,
    responses((status = 200, body = TokenMade), (status = 409, body = ErrorView),
              (status = 422, body = ErrorView)))]
pub(super) async fn create(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<TokenRequest>,
) -> Answer<Json<TokenMade>> {
    let wish = wish(request);
    let made = fleet.call(move |fleet| fleet.create_token(&caller, wish)).await?;
    made.map(Json).map_err(failure)
}

/// Makes a certificate for a client that publishes manifests over MQTT, with a key that it has.
#[utoipa::path(post, path = "/api/v1/publishers", request_body = PublisherRequest,
    responses((status = 200, body = PublisherMade), (status = 409, body = ErrorView),
              (status = 422, body = ErrorView)))]
pub(super) async fn publisher(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<PublisherRequest>,
) -> Answer<Json<PublisherMade>> {
    let made = fleet.call(move |fleet| {
        let PublisherRequest { name, key, ttl_s } = &request;
        let ttl_ms = ttl_s.map(|ttl_s| ttl_s.saturating_mul(1000));
        fleet.create_publisher(&caller, PublisherWish { name, key, ttl_ms })
    });
    let made = made.await?;
    made.map(Json).map_err(failure)
}

fn failure(error: TokenError) -> Failure {
    let status = match error {
        TokenError::Insecure | TokenError::Many => StatusCode::CONFLICT,
        TokenError::Wish(_) => StatusCode::UNPROCESSABLE_ENTITY,
        TokenError::Key(_) | TokenError::Authority(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    Failure(status, error.to_string())
}

fn wish(request: TokenRequest) -> Wish {
    let TokenRequest { name, role, select, uses, labels, require_approval, .. } = request;
    let ttl = match (request.never_expires, request.ttl_s) {
        (true, _) => Some(Ttl::Never),
        (false, seconds) => seconds.map(|seconds| Ttl::Ms(seconds.saturating_mul(1000))),
    };
    Wish { name, role, ttl, select, uses, labels, require_approval }
}

/// Takes a token back: it opens nothing from then on.
#[utoipa::path(delete, path = "/api/v1/tokens/{id}", params(("id" = String, Path)),
    responses((status = 200, body = TokenView), (status = 404, body = ErrorView)))]
pub(super) async fn revoke(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<Json<TokenView>> {
    let token: TokenId = parse(&id)?;
    let revoked = fleet.call(move |fleet| fleet.revoke_token(&caller, token)).await?;
    revoked.map(Json).ok_or_else(|| absent("token", &id))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditQuery {
    /// Only entries behind this number.
    after: Option<u64>,
    /// At most this many, the latest.
    limit: Option<u32>,
    /// Only those of objects with this name: `web` of `deployment/web`.
    name: Option<String>,
}

/// Who did what: the audit log, in its order.
#[utoipa::path(get, path = "/api/v1/audit", params(AuditQuery),
    responses((status = 200, body = [AuditView])))]
pub(super) async fn audit(
    State(fleet): State<Handle>,
    Query(query): Query<AuditQuery>,
) -> Answer<Json<Vec<AuditView>>> {
    let filter = AuditFilter {
        after: query.after.unwrap_or(0).min(i64::MAX.cast_unsigned()),
        limit: query.limit.unwrap_or(AUDIT_DEFAULT).min(AUDIT_MAX),
        name: query.name,
    };
    let read = fleet.call(move |fleet| fleet.audit_views(&filter)).await?;
    read.map(Json).map_err(|why| Failure(StatusCode::SERVICE_UNAVAILABLE, why))
}
