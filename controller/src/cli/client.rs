//! The HTTP API, as verbs use it.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Response, StatusCode};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body, RequestBuilder};

use super::contexts::{self, Context as Chosen, Contexts};
use super::{Controller, Usage, pin};
use crate::view::{DeployResult, DeploymentView, ErrorView};

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

    fn with_token<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let response = self.with_token(self.agent.get(format!("{}{path}", self.server))).call();
        self.read(self.reached(response)?)
    }

    pub(super) fn text(&self, path: &str) -> anyhow::Result<String> {
        let response = self.with_token(self.agent.get(format!("{}{path}", self.server))).call();
        let mut response = self.reached(response)?;
        if response.status().is_success() {
            Ok(response.body_mut().read_to_string()?)
        } else {
            Err(self.error(response))
        }
    }

    /// A body that goes on for as long as the controller has something to say.
    pub(super) fn stream(&self, path: &str) -> anyhow::Result<impl std::io::Read + use<>> {
        let response = self.with_token(self.agent.get(format!("{}{path}", self.server))).call();
        let response = self.reached(response)?;
        if response.status().is_success() {
            Ok(response.into_body().into_reader())
        } else {
            Err(self.error(response))
        }
    }

    pub(super) fn delete(&self, path: &str) -> anyhow::Result<DeployResult> {
        self.remove(path)
    }

    /// DELETE whose answer is no deployment.
    pub(super) fn remove<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let response = self.with_token(self.agent.delete(format!("{}{path}", self.server))).call();
        self.read(self.reached(response)?)
    }

    /// PUT of a value.
    pub(super) fn set<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> anyhow::Result<T> {
        let response = self.with_token(self.agent.put(format!("{}{path}", self.server))).send(body);
        self.read(self.reached(response)?)
    }

    /// POST of a request whose answer is no deployment.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let response =
            self.with_token(self.agent.post(format!("{}{path}", self.server))).send_json(body);
        self.read(self.reached(response)?)
    }

    /// POST of an order that is done, or not.
    pub(super) fn order(&self, path: &str) -> anyhow::Result<()> {
        let request = self.with_token(self.agent.post(format!("{}{path}", self.server)));
        self.done(request.send_empty())
    }

    /// DELETE of something whose answer is empty.
    pub(super) fn forget(&self, path: &str) -> anyhow::Result<()> {
        self.done(self.with_token(self.agent.delete(format!("{}{path}", self.server))).call())
    }

    fn done(&self, answer: Result<Response<Body>, ureq::Error>) -> anyhow::Result<()> {
        let response = self.reached(answer)?;
        if response.status().is_success() { Ok(()) } else { Err(self.error(response)) }
    }

    pub(super) fn post<T: Serialize>(&self, path: &str, body: &T) -> anyhow::Result<DeployResult> {
        let response =
            self.with_token(self.agent.post(format!("{}{path}", self.server))).send_json(body);
        self.deploy_result(self.reached(response)?)
    }

    /// PUT of a document; one that is refused, for what it says or for what it would do, is an answer.
    pub(super) fn put<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> anyhow::Result<T> {
        let request = self.with_token(self.agent.put(format!("{}{path}", self.server)));
        let response = request.send(body);
        let mut response = self.reached(response)?;
        match response.status() {
            StatusCode::UNPROCESSABLE_ENTITY | StatusCode::CONFLICT => {
                let text = response.body_mut().read_to_string()?;
                serde_json::from_str(&text).map_err(|_| anyhow!("{text}"))
            }
            _ => self.read(response),
        }
    }

    /// Applies a manifest; a refused one is an answer, not an error.
    pub(super) fn apply(&self, manifest: &[u8]) -> anyhow::Result<DeployResult> {
        let request = self.agent.post(format!("{}/api/v1/deployments", self.server));
        let response = self.with_token(request).send(manifest);
        self.deploy_result(self.reached(response)?)
    }

    fn deploy_result(&self, mut response: Response<Body>) -> anyhow::Result<DeployResult> {
        if response.status() != StatusCode::UNPROCESSABLE_ENTITY {
            return self.read(response);
        }
        let text = response.body_mut().read_to_string()?;
        serde_json::from_str(&text).map_err(|_| anyhow!("{text}"))
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

    fn read<T: DeserializeOwned>(&self, mut response: Response<Body>) -> anyhow::Result<T> {
        if !response.status().is_success() {
            return Err(self.error(response));
        }
        let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        body.read_json().with_context(|| format!("{} is no Limpet controller", self.server))
    }

    fn error(&self, mut response: Response<Body>) -> anyhow::Error {
        let status = response.status();
        let text = response.body_mut().read_to_string().unwrap_or_default();
        match serde_json::from_str::<ErrorView>(&text) {
            Ok(answer) => anyhow!(answer.error),
            Err(_) => anyhow!("{} answered {status}: {text:.200}", self.server),
        }
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
