//! The HTTP API, as verbs use it.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Method, Request, Response, StatusCode};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};

use super::contexts::{self, Context as Chosen, Contexts};
use super::{Controller, Usage, pin};
use crate::view::{DeployResult, DeploymentView, ErrorView, ScaleRequest};

/// Answers at most: a large fleet's devices.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Where a controller on this machine is that asks for no token.
const HERE: &str = "http://127.0.0.1:8420";

/// A controller to speak to.
pub(super) struct Client {
    server: String,
    agent: Agent,
    /// Sent over TLS only.
    token: Option<String>,
}

impl Client {
    /// The controller that the command line, or the user's contexts, speak of.
    pub(super) fn find(controller: &Controller) -> anyhow::Result<Self> {
        let Controller { server, context, token } = controller;
        match (server, context) {
            (Some(_), Some(_)) => Err(Usage("say --server or --context, not both").into()),
            (Some(server), None) => Self::plain(server),
            (None, name) => {
                let contexts = match contexts::path() {
                    Ok(path) => Contexts::load(&path)?,
                    Err(why) if name.is_some() => return Err(why.into()),
                    Err(_) => Contexts::default(),
                };
                let Some((_, chosen)) = contexts.chosen(name.as_deref())? else {
                    return Self::plain(HERE);
                };
                match token {
                    Some(token) => Self::of(&Chosen { token: token.clone(), ..chosen.clone() }),
                    None => Self::of(chosen),
                }
            }
        }
    }

    /// A controller that somebody has logged in to.
    pub(super) fn of(context: &Chosen) -> anyhow::Result<Self> {
        let agent = agent(Some(pin::tls(&context.roots)?));
        let server = format!("https://{}", context.server);
        Ok(Self { server, agent, token: Some(context.token.clone()) })
    }

    /// One that asks for no token, and has no certificate.
    fn plain(server: &str) -> anyhow::Result<Self> {
        let server = match server.split_once("://") {
            Some(("http", _)) => server.to_owned(),
            Some(_) => {
                let why = "--server and LIMPET_SERVER are for controllers that are --insecure \
                           (http://...): for others, `limpet login`";
                return Err(Usage(why).into());
            }
            None => format!("http://{server}"),
        };
        let server = server.trim_end_matches('/').to_owned();
        Ok(Self { server, agent: agent(None), token: None })
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.json(self.good(Method::GET, path, None)?)
    }

    pub(super) fn text(&self, path: &str) -> anyhow::Result<String> {
        Ok(self.good(Method::GET, path, None)?.body_mut().read_to_string()?)
    }

    /// A body that goes on for as long as the controller has something to say.
    pub(super) fn stream(&self, path: &str) -> anyhow::Result<impl std::io::Read + use<>> {
        Ok(self.good(Method::GET, path, None)?.into_body().into_reader())
    }

