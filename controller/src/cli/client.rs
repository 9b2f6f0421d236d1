//! The HTTP API, as verbs use it.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body};

use crate::view::{DeployResult, DeploymentView, ErrorView};

/// Answers at most: a large fleet's devices.
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// A controller to speak to.
pub(super) struct Client {
    server: String,
    agent: Agent,
}

impl Client {
    pub(super) fn new(server: &str) -> Self {
        let server = match server.contains("://") {
            true => server.to_owned(),
            false => format!("http://{server}"),
        };
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            // The controller is on this machine, or named as it is reached.
            .proxy(None)
            .timeout_connect(Some(Duration::from_secs(10)))
            .build()
            .new_agent();
        Self { server: server.trim_end_matches('/').to_owned(), agent }
    }

    pub(super) fn server(&self) -> &str {
        &self.server
    }

    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let response = self.agent.get(format!("{}{path}", self.server)).call();
        self.read(self.reached(response)?)
    }

    pub(super) fn text(&self, path: &str) -> anyhow::Result<String> {
        let response = self.agent.get(format!("{}{path}", self.server)).call();
        let mut response = self.reached(response)?;
        if response.status().is_success() {
            Ok(response.body_mut().read_to_string()?)
        } else {
            Err(self.error(response))
        }
    }

    /// A body that goes on for as long as the controller has something to say.
    pub(super) fn stream(&self, path: &str) -> anyhow::Result<impl std::io::Read + use<>> {
        let response = self.agent.get(format!("{}{path}", self.server)).call();
        let response = self.reached(response)?;
        if response.status().is_success() {
            Ok(response.into_body().into_reader())
        } else {
            Err(self.error(response))
        }
    }

    pub(super) fn delete(&self, path: &str) -> anyhow::Result<DeployResult> {
        let response = self.agent.delete(format!("{}{path}", self.server)).call();
        self.read(self.reached(response)?)
    }

    /// POST of a request whose answer is no deployment.
    pub(super) fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let response = self.agent.post(format!("{}{path}", self.server)).send_json(body);
        self.read(self.reached(response)?)
    }

    pub(super) fn post<T: Serialize>(&self, path: &str, body: &T) -> anyhow::Result<DeployResult> {
        let response = self.agent.post(format!("{}{path}", self.server)).send_json(body);
        self.deploy_result(self.reached(response)?)
    }

    /// PUT of a document; one that is refused, for what it says or for what it would do, is an answer.
    pub(super) fn put<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> anyhow::Result<T> {
        let response = self.agent.put(format!("{}{path}", self.server)).send(body);
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
        let response =
            self.agent.post(format!("{}/api/v1/deployments", self.server)).send(manifest);
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
                bail!(
                    "no controller answers at {}; start one with `limpet up --insecure`, or say \
                     another with --server or LIMPET_SERVER",
                    self.server
                )
            }
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
