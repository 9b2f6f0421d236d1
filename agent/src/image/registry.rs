//! The HTTP API of registries (OCI distribution-spec 1.1), with mirrors and authentication.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use limpet_protocol::Digest;
use ring::rand::{SecureRandom, SystemRandom};
use serde::Deserialize;
use ureq::http::{Response, StatusCode};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, RequestBuilder};

use super::auth::{self, Challenge};
use super::manifest::ACCEPT;
use super::outage::Outages;
use super::{DOCUMENT_BYTES_MAX, ImageError, ImageName, io};
use crate::clock::boot_ms;
use crate::{tls, version};

/// Where the certificates of authorities are, on the distributions we know.
const ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

mod settings;
mod steady;

pub use settings::Registries;
pub(super) use steady::BYTES_MIN;
use steady::Steady;

/// A registry or a mirror of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    base: String,
    host: String,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

pub(super) struct Registry {
    registries: Registries,
    agent: Mutex<Weak<Agent>>,
    /// `Authorization` by endpoint and repository.
    authorizations: Mutex<BTreeMap<(String, String), String>>,
    outages: Mutex<Outages>,
    random: SystemRandom,
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Registry {
    pub(super) fn new(registries: Registries) -> Result<Self, ImageError> {
        // What cannot be read is told of at once, and not by the first pull.
        further_roots(&registries)?;
        let (agent, authorizations, outages) =
            (Mutex::default(), Mutex::default(), Mutex::default());
        Ok(Self { registries, agent, authorizations, outages, random: SystemRandom::new() })
    }

    /// What makes connections and knows whom to trust: all that use it at a time use the same. The
    /// system's authorities are 0.3 MB, which a device has other uses for when nothing is pulled.
    pub(super) fn agent(&self) -> Result<Arc<Agent>, ImageError> {
        let mut shared = self.agent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = shared.upgrade() {
            return Ok(agent);
        }
        let agent = Arc::new(new_agent(&self.registries)?);
        *shared = Arc::downgrade(&agent);
        Ok(agent)
    }

    /// Whether a registry may be asked; otherwise why not.
    pub(super) fn ask(&self, endpoint: &Endpoint) -> Result<(), String> {
        let asked = self.outages().ask(&endpoint.base, boot_ms());
        asked.map_err(|reason| format!("{endpoint}: {reason}"))
    }

    pub(super) fn answered(&self, endpoint: &Endpoint) {
        self.outages().answered(&endpoint.base);
    }

    /// Leaves a registry alone for a while; gives what to tell the operator.
    pub(super) fn failed(
        &self,
        endpoint: &Endpoint,
        reason: String,
        wait: Option<Duration>,
    ) -> String {
        let mut random = [0; 8];
        // Without chance the wait is a little shorter, and that is all.
        let _ = self.random.fill(&mut random);
        let random = u64::from_be_bytes(random);
        let told = self.outages().failed(&endpoint.base, boot_ms(), (reason, wait), random);
        format!("{endpoint}: {told}")
    }

    pub(super) fn forget_outages(&self) {
        self.outages().forget();
    }

    fn outages(&self) -> MutexGuard<'_, Outages> {
        self.outages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whom to ask for an image, in order: mirrors, then its own registry.
    pub(super) fn endpoints(&self, name: &ImageName) -> Vec<Endpoint> {
        let mirrors = self.registries.mirrors.get(name.registry());
        let origin = match name.registry() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let mut endpoints: Vec<Endpoint> =
            mirrors.into_iter().flatten().map(|mirror| self.endpoint(mirror)).collect();
        endpoints.push(Endpoint { host: name.registry().to_owned(), ..self.endpoint(origin) });
        endpoints
    }

    fn endpoint(&self, address: &str) -> Endpoint {
        let address = address.trim_end_matches('/');
        let (scheme, host) = match address.split_once("://") {
            Some((scheme, host)) => (Some(scheme), host),
            None => (None, address),
        };
        let plain = is_loopback(host) || self.registries.insecure.iter().any(|h| h == host);
        let scheme = scheme.unwrap_or(if plain { "http" } else { "https" });
        Endpoint { base: format!("{scheme}://{host}"), host: host.to_owned() }
    }

    /// What an error of a request means, which may be the proxy's.
    fn explain(&self, url: &str, error: &ureq::Error) -> String {
        let (scheme, authority) = scheme_and_authority(url);
        self.registries.proxies.explain(scheme, authority, error)
    }

    /// What comes, for as long as it does.
    fn body(&self, response: Response<Body>) -> Steady<impl Read + use<>> {
        let timeout = self.registries.stall_timeout_s.duration();
        Steady::new(response.into_body().into_reader(), timeout)
    }

    fn document(
        &self,
        endpoint: &Endpoint,
        url: &str,
        response: Response<Body>,
        bytes_max: u64,
    ) -> Result<Vec<u8>, ImageError> {
        if response.status() != StatusCode::OK {
            return Err(fault(endpoint, format!("{} for {url}", response.status())));
        }
        let mut bytes = Vec::new();
        let read = self.body(response).take(bytes_max.saturating_add(1)).read_to_end(&mut bytes);
        read.map_err(|e| unreachable(endpoint, format!("{url}: {e}")))?;
        if bytes.len() as u64 > bytes_max {
            let reason = format!("{url} has more than the {bytes_max} bytes that are read of it");
            return Err(fault(endpoint, reason));
        }
        Ok(bytes)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(String, String), String>> {
        self.authorizations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The certificates that are trusted besides the system's.
fn further_roots(registries: &Registries) -> Result<Vec<u8>, ImageError> {
    let path = registries.certificates.as_ref();
    path.map_or(Ok(Vec::new()), |path| std::fs::read(path).map_err(io("read", path)))
}

fn new_agent(registries: &Registries) -> Result<Agent, ImageError> {
    let mut roots = ROOTS.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default();
    roots.extend(further_roots(registries)?);
    let config = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(tls::provider())
        .root_certs(RootCerts::from(tls::certificates(&roots).collect::<Vec<_>>()))
        .build();
    Ok(Agent::config_builder()
        .tls_config(config)
        // Each request has its own.
        .proxy(None)
        .http_status_as_error(false)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(ANSWER_TIMEOUT))
        .timeout_per_read(Some(registries.stall_timeout_s.duration()))
        .user_agent(version::user_agent())
        .build()
        .new_agent())
}

/// Where an image comes from.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) registry: &'a Registry,
    pub(super) agent: &'a Agent,
    pub(super) endpoint: &'a Endpoint,
    pub(super) name: &'a ImageName,
}

impl Source<'_> {
    /// A manifest, by tag or digest.
    pub(super) fn manifest(&self, reference: &str) -> Result<Vec<u8>, ImageError> {
        self.manifest_if_there(reference)?.ok_or_else(|| {
            let repository = self.name.repository();
            let reason = format!("not found: {repository}:{reference}; check name and tag");
            fault(self.endpoint, reason)
        })
    }

    /// A manifest that need not be there.
    pub(super) fn manifest_if_there(&self, reference: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let url = format!("{}/manifests/{reference}", self.base());
        let response = self.get(&url, None)?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(None),
            _ => {
                let had = self.registry.document(self.endpoint, &url, response, DOCUMENT_BYTES_MAX);
                had.map(Some)
            }
        }
    }