    /// DELETE whose answer says what was deleted.
    pub(super) fn remove<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        self.json(self.good(Method::DELETE, path, None)?)
    }

    /// PUT of a value.
    pub(super) fn set<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> anyhow::Result<T> {
        self.json(self.good(Method::PUT, path, Some(Content::Bytes(body)))?)
    }

    /// PUT of a value that is taken, or not.
    pub(super) fn send_to(&self, path: &str, body: &[u8]) -> anyhow::Result<()> {
        self.good(Method::PUT, path, Some(Content::Bytes(body))).map(drop)
    }

    /// POST of a request.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        self.json(self.good(Method::POST, path, Some(Content::json(body)?))?)
    }

    /// POST or DELETE that is done, or not.
    pub(super) fn order(&self, method: Method, path: &str) -> anyhow::Result<()> {
        self.good(method, path, None).map(drop)
    }

    /// POST of a request that is done, or not.
    pub(super) fn order_with(&self, path: &str, body: &impl Serialize) -> anyhow::Result<()> {
        self.good(Method::POST, path, Some(Content::json(body)?)).map(drop)
    }

    /// Asks for another number of replicas; that it cannot be is an answer, not an error.
    pub(super) fn scale(&self, path: &str, body: &ScaleRequest) -> anyhow::Result<DeployResult> {
        self.verdict(Method::POST, path, Content::json(body)?)
    }

    /// PUT of a document; one that is refused, for what it says or for what it would do, is an answer.
    pub(super) fn put<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> anyhow::Result<T> {
        self.verdict(Method::PUT, path, Content::Bytes(body))
    }

    /// Applies a manifest; a refused one is an answer, not an error.
    pub(super) fn apply(&self, manifest: &[u8]) -> anyhow::Result<DeployResult> {
        self.verdict(Method::POST, "/api/v1/deployments", Content::Bytes(manifest))
    }

    /// An answer that may say what is wrong with the content.
    fn verdict<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        content: Content<'_>,
    ) -> anyhow::Result<T> {
        let mut response = self.send(method, path, Some(content))?;
        let status = response.status();
        if !matches!(status, StatusCode::UNPROCESSABLE_ENTITY | StatusCode::CONFLICT) {
            return self.json(self.checked(response)?);
        }
        let text = response.body_mut().read_to_string()?;
        serde_json::from_str(&text).map_err(|_| self.error(status, &text))
    }

    /// An answer that is no error.
    fn good(
        &self,
        method: Method,
        path: &str,
        content: Option<Content<'_>>,
    ) -> anyhow::Result<Response<Body>> {
        self.checked(self.send(method, path, content)?)
    }

    /// Sends a request; gives whatever is answered.
    fn send(
        &self,
        method: Method,
        path: &str,
        content: Option<Content<'_>>,
    ) -> anyhow::Result<Response<Body>> {
        let mut request = Request::builder().method(method).uri(format!("{}{path}", self.server));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let answer = match content {
            None => self.agent.run(request.body(())?),
            Some(Content::Bytes(bytes)) => self.agent.run(request.body(bytes)?),
            Some(Content::Json(text)) => {
                let request = request.header("content-type", "application/json");
                self.agent.run(request.body(text)?)
            }
        };
        self.reached(answer)
    }

    fn checked(&self, mut response: Response<Body>) -> anyhow::Result<Response<Body>> {
        match response.status() {
            status if status.is_success() => Ok(response),
            status => {
                let text = response.body_mut().read_to_string().unwrap_or_default();
                Err(self.error(status, &text))
            }
        }
    }

    /// One deployment; None where there is none.
    pub(super) fn deployment(&self, name: &str) -> anyhow::Result<Option<DeploymentView>> {
        let all: Vec<DeploymentView> = self.get("/api/v1/deployments")?;
        Ok(all.into_iter().find(|deployment| deployment.name == name))
    }

    fn reached(
        &self,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> anyhow::Result<Response<Body>> {
        match answer {
            Ok(response) => Ok(response),
            Err(ureq::Error::Io(_) | ureq::Error::ConnectionFailed | ureq::Error::HostNotFound) => {
                match self.token {
                    None => bail!(
                        "no controller answers at {}; start one with `limpet up --insecure`, say \
                         another with --server or LIMPET_SERVER, or `limpet login`",
                        self.server
                    ),
                    Some(_) => bail!(
                        "no controller answers at {}: is it up, and reached from here? `limpet \
                         context list` shows others",
                        self.server
                    ),
                }
            }
            Err(error @ (ureq::Error::Rustls(_) | ureq::Error::Tls(_))) => bail!(
                "{} does not prove that it is the controller that you have logged in to: {error}. \
                 Where its authority was replaced, `limpet login` again; if this stays so, somebody \
                 stands in between",
                self.server
            ),
            Err(error) => Err(anyhow!(error).context(self.server.clone())),
        }
    }

    fn json<T: DeserializeOwned>(&self, mut response: Response<Body>) -> anyhow::Result<T> {
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        body.read_json().with_context(|| format!("{} is no Limpet controller", self.server))
    }

    fn error(&self, status: StatusCode, text: &str) -> anyhow::Error {
        match serde_json::from_str::<ErrorView>(text) {
            Ok(answer) => anyhow!(answer.error),
            Err(_) => anyhow!("{} answered {status}: {text:.200}", self.server),
        }
    }
}

/// What a request carries.
enum Content<'a> {
    Bytes(&'a [u8]),
    Json(String),
}

impl Content<'_> {
    fn json(body: &impl Serialize) -> serde_json::Result<Self> {
        Ok(Self::Json(serde_json::to_string(body)?))
    }
}

/// What requests are sent with; over TLS, what the other side must prove.
pub(super) fn agent(tls: Option<TlsConfig>) -> Agent {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        // The controller is on this machine, or named as it is reached.
        .proxy(None)
        .timeout_connect(Some(Duration::from_secs(10)));
    match tls {
        Some(tls) => config.https_only(true).tls_config(tls).build().new_agent(),
        None => config.build().new_agent(),
    }
}

/// The body of an answer that must be good.
pub(super) fn read_bytes(
    mut answer: Response<Body>,
    bytes_max: u64,
) -> Result<Vec<u8>, ureq::Error> {
    match answer.status() {
        StatusCode::OK => answer.body_mut().with_config().limit(bytes_max).read_to_vec(),
        status => Err(ureq::Error::StatusCode(status.as_u16())),
    }
}
