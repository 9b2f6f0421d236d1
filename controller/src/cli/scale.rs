//! `limpet scale`

use clap::Args;
use limpet_protocol::DeploymentName;

use super::apply;
use super::client::Client;
use super::progress::{self, Waiting};
use crate::view::ScaleRequest;

/// Change how many workloads a deployment has
///
/// Example: limpet scale web --replicas=3
#[derive(Args)]
pub(super) struct Scale {
    /// The deployment
    name: DeploymentName,
    /// How many workloads
    #[arg(long, value_name = "N")]
    replicas: u32,
    #[command(flatten)]
    waiting: Waiting,
}

impl Scale {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        let path = format!("/api/v1/deployments/{}/scale", self.name);
        let result = client.scale(&path, &ScaleRequest { replicas: self.replicas })?;
        apply::accepted(&result, "limpet scale")?;
        progress::settle(client, &result, &self.waiting)
    }
}
