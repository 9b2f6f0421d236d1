//! Who is let in: a token and its role for every request, or nobody but this machine.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use limpet_controller_core::Role;
use limpet_protocol::Token;
use rmqtt::codec::cert::CertInfo;
use rmqtt::net::TlsCertExtractor;
use tokio::net::TcpListener;

use super::Failure;
use crate::server::fleet::{AuthError, Caller, Entry, Fleet, Handle, Who};
use crate::server::tls::TlsListener;

/// Who is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::server) enum Access {
    /// Whoever is on this machine, for everything.
    Open,
    /// Whoever has a token, for what its role says.
    Tokens,
}

/// The other end of a connection.
#[derive(Debug, Clone)]
pub(in crate::server) struct Peer {
    pub(in crate::server) from: SocketAddr,
    /// What it has proved itself with.
    pub(in crate::server) certificate: Option<Arc<CertInfo>>,
}

impl Connected<IncomingStream<'_, TcpListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self { from: *stream.remote_addr(), certificate: None }
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        let certificate = stream.io().extract_cert_info().map(Arc::new);
        Self { from: *stream.remote_addr(), certificate }
    }
}

/// What a request must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing.
    Nothing,
    /// A token with this role, or a higher one.
    Token(Role),
}

const NOTHING: Needs = Needs::Nothing;
const VIEWER: Needs = Needs::Token(Role::Viewer);
const OPERATOR: Needs = Needs::Token(Role::Operator);
const ADMIN: Needs = Needs::Token(Role::Admin);

/// What each route needs at least. One that is missing here needs an admin.
#[rustfmt::skip]
pub(super) const ROUTES: &[(Method, &str, Needs)] = &[
    (Method::GET,    "/healthz", NOTHING),
    (Method::GET,    "/api/v1/openapi.json", VIEWER),
    (Method::GET,    "/api/v1/version", VIEWER),
    (Method::GET,    "/api/v1/whoami", VIEWER),
    (Method::GET,    "/api/v1/devices", VIEWER),
    (Method::GET,    "/api/v1/devices/{id}", VIEWER),
    (Method::DELETE, "/api/v1/devices/{id}", OPERATOR),
    (Method::GET,    "/api/v1/deployments", VIEWER),
    (Method::POST,   "/api/v1/deployments", OPERATOR),
    (Method::GET,    "/api/v1/deployments/{name}", VIEWER),
    (Method::DELETE, "/api/v1/deployments/{name}", OPERATOR),
    (Method::GET,    "/api/v1/deployments/{name}/manifest", VIEWER),
    (Method::POST,   "/api/v1/deployments/{name}/scale", OPERATOR),
    (Method::GET,    "/api/v1/workloads", VIEWER),
    (Method::GET,    "/api/v1/workloads/{device}/{workload}/logs", VIEWER),
    (Method::GET,    "/api/v1/events", VIEWER),
    (Method::GET,    "/api/v1/recover", ADMIN),
    (Method::POST,   "/api/v1/recover", ADMIN),
    (Method::GET,    "/api/v1/backup", ADMIN),
    (Method::GET,    "/api/v1/tokens", ADMIN),
    (Method::POST,   "/api/v1/tokens", ADMIN),
    (Method::DELETE, "/api/v1/tokens/{id}", ADMIN),
    (Method::POST,   "/api/v1/publishers", ADMIN),
    (Method::GET,    "/api/v1/audit", ADMIN),
    (Method::GET,    "/api/v1/authorities", NOTHING),
    (Method::POST,   "/api/v1/join", NOTHING),
    (Method::POST,   "/api/v1/renew", NOTHING),
    (Method::POST,   "/api/v1/devices/{id}/approve", ADMIN),
    (Method::POST,   "/api/v1/devices/{id}/revoke", ADMIN),
    (Method::GET,    "/api/v1/rotation", ADMIN),
    (Method::POST,   "/api/v1/rotation/authority", ADMIN),
    (Method::POST,   "/api/v1/rotation/signing-key", ADMIN),
    (Method::GET,    "/api/v1/secrets", VIEWER),
    (Method::PUT,    "/api/v1/secrets/{name}", OPERATOR),
    (Method::DELETE, "/api/v1/secrets/{name}", OPERATOR),
    (Method::GET,    "/api/v1/policy", VIEWER),
    (Method::PUT,    "/api/v1/policy", ADMIN),
    (Method::GET,    "/mqtt", NOTHING), // but a certificate
    (Method::POST,   "/api/v1/devices/{id}/replace", ADMIN),
    (Method::GET,    "/api/v1/agents", VIEWER),
    (Method::GET,    "/api/v1/agents/{name}", NOTHING), // but a certificate
    (Method::DELETE, "/api/v1/agents/{name}", OPERATOR),
    (Method::PUT,    "/api/v1/agents/{name}/{arch}", OPERATOR),
    (Method::POST,   "/api/v1/upgrade", OPERATOR),
];

/// Why a request is not let in.
enum Refusal {
    Foreign,
    NotHere,
    Auth(AuthError),
    Role { needs: Role, name: String, has: Role },
    Failure(Failure),
}