    /// A small blob that is what its digest says, of at most `bytes_max` bytes.
    pub(super) fn document(
        &self,
        what: &'static str,
        digest: &str,
        bytes_max: u64,
    ) -> Result<Vec<u8>, ImageError> {
        let url = format!("{}/blobs/{digest}", self.base());
        let response = self.get(&url, None)?;
        let bytes = self.registry.document(self.endpoint, &url, response, bytes_max)?;
        let actual = format!("sha256:{}", Digest::of(&bytes));
        if actual != digest {
            let (name, expected) = (self.name.clone(), digest.to_owned());
            return Err(ImageError::Digest { name, what, expected, actual });
        }
        Ok(bytes)
    }

    /// A blob from `offset` on; the second value says whether the registry went along with that or
    /// sends it from the beginning.
    pub(super) fn blob(
        &self,
        (digest, size): (&str, u64),
        offset: u64,
    ) -> Result<(impl Read + use<>, bool), ImageError> {
        let url = format!("{}/blobs/{digest}", self.base());
        let range = (offset > 0).then(|| format!("bytes={offset}-{}", size.saturating_sub(1)));
        let response = self.get(&url, range.as_deref())?;
        let resumed = match response.status() {
            StatusCode::OK => false,
            StatusCode::PARTIAL_CONTENT if offset > 0 => true,
            status => return Err(fault(self.endpoint, format!("{status} for {url}"))),
        };
        Ok((self.registry.body(response), resumed))
    }

