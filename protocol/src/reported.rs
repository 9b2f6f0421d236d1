//! Reported state: what a device says is true.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::desired::Held;
use crate::id::{DeploymentName, Digest, OutboxId, WorkloadId};
use crate::upgrade::UpgradeStatus;

/// The longest message in a workload's status, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 512;

/// The longest encoded report, in bytes: every workload of a full desired state fits.
pub const REPORTED_BYTES_MAX: usize = 200 * 1024;

/// Changed workloads as whole records. Applying them to what the receiver has must give `whole`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// The outbox that counts `sequence`.
    #[serde(rename = "o")]
    pub outbox: OutboxId,
    /// Counts up with every change of any status of this outbox: an older report is outdated.
    #[serde(rename = "n")]
    pub sequence: u64,
    /// The desired state that the device has taken over.
    #[serde(rename = "h")]
    pub applied: Held,
    /// True where `records` is everything: what is not in it is gone.
    #[serde(rename = "c")]
    pub complete: bool,
    /// The changes.
    #[serde(rename = "r")]
    pub records: Vec<Record>,
    /// [`digest`] of all the device's statuses.
    #[serde(rename = "d")]
    pub whole: Digest,
    /// How far it has come with the latest order to run another program; absent before the first.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<UpgradeStatus>,
}

/// One workload's latest status, or its absence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The workload.
    #[serde(rename = "w")]
    pub workload: WorkloadId,
    /// None where the device no longer has the workload.
    #[serde(rename = "s")]
    pub status: Option<WorkloadStatus>,
}

/// What a device says of one workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadStatus {
    /// The deployment it belongs to.
    #[serde(rename = "d")]
    pub deployment: DeploymentName,
    /// The revision that the container was made from.
    #[serde(rename = "v")]
    pub revision: Digest,
    /// Where it is in its life.
    #[serde(rename = "p")]
    pub phase: Phase,
    /// Number of the latest container; 0 before the first.
    #[serde(rename = "c")]
    pub container: u32,
    /// Its main process, on the device.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Containers that replaced one which had ended.
    #[serde(rename = "r")]
    pub restarts: u32,
    /// How the latest container that ended did so.
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// Why it is in this phase, for a person; at most [`MESSAGE_BYTES_MAX`] bytes.
    #[serde(rename = "m", default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Where a workload is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Phase {
    /// Accepted, nothing done yet.
    #[serde(rename = "pe")]
    Pending,
    /// Its image is on its way.
    #[serde(rename = "pu")]
    Pulling,
    /// A container is being made.
    #[serde(rename = "st")]
    Starting,
    /// Its main process runs.
    #[serde(rename = "ru")]
    Running,
    /// Asked to end.
    #[serde(rename = "so")]
    Stopping,
    /// Waits before it is tried again.
    #[serde(rename = "ba")]
    Backoff,
    /// Ended as its restart policy allows, with status 0.
    #[serde(rename = "ex")]
    Exited,
    /// Ended, or cannot be run, and will not be tried again.
    #[serde(rename = "fa")]
    Failed,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pending => "pending",
            Self::Pulling => "pulling",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Backoff => "backoff",
            Self::Exited => "exited",
            Self::Failed => "failed",
        })
    }
}

/// How a main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// By itself, with this status.
    #[serde(rename = "c")]
    Code(u8),
    /// By this signal.
    #[serde(rename = "s")]
    Signal(u8),
    /// Nobody was there to see: its shim had died, or the machine lost power.
    #[serde(rename = "u")]
    Unknown,
}

impl Exit {
    /// Ended by itself with status 0.
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exited with {code}"),
            Self::Signal(number) => match crate::spec::Signal::try_from(number) {
                Ok(signal) => write!(f, "killed by {signal}"),
                Err(_) => write!(f, "killed by signal {number}"),
            },
            Self::Unknown => f.write_str("ended unseen"),
        }
    }
}

/// The digest that device and controller compare, over statuses in the order of their ids.
pub fn digest<'a>(
    statuses: impl IntoIterator<Item = (&'a WorkloadId, &'a WorkloadStatus)>,
) -> Digest {
    let ordered: std::collections::BTreeMap<_, _> = statuses.into_iter().collect();
    Digest::of(&crate::cbor::encode(&ordered))
}