/// Lets a request in, with its [`Caller`], or answers why not.
pub(super) async fn guard(
    State((access, fleet)): State<(Access, Handle)>,
    ConnectInfo(Peer { from, .. }): ConnectInfo<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let admitted = match access {
        _ if is_of_foreign_page(headers) => Err(Refusal::Foreign),
        Access::Open if is_for_here(headers) => Ok(Caller { who: Who::Local, from: Some(from) }),
        Access::Open => Err(Refusal::NotHere),
        Access::Tokens => match needs(&request) {
            Needs::Nothing => Ok(Caller { who: Who::Stranger, from: Some(from) }),
            Needs::Token(role) => {
                let token = bearer(headers);
                let what = format!("{} {:.200}", request.method(), request.uri().path());
                let admitted =
                    fleet.call(move |fleet| with_token(fleet, token, from, role, &what)).await;
                admitted.unwrap_or_else(|error| Err(Refusal::Failure(error.into())))
            }
        },
    };
    match admitted {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

fn with_token(
    fleet: &mut Fleet,
    token: Option<Token>,
    from: SocketAddr,
    needs: Role,
    what: &str,
) -> Result<Caller, Refusal> {
    let caller = fleet.authenticate(token.as_ref(), from, what).map_err(Refusal::Auth)?;
    match &caller.who {
        Who::Token { id, name, role, .. } if *role < needs => {
            let refusal = Refusal::Role { needs, name: name.clone(), has: *role };
            let outcome = format!("refused: {}", refusal.why());
            let entry =
                Entry { action: "request", object: what.to_owned(), outcome, ..Entry::default() };
            fleet.audit_refused(&caller, *id, entry);
            Err(refusal)
        }
        Who::Token { .. }
        | Who::Local
        | Who::Mqtt(_)
        | Who::Publisher { .. }
        | Who::Device(_)
        | Who::Stranger => Ok(caller),
    }
}

/// What a request needs at least; what is nowhere, only somebody who may read.
fn needs(request: &Request) -> Needs {
    let Some(path) = request.extensions().get::<MatchedPath>() else {
        return VIEWER;
    };
    let method = if request.method() == Method::HEAD { &Method::GET } else { request.method() };
    let row = ROUTES.iter().find(|(m, p, _)| m == method && *p == path.as_str());
    row.map_or(ADMIN, |(_, _, needs)| *needs)
}

/// The token of `Authorization: Bearer TOKEN` (RFC 6750).
fn bearer(headers: &HeaderMap) -> Option<Token> {
    let (scheme, token) = text(headers, header::AUTHORIZATION.as_str())?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().parse().ok())?
}

/// A page of another site must not reach us from a browser.
fn is_of_foreign_page(headers: &HeaderMap) -> bool {
    let host = text(headers, "host").unwrap_or_default();
    let origin = text(headers, "origin").map(|o| o.split_once("://").map_or(o, |(_, o)| o));
    let own = |origin: &str| origin == host || is_loopback(origin) && is_loopback(host);
    matches!(text(headers, "sec-fetch-site"), Some("cross-site" | "same-site"))
        || !origin.is_none_or(own)
}

/// Where no token is asked for, only this machine is served: not through a name of another site
/// that points at loopback.
fn is_for_here(headers: &HeaderMap) -> bool {
    text(headers, "host").is_some_and(is_loopback)
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// Whether a host, with its port or without, is this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl Refusal {
    fn why(&self) -> String {
        match self {
            Self::Foreign => "pages of other sites are not served".to_owned(),
            Self::NotHere => "this controller serves localhost only (--insecure)".to_owned(),
            Self::Auth(error) => error.to_string(),
            Self::Role { needs, name, has } => format!(
                "this needs the role {needs}; the token {name} has {has}: ask an admin for one of \
                 `limpet token create --role {needs}`"
            ),
            Self::Failure(Failure(_, why)) => why.clone(),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let why = self.why();
        let (status, header) = match self {
            Self::Foreign | Self::NotHere | Self::Role { .. } => (StatusCode::FORBIDDEN, None),
            Self::Failure(failure) => return failure.into_response(),
            Self::Auth(AuthError::Failures(wait_s) | AuthError::Requests(wait_s)) => {
                (StatusCode::TOO_MANY_REQUESTS, Some((header::RETRY_AFTER, wait_s.into())))
            }
            Self::Auth(AuthError::Missing) => {
                let challenge = HeaderValue::from_static("Bearer realm=\"limpet\"");
                (StatusCode::UNAUTHORIZED, Some((header::WWW_AUTHENTICATE, challenge)))
            }
            Self::Auth(_) => {
                let challenge = "Bearer realm=\"limpet\", error=\"invalid_token\"";
                let challenge = HeaderValue::from_static(challenge);
                (StatusCode::UNAUTHORIZED, Some((header::WWW_AUTHENTICATE, challenge)))
            }
        };
        let mut response = Failure(status, why).into_response();
        response.headers_mut().extend(header);
        response
    }
}
