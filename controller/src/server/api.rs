//! The HTTP API under `/api/v1`. Every handler parses, hands the work to the fleet and answers.

#![allow(unused_qualifications, reason = "what utoipa's macros write")]

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::connect_info::IntoMakeServiceWithConnectInfo;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use futures::stream;
use limpet_controller_core::manifest::Format;
use limpet_protocol::{DeploymentName, DeviceId, WorkloadId};
use serde::Deserialize;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::{IntoParams, Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::fleet::{Caller, Fleet, Handle};
use super::logs::{self, Look, Part};
use super::store::EventFilter;
use super::websocket;
use crate::view::{
    DeployResult, DeploymentView, DeviceView, ErrorView, EventView, LogLineView, ScaleRequest,
    VersionView, WorkloadView,
};

mod agents;
mod auth;
mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod join;
mod policy;
mod recover;
mod rotation;
mod secrets;
#[cfg(test)]
mod tests;
mod tokens;

pub(super) use auth::{Access, Peer};
use failure::Answer;
pub(super) use failure::Failure;

/// A manifest at most: far above any that a device could be told.
const BODY_BYTES_MAX: usize = 64 * 1024;
const EVENTS_DEFAULT: u32 = 200;
const EVENTS_MAX: u32 = 10_000;
const TAIL_DEFAULT: u32 = 100;
/// A device that does not answer in this time is not going to.
const FIRST_CHUNK_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(OpenApi)]
#[openapi(info(title = "Limpet", description = "The controller's API."), modifiers(&Bearer))]
struct Document;

/// Every route takes a token, unless the controller is `--insecure`.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A token of `limpet token create`."))
            .build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", SecurityScheme::Http(scheme));
        document.security = Some(vec![SecurityRequirement::new("token", [] as [&str; 0])]);
    }
}

/// What serves all connections; with a door, MQTT over WebSocket as well.
pub(super) fn service(
    fleet: Handle,
    access: Access,
    door: Option<websocket::Door>,
) -> IntoMakeServiceWithConnectInfo<Router, Peer> {
    router(fleet, access, door).0.into_make_service_with_connect_info::<Peer>()
}

/// All routes, and the document of those under `/api/v1`.
fn router(
    fleet: Handle,
    access: Access,
    door: Option<websocket::Door>,
) -> (Router, utoipa::openapi::OpenApi) {
    let (router, document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(version))
        .routes(routes!(devices))
        .routes(routes!(device, forget))
        .routes(routes!(deployments, apply))
        .routes(routes!(deployment, delete))
        .routes(routes!(manifest))
        .routes(routes!(scale))
        .routes(routes!(workloads))
        .routes(routes!(workload_logs))
        .routes(routes!(events))
        .routes(routes!(recover::holds, recover::recover))
        .routes(routes!(recover::backup))
        .routes(routes!(policy::policy, policy::set_policy))
        .routes(routes!(join::authorities))
        .routes(routes!(join::join))
        .routes(routes!(join::renew))
        .routes(routes!(join::approve))
        .routes(routes!(join::revoke_device))
        .routes(routes!(join::replace))
        .routes(routes!(rotation::rotation))
        .routes(routes!(rotation::authority))
        .routes(routes!(rotation::signing_key))
        .routes(routes!(tokens::whoami))
        .routes(routes!(tokens::tokens, tokens::create))
        .routes(routes!(tokens::revoke))
        .routes(routes!(tokens::publisher))
        .routes(routes!(tokens::audit))
        .routes(routes!(agents::agents))
        .routes(routes!(agents::fetch, agents::remove))
        .routes(routes!(agents::upload))
        .routes(routes!(agents::upgrade))
        .routes(routes!(secrets::secrets))
        .routes(routes!(secrets::set, secrets::delete))
        .split_for_parts();
    let served = document.clone();
    let mqtt = match door {
        Some(door) => Router::new().route(websocket::PATH, get(websocket::mqtt)).with_state(door),
        None => Router::new(),
    };
    let router = router
        .merge(mqtt)
        .route("/healthz", get(async || "ok\n"))
        .route("/api/v1/openapi.json", get(async move || Json(served)))
        .fallback(async || {
            Failure(StatusCode::NOT_FOUND, "there is nothing here; see /api/v1/openapi.json".into())
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::map_response(failure::in_our_form))
        .layer(middleware::from_fn_with_state((access, fleet.clone()), auth::guard))
        .with_state(fleet);
    (router, document)
}

fn absent(what: &str, name: &str) -> Failure {
    Failure(StatusCode::NOT_FOUND, format!("there is no {what} {name:?}"))
}

fn parse<T: std::str::FromStr<Err = limpet_protocol::IdError>>(text: &str) -> Answer<T> {
    text.parse()
        .map_err(|e: limpet_protocol::IdError| Failure(StatusCode::BAD_REQUEST, e.to_string()))
}

/// The controller's version.
#[utoipa::path(get, path = "/api/v1/version", responses((status = 200, body = VersionView)))]
async fn version() -> Json<VersionView> {
    Json(VersionView { version: env!("CARGO_PKG_VERSION").to_owned() })
}

/// All devices.
#[utoipa::path(get, path = "/api/v1/devices", responses((status = 200, body = [DeviceView])))]
async fn devices(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
) -> Answer<Json<Vec<DeviceView>>> {
    Ok(Json(fleet.call(move |fleet| fleet.device_views(caller.scope())).await?))
}

/// One device.
#[utoipa::path(get, path = "/api/v1/devices/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = DeviceView), (status = 404, body = ErrorView)))]
async fn device(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<Json<DeviceView>> {
    let views = fleet.call(move |fleet| fleet.device_views(caller.scope())).await?;
    let view = views.into_iter().find(|view| view.id == id);
    view.map(Json).ok_or_else(|| absent("device", &id))
}

/// Forgets a device and its key; it may join again, with this key or another.
#[utoipa::path(delete, path = "/api/v1/devices/{id}", params(("id" = String, Path)), responses(
    (status = 204), (status = 404, body = ErrorView), (status = 409, body = ErrorView)))]
