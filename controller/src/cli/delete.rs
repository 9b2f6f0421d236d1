//! `limpet delete`

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Args;
use limpet_protocol::DeploymentName;
use ureq::http::Method;

use super::client::Client;
use super::print;
use super::progress::{POLL_EVERY, Progress, Waiting};
use crate::view::WorkloadView;

/// Delete deployments and what runs of them
///
/// Example: limpet delete web
#[derive(Args)]
pub(super) struct Delete {
    /// The deployments
    #[arg(required = true)]
    name: Vec<DeploymentName>,
    #[command(flatten)]
    waiting: Waiting,
}

impl Delete {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        // One that cannot be deleted keeps none of the others.
        let mut done = Ok(());
        for name in &self.name {
            let deleted = self.delete(client, name);
            done = done.and(deleted);
        }
        done
    }

    fn delete(&self, client: &Client, name: &DeploymentName) -> anyhow::Result<()> {
        client.order(Method::DELETE, &format!("/api/v1/deployments/{name}"))?;
        if !self.waiting.detach {
            gone(client, name, self.waiting.timeout)?;
        }
        print(&format!("deployment/{name} deleted\n"))
    }
}

/// Waits until no connected device reports anything of it.
fn gone(client: &Client, name: &DeploymentName, timeout: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    let mut progress = Progress::new(name.as_str());
    loop {
        let left: Vec<WorkloadView> =
            client.get(&format!("/api/v1/workloads?deployment={name}"))?;
        let (online, offline): (Vec<_>, Vec<_>) = left.iter().partition(|w| w.online);
        if online.is_empty() {
            progress.end();
            if !offline.is_empty() {
                let count = offline.len();
                print(&format!(
                    "{count} workloads are on devices that are offline; they end when those connect\n"
                ))?;
            }
            return Ok(());
        }
        progress.say(&format!("ending {}", online.len()), None);
        if Instant::now() >= deadline {
            let names: Vec<String> =
                online.iter().map(|w| format!("{}/{} ({})", w.device, w.id, w.phase)).collect();
            bail!("not gone after {} s: {}", timeout.as_secs(), names.join(", "));
        }
        std::thread::sleep(POLL_EVERY);
    }
}