    fn get(&self, url: &str, range: Option<&str>) -> Result<Response<Body>, ImageError> {
        let key = (self.endpoint.base.clone(), self.name.repository().to_owned());
        let known = self.registry.lock().get(&key).cloned();
        let response = self.send(url, range, known.as_deref())?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let asked = response.headers().get_all("www-authenticate").iter();
        let challenge = asked.filter_map(|h| Challenge::parse(h.to_str().ok()?)).next();
        let authorization = self.authorize(challenge)?;
        let response = self.send(url, range, Some(&authorization))?;
        if matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let reason =
                format!("access to {} is denied: check the credentials", self.name.repository());
            return Err(fault(self.endpoint, reason));
        }
        self.registry.lock().insert(key, authorization);
        Ok(response)
    }

    fn send(
        &self,
        url: &str,
        range: Option<&str>,
        authorization: Option<&str>,
    ) -> Result<Response<Body>, ImageError> {
        let mut request = self.request(url).header("accept", ACCEPT);
        for (header, value) in [("range", range), ("authorization", authorization)] {
            if let Some(value) = value {
                request = request.header(header, value);
            }
        }
        let failed = |e| unreachable(self.endpoint, self.registry.explain(url, &e));
        able(self.endpoint, url, request.call().map_err(failed)?)
    }

    fn request(&self, url: &str) -> RequestBuilder<WithoutBody> {
        let (scheme, authority) = scheme_and_authority(url);
        let proxy = self.registry.registries.proxies.for_request(scheme, authority);
        self.agent.get(url).config().proxy(proxy).build()
    }

    fn authorize(&self, challenge: Option<Challenge>) -> Result<String, ImageError> {
        let basic = match &self.registry.registries.credentials {
            Some(file) => {
                auth::basic(file, &self.endpoint.host).map_err(|e| fault(self.endpoint, e))?
            }
            None => None,
        };
        let denied = || {
            let host = &self.endpoint.host;
            fault(self.endpoint, format!("it wants credentials, and there are none for {host}"))
        };
        match challenge {
            Some(Challenge::Bearer { realm, service, scope }) => {
                if self.endpoint.base.starts_with("https://") && !realm.starts_with("https://") {
                    let reason = format!("it wants a token of {realm}, which is not encrypted");
                    return Err(fault(self.endpoint, reason));
                }
                let scope =
                    scope.unwrap_or_else(|| format!("repository:{}:pull", self.name.repository()));
                let mut request = self.request(&realm).query("scope", scope);
                if let Some(service) = service {
                    request = request.query("service", service);
                }
                if let Some(basic) = basic {
                    request = request.header("authorization", basic);
                }
                let response = request.call().map_err(|e| {
                    let why = self.registry.explain(&realm, &e);
                    unreachable(self.endpoint, format!("{realm}: {why}"))
                })?;
                let response = able(self.endpoint, &realm, response)?;
                let text =
                    self.registry.document(self.endpoint, &realm, response, DOCUMENT_BYTES_MAX)?;
                let token: Option<Token> = serde_json::from_slice(&text).ok();
                let token = token.and_then(|token| token.token.or(token.access_token));
                let reason = || fault(self.endpoint, format!("{realm} answered without a token"));
                token.map(|token| format!("Bearer {token}")).ok_or_else(reason)
            }
            Some(Challenge::Basic) | None => basic.ok_or_else(denied),
        }
    }

    fn base(&self) -> String {
        format!("{}/v2/{}", self.endpoint, self.name.repository())
    }
}

fn fault(endpoint: &Endpoint, reason: String) -> ImageError {
    ImageError::Registry { endpoint: endpoint.to_string(), reason }
}

fn unreachable(endpoint: &Endpoint, reason: String) -> ImageError {
    ImageError::Unreachable { endpoint: endpoint.to_string(), reason }
}

/// Passes on what a registry that can serve has answered.
fn able(
    endpoint: &Endpoint,
    url: &str,
    response: Response<Body>,
) -> Result<Response<Body>, ImageError> {
    let status = response.status();
    if !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS {
        return Ok(response);
    }
    // In seconds (RFC 9110 section 10.2.3): a date would need a clock that can be trusted.
    let wait = response.headers().get("retry-after").and_then(|h| h.to_str().ok()?.parse().ok());
    Err(ImageError::Busy {
        endpoint: endpoint.to_string(),
        reason: format!("{status} for {url}"),
        wait: wait.map(Duration::from_secs),
    })
}

/// What a URL begins with.
fn scheme_and_authority(url: &str) -> (&str, &str) {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    (scheme, rest.split(['/', '?']).next().unwrap_or(rest))
}

fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests;
