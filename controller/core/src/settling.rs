//! When a change has settled, and why it cannot.

use limpet_protocol::{Digest, Exit, Phase, WorkloadStatus};

use crate::deployment::Deployment;
use crate::placement::Placement;
use crate::presence::Presence;

/// A container counts as running once it has done so for this long, in milliseconds.
pub const STEADY_MS: u64 = 1000;

/// A workload that was restarted this often without becoming steady is stuck.
pub const RESTARTS_STUCK: u32 = 3;

/// One placed workload as the controller sees it.
#[derive(Debug, Clone)]
pub struct Seen<'a> {
    /// `DEVICE/WORKLOAD`.
    pub name: String,
    /// Whether its device is there.
    pub presence: Presence,
    /// What the device last said.
    pub status: Option<&'a WorkloadStatus>,
    /// How long ago the status last changed, in milliseconds.
    pub age_ms: u64,
}

/// Where a deployment stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settling {
    /// Every workload on a connected device is as asked for.
    Settled,
    /// On its way.
    Progressing,
    /// It will not get there without an operator.
    Stuck(String),
}

/// Judges a deployment by its placed workloads, and by `leaving`, those that connected devices
/// still report and that are placed no more. Workloads on devices that are offline or asleep
/// are deferred, not waited for, as long as another is online.
pub fn settle(
    deployment: &Deployment,
    revision: Digest,
    placement: &Placement,
    seen: &[Seen<'_>],
    leaving: usize,
) -> Settling {
    if placement.unplaced > 0 || (placement.slots.is_empty() && wants_any(deployment)) {
        return Settling::Stuck(nowhere(placement));
    }
    let mut settled = leaving == 0;
    for workload in seen {
        match workload.presence {
            Presence::Asleep { .. } | Presence::Offline { .. } | Presence::Lost { .. } => {}
            Presence::Unknown { .. } => settled = false,
            Presence::Online { .. } => match judge(revision, workload) {
                Settling::Settled => {}
                Settling::Progressing => settled = false,
                stuck @ Settling::Stuck(_) => return stuck,
            },
        }
    }
    // Neither connected nor about to be.
    let away = |workload: &Seen<'_>| workload.presence.rank() > 0;
    if !seen.is_empty() && seen.iter().all(away) {
        let names: Vec<&str> = seen.iter().take(5).map(|seen| seen.name.as_str()).collect();
        return Settling::Stuck(format!(
            "every device chosen is offline ({}); it runs when they connect",
            names.join(", ")
        ));
    }
    if settled { Settling::Settled } else { Settling::Progressing }
}

fn wants_any(deployment: &Deployment) -> bool {
    deployment.count != crate::deployment::Count::Replicas(0)
}

fn nowhere(placement: &Placement) -> String {
    let reasons: Vec<String> =
        placement.refusals.iter().take(5).map(|(device, why)| format!("{device}: {why}")).collect();
    let count = placement.refusals.len();
    match (count, count.saturating_sub(reasons.len())) {
        (0, _) => "no device has joined".to_owned(),
        (_, 0) => format!("no device matches ({})", reasons.join("; ")),
        (_, more) => format!("no device matches ({}; and {more} more)", reasons.join("; ")),
    }
}

fn judge(revision: Digest, workload: &Seen<'_>) -> Settling {
    let stuck = |why: &str| Settling::Stuck(format!("{}: {why}", workload.name));
    let status = match workload.status {
        Some(status) if status.revision == revision => status,
        // The revision before goes on, and its device says why it must.
        Some(status) if !status.message.is_empty() => return stuck(&status.message),
        Some(_) | None => return Settling::Progressing,
    };
    match status.phase {
        Phase::Running if workload.age_ms >= STEADY_MS => Settling::Settled,
        Phase::Exited => Settling::Settled,
        Phase::Failed => stuck(&status.message),
        Phase::Backoff => match status.exit {
            None => stuck(&status.message),
            // What is waited for since that end is another thing: its image, say.
            Some(exit) if !status.message.is_empty() && status.message != exit.to_string() => {
                stuck(&status.message)
            }
            Some(exit) if status.restarts >= RESTARTS_STUCK => {
                stuck(&format!("{exit} again and again ({} restarts)", status.restarts))
            }
            Some(Exit::Code(_) | Exit::Signal(_) | Exit::Unknown) => Settling::Progressing,
        },
        Phase::Pending | Phase::Pulling | Phase::Starting | Phase::Running | Phase::Stopping => {
            Settling::Progressing
        }
    }
}