async fn forget(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    let device: DeviceId = parse(&id)?;
    match fleet.call(move |fleet| fleet.forget(&caller, &device)).await? {
        Some(true) => Ok(StatusCode::NO_CONTENT),
        Some(false) => {
            let why = format!("device {id} is connected: stop its agent first");
            Err(Failure(StatusCode::CONFLICT, why))
        }
        None => Err(absent("device", &id)),
    }
}

/// All deployments.
#[utoipa::path(get, path = "/api/v1/deployments",
    responses((status = 200, body = [DeploymentView])))]
async fn deployments(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
) -> Answer<Json<Vec<DeploymentView>>> {
    Ok(Json(fleet.call(move |fleet| fleet.deployment_views(caller.scope())).await?))
}

/// One deployment.
#[utoipa::path(get, path = "/api/v1/deployments/{name}", params(("name" = String, Path)),
    responses((status = 200, body = DeploymentView), (status = 404, body = ErrorView)))]
async fn deployment(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Answer<Json<DeploymentView>> {
    let views = fleet.call(move |fleet| fleet.deployment_views(caller.scope())).await?;
    let view = views.into_iter().find(|view| view.name == name);
    view.map(Json).ok_or_else(|| absent("deployment", &name))
}

/// A deployment's manifest, in YAML.
#[utoipa::path(get, path = "/api/v1/deployments/{name}/manifest",
    params(("name" = String, Path)),
    responses((status = 200, body = String, content_type = "application/yaml"),
              (status = 404, body = ErrorView)))]
async fn manifest(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Answer<Response> {
    let wanted: DeploymentName = parse(&name)?;
    let text = fleet.call(move |fleet| fleet.manifest(caller.scope(), &wanted)).await?;
    let text = text.ok_or_else(|| absent("deployment", &name))?;
    Ok(([(header::CONTENT_TYPE, "application/yaml")], text).into_response())
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ApplyQuery {
    /// The deployment's name, where the manifest does not say it.
    name: Option<String>,
}

/// Applies a manifest: YAML, JSON or CBOR, by its content type or by what it looks like.
#[utoipa::path(post, path = "/api/v1/deployments", params(ApplyQuery), request_body(content(
        (String = "application/yaml"), (String = "application/json"), (String = "application/cbor"))),
    responses((status = 200, body = DeployResult), (status = 403, body = ErrorView),
              (status = 422, body = DeployResult)))]
async fn apply(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<ApplyQuery>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<Response> {
    let name: Option<DeploymentName> = query.name.as_deref().map(parse).transpose()?;
    let format = format(&headers);
    let applied =
        fleet.call(move |fleet| fleet.apply(&caller, name.as_ref(), &body, format)).await?;
    applied.map(deploy_result).map_err(|why| Failure(StatusCode::FORBIDDEN, why.to_string()))
}

/// The language that a request says its body is in.
fn format(headers: &HeaderMap) -> Format {
    match headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()) {
        Some("application/yaml" | "application/x-yaml" | "text/yaml") => Format::Yaml,
        Some("application/json") => Format::Json,
        Some("application/cbor") => Format::Cbor,
        Some(_) | None => Format::Detect,
    }
}

fn deploy_result(result: DeployResult) -> Response {
    let status = if result.accepted { StatusCode::OK } else { StatusCode::UNPROCESSABLE_ENTITY };
    (status, Json(result)).into_response()
}

/// Asks for another number of replicas.
#[utoipa::path(post, path = "/api/v1/deployments/{name}/scale", params(("name" = String, Path)),
    request_body = ScaleRequest,
    responses((status = 200, body = DeployResult), (status = 404, body = ErrorView),
              (status = 422, body = DeployResult)))]
