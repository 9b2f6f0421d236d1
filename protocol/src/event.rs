//! Events: what happened on a device, in order, each delivered to the operator's view once.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::hello::BootId;
use crate::id::{OutboxId, WorkloadId};
use crate::reported::Exit;

/// Events in one batch at most.
pub const BATCH_EVENTS_MAX: usize = 64;

/// Events of one outbox, in order, without holes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventBatch {
    /// The outbox that numbers them.
    #[serde(rename = "o")]
    pub outbox: OutboxId,
    /// The boot in which this batch was sent, and its clock then: a sync point for `at_ms`.
    #[serde(rename = "b")]
    pub boot: BootId,
    /// Milliseconds since that boot.
    #[serde(rename = "t")]
    pub sent_ms: u64,
    /// The number of the oldest event that the outbox still has: what the receiver misses below it
    /// is lost.
    #[serde(rename = "f")]
    pub oldest: u64,
    /// At most [`BATCH_EVENTS_MAX`].
    #[serde(rename = "e")]
    pub events: Vec<Event>,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up by one within its outbox, from 1.
    #[serde(rename = "n")]
    pub number: u64,
    /// The boot in which it happened.
    #[serde(rename = "b")]
    pub boot: BootId,
    /// Milliseconds since that boot.
    #[serde(rename = "t")]
    pub at_ms: u64,
    /// What happened.
    #[serde(rename = "k")]
    pub kind: EventKind,
    /// The workload it happened to.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<WorkloadId>,
    /// The number of the container it happened to.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub container: Option<u32>,
    /// How that container ended.
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// For a person.
    #[serde(rename = "m", default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Kinds of events that a device reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The agent began.
    AgentStarted,
    /// A pull began.
    Pulling,
    /// An image is complete.
    Pulled,
    /// A pull ended without its image.
    PullFailed,
    /// A container's main process runs.
    Started,
    /// A container could not be made.
    StartFailed,
    /// A container's main process ended.
    Exited,
    /// A workload waits before it is tried again.
    Backoff,
    /// A container was asked to end.
    Stopping,
    /// A workload and its container are gone.
    Removed,
    /// A container that was found running is followed again.
    Adopted,
    /// A document was refused.
    Refused,
    /// Something in the data folder was damaged or missing.
    DataLost,
    /// A person on site stopped a workload.
    StoppedOnSite,
    /// A person on site started a workload.
    StartedOnSite,
    /// A person on site had a workload restarted.
    RestartedOnSite,
    /// Another program of the agent is being fetched.
    Upgrading,
    /// The agent that runs has proved itself.
    Upgraded,
    /// The agent goes on as it was.
    UpgradeFailed,
    /// Sent by a later version.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AgentStarted => "agent-started",
            Self::Pulling => "pulling",
            Self::Pulled => "pulled",
            Self::PullFailed => "pull-failed",
            Self::Started => "started",
            Self::StartFailed => "start-failed",
            Self::Exited => "exited",
            Self::Backoff => "backoff",
            Self::Stopping => "stopping",
            Self::Removed => "removed",
            Self::Adopted => "adopted",
            Self::Refused => "refused",
            Self::DataLost => "data-lost",
            Self::StoppedOnSite => "stopped-on-site",
            Self::StartedOnSite => "started-on-site",
            Self::RestartedOnSite => "restarted-on-site",
            Self::Upgrading => "upgrading",
            Self::Upgraded => "upgraded",
            Self::UpgradeFailed => "upgrade-failed",
            Self::Unknown => "unknown",
        })
    }
}
