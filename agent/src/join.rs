//! Becoming a member of a fleet, over HTTPS.
//!
//! The invitation pins the fleet's authority: its certificate is fetched first, unverified, and
//! believed only where its SHA-256 is the pin.

use std::path::{Path, PathBuf};
use std::time::Duration;

use limpet_protocol::join::MEDIA_TYPE;
use limpet_protocol::{
    DeviceId, Digest, Header, Invitation, InvitationError, Join, Kind, Membership, Prefix, Purpose,
    Renew, cbor, envelope,
};
use serde::{Deserialize, Serialize};
use ureq::config::ConfigBuilder;
use ureq::http::{Response, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsConfigBuilder, TlsProvider};
use ureq::typestate::AgentScope;
use ureq::{Agent, Body};

use crate::link::Route;
use crate::proxy::Proxies;
use crate::state::{Identity, State, StateError};
use crate::{tls, version};

/// A whole exchange at most, over a slow link.
const TIMEOUT: Duration = Duration::from_secs(60);
/// For a connection: a port that a wall swallows holds the next one up for this long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers at most.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Why a device could not join, or renew.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The text is no invitation.
    #[error(transparent)]
    Invitation(#[from] InvitationError),
    /// The file of the invitation cannot be read.
    #[error("cannot read the join string from {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No answer.
    #[error("the controller at {server} cannot be reached: {why}")]
    Unreachable {
        /// `HOST:PORT`.
        server: String,
        /// Why.
        why: String,
    },
    /// Somebody else answers.
    #[error(
        "the controller at {server} is not the one that made this join string: none of its \
         authorities has the pinned certificate. Make another string; if this stays so, somebody \
         stands in between"
    )]
    Pin {
        /// `HOST:PORT`.
        server: String,
    },
    /// The controller says no.
    #[error("{0}")]
    Refused(String),
    /// What it says cannot be understood.
    #[error("the controller at {server} answers what this version does not understand: {why}")]
    Answer {
        /// `HOST:PORT`.
        server: String,
        /// What is wrong with it.
        why: String,
    },
    /// The device believes another controller.
    #[error(
        "this device belongs to another fleet (its controller's key is {0}): to make it anew, end \
         its agent and remove its data folder"
    )]
    Foreign(String),
    /// There is nothing to renew.
    #[error("this device has not joined a fleet")]
    NoMember,
    /// It cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Reads an invitation from a file.
///
/// # Errors
/// When the file cannot be read, or holds none.
pub fn invitation(path: &Path) -> Result<Invitation, JoinError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| JoinError::File { path: path.into(), source })?;
    Ok(Invitation::parse(&text, Purpose::Join)?)
}

/// Joins the fleet that invites, and keeps that. Blocks.
///
/// # Errors
/// When the controller cannot be reached, is another, or says no; or the identity cannot be kept.
pub fn join(
    state: &State,
    identity: &Identity,
    invitation: &Invitation,
    proxies: &Proxies,
) -> Result<Identity, JoinError> {
    let body = Join { token: invitation.token.clone(), controller: identity.controller };
    let request = sealed(identity, Kind::Join, &body);
    let membership = ask_any(&invitation.servers, |server| {
        let server = Server { address: server, proxies };
        let root = pinned(server, &invitation.pin)?;
        post(server, vec![root], "join", &request)
    })?;
    let member = member(identity, membership)?;
    state.store_identity(&member).map_err(StateError::from)?;
    Ok(member)
}

/// Asks for a new certificate where the old one is not accepted any more; it is not kept yet. Blocks.
///
/// # Errors
/// As [`join`].
pub fn renew(identity: &Identity, proxies: &Proxies) -> Result<Identity, JoinError> {
    let known = identity.membership.as_ref().ok_or(JoinError::NoMember)?;
    let request = sealed(identity, Kind::Renew, &Renew { controller: identity.controller });
    let roots = known.roots.iter().map(|root| Certificate::from_der(root).to_owned());
    let roots: Vec<_> = roots.collect();
    let membership = ask_any(&known.servers, |address| {
        post(Server { address, proxies }, roots.clone(), "renew", &request)
    })?;
    member(identity, membership)
}

/// The identity on these terms.
fn member(identity: &Identity, membership: Membership) -> Result<Identity, JoinError> {
    // Nobody but who signs desired state may change whose signature that is.
    if let Some(known) = identity.controller.filter(|known| *known != membership.controller) {
        return Err(JoinError::Foreign(known.fingerprint()));
    }
    let server = membership.servers.join(", ");
    let member = identity.with_membership(membership);
    // Not kept where it leads nowhere: the agent could not begin with it.
    Route::of(&member, Proxies::default())
        .map_err(|e| JoinError::Answer { server, why: e.to_string() })?;
    Ok(member)
}