async fn scale(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Json(request): Json<ScaleRequest>,
) -> Answer<Response> {
    let wanted: DeploymentName = parse(&name)?;
    let replicas = request.replicas;
    let result = fleet.call(move |fleet| fleet.scale(&caller, &wanted, replicas)).await?;
    result.map(deploy_result).ok_or_else(|| absent("deployment", &name))
}

/// Deletes a deployment; its workloads go as their devices are told.
#[utoipa::path(delete, path = "/api/v1/deployments/{name}", params(("name" = String, Path)),
    responses((status = 200, body = DeployResult), (status = 404, body = ErrorView)))]
async fn delete(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
) -> Answer<Response> {
    let wanted: DeploymentName = parse(&name)?;
    let result = fleet.call(move |fleet| fleet.delete(&caller, &wanted)).await?;
    result.map(deploy_result).ok_or_else(|| absent("deployment", &name))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct WorkloadsQuery {
    /// Only those of this deployment.
    deployment: Option<String>,
}

/// All workloads.
#[utoipa::path(get, path = "/api/v1/workloads", params(WorkloadsQuery),
    responses((status = 200, body = [WorkloadView])))]
async fn workloads(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<WorkloadsQuery>,
) -> Answer<Json<Vec<WorkloadView>>> {
    let name = query.deployment;
    let views = move |fleet: &mut Fleet| fleet.workload_views(caller.scope(), name.as_deref());
    Ok(Json(fleet.call(views).await?))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct EventsQuery {
    /// Only events behind this number.
    after: Option<u64>,
    /// At most this many, the latest.
    limit: Option<u32>,
    /// Only those of this device.
    device: Option<String>,
    /// Only those of this deployment.
    deployment: Option<String>,
}

/// Events, in the order of their arrival.
#[utoipa::path(get, path = "/api/v1/events", params(EventsQuery),
    responses((status = 200, body = [EventView])))]
async fn events(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Query(query): Query<EventsQuery>,
) -> Answer<Json<Vec<EventView>>> {
    let limit = query.limit.unwrap_or(EVENTS_DEFAULT).min(EVENTS_MAX);
    let filter = EventFilter {
        after: query.after.unwrap_or(0).min(i64::MAX.cast_unsigned()),
        // Of those a caller who is restricted sees some.
        limit: if caller.scope().is_all() { limit } else { EVENTS_MAX },
        device: query.device,
        deployment: query.deployment,
    };
    let read = fleet.call(move |fleet| fleet.event_views(caller.scope(), &filter)).await?;
    let mut events = read.map_err(|why| Failure(StatusCode::SERVICE_UNAVAILABLE, why))?;
    let latest = events.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    Ok(Json(events.split_off(latest)))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct LogsQuery {
    /// Begin with this many of the latest lines.
    tail: Option<u32>,
    /// Go on with what is written from then on.
    follow: Option<bool>,
}

/// A workload's log, a JSON object per line.
#[utoipa::path(get, path = "/api/v1/workloads/{device}/{workload}/logs",
    params(("device" = String, Path), ("workload" = String, Path), LogsQuery),
    responses((status = 200, body = LogLineView, content_type = "application/x-ndjson"),
              (status = 409, body = ErrorView), (status = 504, body = ErrorView)))]
async fn workload_logs(
    State(fleet): State<Handle>,
    Extension(caller): Extension<Caller>,
    Path((device, workload)): Path<(String, String)>,
    Query(query): Query<LogsQuery>,
) -> Answer<Response> {
    let (device, workload): (DeviceId, WorkloadId) = (parse(&device)?, parse(&workload)?);
    let look = Look {
        caller,
        device,
        workload,
        tail: query.tail.unwrap_or(TAIL_DEFAULT),
        follow: query.follow.unwrap_or(false),
    };
    let silent = format!("device {} does not answer", look.device);
    let conflict = |why| Failure(StatusCode::CONFLICT, why);
    let mut open = logs::open(&fleet, look).await.map_err(conflict)?;
    let first = match tokio::time::timeout(FIRST_CHUNK_TIMEOUT, open.parts.recv()).await {
        Ok(Some(Part::Failed(why))) => return Err(conflict(why)),
        Ok(Some(part)) => part,
        Ok(None) | Err(_) => return Err(Failure(StatusCode::GATEWAY_TIMEOUT, silent)),
    };
    let parts = stream::unfold((Some(first), open), async |(first, mut open)| {
        let part = match first {
            Some(part) => part,
            None => open.parts.recv().await?,
        };
        match part {
            Part::Lines(lines) => Some((Ok::<_, Infallible>(ndjson(&lines)), (None, open))),
            Part::Failed(why) => {
                let line = LogLineView { stream: "error".to_owned(), at: None, line: why };
                Some((Ok(ndjson(&[line])), (Some(Part::End), open)))
            }
            Part::End => None,
        }
    });
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(parts)).into_response())
}

fn ndjson(lines: &[LogLineView]) -> Bytes {
    let text: Vec<String> = lines.iter().filter_map(|l| serde_json::to_string(l).ok()).collect();
    text.iter().map(|line| format!("{line}\n")).collect::<String>().into()
}
