//! `limpet recover`

use std::time::Instant;

use anyhow::bail;
use clap::Args;
use limpet_protocol::DeviceId;

use super::client::Client;
use super::print;
use super::progress::{POLL_EVERY, Progress, Waiting};
use super::table::{known_age, table};
use crate::view::{HoldView, RecoverChoice, RecoverRequest, RecoverResult};

/// Say what holds on devices that know more than the controller
///
/// After a restore from a backup, devices that were told more since it was made are on hold: they go
/// on as they are, and are told nothing. Without --adopt or --override, lists them and what either
/// would do.
///
/// --adopt takes over what they hold, and changes nothing on them: templates are those of the latest
/// document, workloads are where devices have them, and deployments that the store lacks come back.
/// What no device can know (labels, and how many where that was never placed) is as in the store; a
/// deployment whose manifest would place it elsewhere stays where it is until it is applied again.
///
/// --override makes them run what the store says.
///
/// Examples:
///   limpet recover
///   limpet recover --adopt
///   limpet recover --override kiosk-7
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Recover {
    /// Take over what the devices hold
    #[arg(long, conflicts_with = "overrule")]
    adopt: bool,
    /// Make the devices run what the store says
    #[arg(long = "override")]
    overrule: bool,
    /// Only these devices [all that are on hold]
    device: Vec<DeviceId>,
    #[command(flatten)]
    waiting: Waiting,
}

impl Recover {
    pub(super) fn run(self, client: &Client) -> anyhow::Result<()> {
        let choice = match (self.adopt, self.overrule) {
            (false, false) => return self.list(client),
            (true, _) => RecoverChoice::Adopt,
            (false, true) => RecoverChoice::Override,
        };
        let devices: Vec<String> = self.device.iter().map(ToString::to_string).collect();
        let request = RecoverRequest { choice, devices };
        let result: RecoverResult = client.ask("/api/v1/recover", &request)?;
        if !self.waiting.detach {
            self.settle(client, &result)?;
        }
        let done = match choice {
            RecoverChoice::Adopt => "adopted",
            RecoverChoice::Override => "overridden",
        };
        let mut text: String =
            result.devices.iter().map(|id| format!("device/{id} {done}\n")).collect();
        if result.devices.is_empty() && result.away.is_empty() {
            text += NOBODY;
        }
        if !result.away.is_empty() {
            text += &format!(
                "not connected, and still on hold: {}; repeat this when they are back\n",
                result.away.join(", ")
            );
        }
        print(&text)
    }

    /// Waits until the devices have answered.
    fn settle(&self, client: &Client, result: &RecoverResult) -> anyhow::Result<()> {
        let deadline = Instant::now() + self.waiting.timeout;
        let mut progress = Progress::new("recover");
        loop {
            let held: Vec<HoldView> = client.get("/api/v1/recover")?;
            let left: Vec<&HoldView> =
                held.iter().filter(|hold| result.devices.contains(&hold.device)).collect();
            let failed = left.iter().find_map(|hold| Some((&hold.device, hold.problem.as_ref()?)));
            if let Some((device, why)) = failed {
                progress.end();
                bail!("device {device} stays on hold: {why}");
            }
            if left.is_empty() {
                progress.end();
                return Ok(());
            }
            progress.say(&format!("waiting for {} devices", left.len()), None);
            if Instant::now() >= deadline {
                progress.end();
                let ids: Vec<&str> = left.iter().map(|hold| hold.device.as_str()).collect();
                bail!("no answer from {}: still on hold", ids.join(", "));
            }
            std::thread::sleep(POLL_EVERY);
        }
    }

    fn list(&self, client: &Client) -> anyhow::Result<()> {
        let mut held: Vec<HoldView> = client.get("/api/v1/recover")?;
        let named = |hold: &HoldView| self.device.iter().any(|id| id.as_str() == hold.device);
        held.retain(|hold| self.device.is_empty() || named(hold));
        if held.is_empty() {
            let nobody = if self.device.is_empty() { NOBODY } else { "not on hold\n" };
            return print(nobody);
        }
        let cells: Vec<Vec<String>> = held.iter().map(row).collect();
        let what: String = held.iter().map(effects).collect();
        print(&format!("{}\n{what}", table(HEADS, &cells)))
    }
}

const NOBODY: &str = "no device is on hold\n";
const HEADS: &[&str] = &["DEVICE", "PRESENCE", "LAST SEEN", "HOLDS", "TOLD", "PROBLEM"];

fn row(hold: &HoldView) -> Vec<String> {
    vec![
        hold.device.clone(),
        hold.presence.clone(),
        known_age(hold.heard_age_s),
        hold.holds.clone(),
        hold.told.clone(),
        hold.problem.clone().unwrap_or_default(),
    ]
}

/// What either choice would do, as far as the device has reported.
fn effects(hold: &HoldView) -> String {
    let say = |parts: [(&str, &Vec<String>); 3]| {
        let parts: Vec<String> = parts
            .iter()
            .filter(|(_, ids)| !ids.is_empty())
            .map(|(verb, ids)| format!("{verb} {}", ids.join(", ")))
            .collect();
        if parts.is_empty() { "changes no workload".to_owned() } else { parts.join("; ") }
    };
    let HoldView { device, only_device, only_store, differ, .. } = hold;
    let adopt = say([
        ("takes over", only_device),
        ("takes over another revision of", differ),
        ("forgets", only_store),
    ]);
    let overrule = say([("ends", only_device), ("replaces", differ), ("starts", only_store)]);
    format!(
        "limpet recover --adopt {device}: the controller {adopt}\n\
         limpet recover --override {device}: the device {overrule}\n"
    )
}