fn sealed<T: Serialize>(identity: &Identity, kind: Kind, body: &T) -> Vec<u8> {
    let device: DeviceId = identity.device.clone();
    let header =
        Header { prefix: Prefix::default().to_string(), device, kind, epoch: 0, number: 0 };
    envelope::seal(&identity.key, &header, body)
}

/// Asks one server after the other, until one answers.
fn ask_any(
    servers: &[String],
    ask: impl Fn(&str) -> Result<Membership, JoinError>,
) -> Result<Membership, JoinError> {
    let mut last = Err(JoinError::NoMember);
    for server in servers {
        last = ask(server);
        if !matches!(last, Err(JoinError::Unreachable { .. })) {
            break;
        }
    }
    last
}

/// A controller that is asked, and what leads there.
#[derive(Clone, Copy)]
pub(crate) struct Server<'a> {
    /// `HOST:PORT`.
    pub(crate) address: &'a str,
    pub(crate) proxies: &'a Proxies,
}

/// The authority's certificate that has the pin.
fn pinned(server: Server<'_>, pin: &Digest) -> Result<Certificate<'static>, JoinError> {
    let anybody = TlsConfig::builder().disable_verification(true);
    let url = format!("https://{}/api/v1/authorities", server.address);
    let asked = server.http(anybody).get(url).call();
    let pem = read(server, asked)?;
    tls::certificates(&pem)
        .find(|certificate| Digest::of(certificate.der()) == *pin)
        .ok_or_else(|| JoinError::Pin { server: server.address.to_owned() })
}

fn post(
    server: Server<'_>,
    roots: Vec<Certificate<'static>>,
    what: &str,
    request: &[u8],
) -> Result<Membership, JoinError> {
    let fleet = TlsConfig::builder().root_certs(RootCerts::Specific(roots.into()));
    let asked = server
        .http(fleet)
        .post(format!("https://{}/api/v1/{what}", server.address))
        .content_type(MEDIA_TYPE)
        .send(request);
    let answer = read(server, asked)?;
    cbor::decode(&answer, answer.len())
        .map_err(|e| JoinError::Answer { server: server.address.to_owned(), why: e.to_string() })
}

impl Server<'_> {
    fn http(self, tls: TlsConfigBuilder) -> Agent {
        self.config("https", tls).timeout_global(Some(TIMEOUT)).build().new_agent()
    }

    /// How it is asked: who it must be, and by which way.
    pub(crate) fn config(self, scheme: &str, tls: TlsConfigBuilder) -> ConfigBuilder<AgentScope> {
        let tls = tls
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(tls::provider())
            .build();
        Agent::config_builder()
            .tls_config(tls)
            .proxy(self.proxies.for_request(scheme, self.address))
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .user_agent(version::user_agent())
    }

    /// Why it does not give what it was asked for.
    pub(crate) fn refusal(self, mut answer: Response<Body>) -> String {
        let status = answer.status();
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
        match body.ok().and_then(|body| serde_json::from_slice::<Refusal>(&body).ok()) {
            Some(refusal) => clip(&refusal.error),
            None => format!("the controller at {} answers {status}", self.address),
        }
    }
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

fn read(
    server: Server<'_>,
    answer: Result<Response<Body>, ureq::Error>,
) -> Result<Vec<u8>, JoinError> {
    let Server { address, proxies } = server;
    let unreachable = |error| JoinError::Unreachable {
        server: address.to_owned(),
        why: proxies.explain("https", address, &error),
    };
    let mut answer = answer.map_err(unreachable)?;
    let status = answer.status();
    let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
    let body = body.map_err(unreachable)?;
    if status == StatusCode::OK {
        return Ok(body);
    }
    match serde_json::from_slice::<Refusal>(&body) {
        // It may be better in a moment: the store failed, or too many ask.
        Ok(refusal) if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            Err(JoinError::Answer { server: address.to_owned(), why: clip(&refusal.error) })
        }
        Ok(refusal) => Err(JoinError::Refused(clip(&refusal.error))),
        Err(_) => Err(JoinError::Answer { server: address.to_owned(), why: status.to_string() }),
    }
}

/// What a stranger says is cut.
fn clip(text: &str) -> String {
    text.chars().take(512).collect()
}

#[cfg(test)]
mod tests {
    use limpet_protocol::SigningKey;

    use super::*;

    #[test]
    fn a_membership_that_leads_nowhere_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let identity = State::open(folder.path(), None).unwrap().identity;
        for brokers in [vec![], vec!["carrier-pigeon://roof".to_owned()]] {
            let membership = Membership {
                controller: SigningKey::from_seed(&[1; 32]).unwrap().public(),
                roots: vec![],
                certificates: vec![],
                brokers,
                servers: vec!["limpet.example:8420".to_owned()],
                broker_roots: vec![],
            };
            let why = member(&identity, membership).unwrap_err().to_string();
            assert!(why.starts_with("the controller at limpet.example:8420 answers"), "{why}");
        }
    }
}
