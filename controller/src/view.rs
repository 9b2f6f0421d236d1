//! What the HTTP API says, as the server writes it and the command line reads it.
//!
//! The fields are the contract of `/api/v1`; OpenAPI is derived from them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod trust;
mod upgrade;

pub use trust::{
    AuditView, AuthorityView, PublisherMade, PublisherRequest, RotateAuthority, RotationView,
    SigningKeyView, TokenMade, TokenRequest, TokenView, WhoView,
};

pub use upgrade::{AgentView, UpgradeRequest, UpgradeResult, UpgradeView};

/// A device.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct DeviceView {
    /// Its id.
    pub id: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it joined the fleet (RFC 3339, UTC); null where devices need not.
    pub joined_at: Option<String>,
    /// Architecture as OCI names it, with its variant: `amd64`, `arm/v7`.
    pub arch: String,
    /// `online`, `asleep` (it announced that), `offline`, `lost` (offline for too long), or `unknown`
    /// shortly after the controller began; `joined` before its first hello, `waiting` where it waits
    /// for `limpet device approve`, `revoked` where it is not let in any more.
    pub presence: String,
    /// Seconds since it is so; where it has not said hello yet, since it joined.
    pub presence_age_s: u64,
    /// When it means to be back, by the controller's clock (RFC 3339, UTC).
    pub asleep_until: Option<String>,
    /// Seconds since the device was last heard; null where it was not since the controller began.
    pub heard_age_s: Option<u64>,
    /// The longest time between two signs of life of it, in seconds: gone after one and a half.
    pub keep_alive_s: u16,
    /// Why nothing is published to it, where it holds more than the controller knows of.
    pub on_hold: Option<String>,
    /// Version of its agent.
    pub agent_version: String,
    /// How far it is with the latest order to run another version of its agent; null before the first.
    pub upgrade: Option<UpgradeView>,
    /// Release of its kernel.
    pub kernel: String,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// Processors.
    pub cpus: u16,
    /// What its agent can enforce.
    pub features: Vec<String>,
    /// Epoch of its desired state.
    pub epoch: u64,
    /// Generation of its desired state.
    pub generation: u64,
    /// The generation that the device says it has applied.
    pub applied_generation: u64,
    /// Workloads placed on it.
    pub workloads: usize,
}

impl DeviceView {
    /// Whether it has ever said what it is.
    pub(crate) fn has_said_hello(&self) -> bool {
        !self.agent_version.is_empty()
    }
}

/// A deployment.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeploymentView {
    /// Its name.
    pub name: String,
    /// Its revision: the first 12 hexadecimal digits of the template's digest.
    pub revision: String,
    /// The image it runs.
    pub image: String,
    /// How many were asked for; null where it runs everywhere.
    pub replicas: Option<u32>,
    /// One on every matching device.
    pub everywhere: bool,
    /// Labels that a device must carry.
    pub select: BTreeMap<String, String>,
    /// Workloads that should run.
    pub desired: u32,
    /// Workloads that run this revision, on devices that are online.
    pub running: u32,
    /// Workloads that ran this revision when their device, not online, was last heard.
    pub running_unheard: u32,
    /// `settled`, `progressing` or `stuck`.
    pub status: String,
    /// Why it is stuck.
    pub reason: Option<String>,
    /// Why devices are unfit, by device.
    pub refusals: BTreeMap<String, String>,
    /// Seconds since it was last changed.
    pub age_s: u64,
}

/// A workload.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WorkloadView {
    /// Its id, unique on its device.
    pub id: String,
    /// The deployment it belongs to.
    pub deployment: String,
    /// The revision that its device reports.
    pub revision: String,
    /// Its device.
    pub device: String,
    /// Its phase as last reported; `pending` before the first report.
    pub phase: String,
    /// Whether its device is connected. If not, all this was so `heard_age_s` ago.
    pub online: bool,
    /// The presence of its device, as [`DeviceView::presence`].
    pub presence: String,
    /// Seconds since its device was last heard; null where it was not since the controller began.
    pub heard_age_s: Option<u64>,
    /// How its latest container ended.
    pub exit: Option<ExitView>,
    /// Containers that replaced one which had ended.
    pub restarts: u32,
    /// Its main process, on the device.
    pub pid: Option<u32>,
    /// Its latest container.
    pub container: Option<String>,
    /// Why it is in this phase.
    pub message: String,
    /// Seconds since its status last changed.
    pub age_s: u64,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExitView {
    /// By itself, with this status.
    Code(u8),
    /// By this signal.
    Signal(u8),
    /// Unseen.
    Unknown(bool),
}

/// Something that happened.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EventView {
    /// Counts up over the whole fleet, in the order of arrival.
    pub seq: u64,
    /// When (RFC 3339, UTC), as far as it is known.
    pub at: Option<String>,
    /// The device it happened on.
    pub device: Option<String>,
    /// The workload it happened to.
    pub workload: Option<String>,
    /// The deployment it happened to.
    pub deployment: Option<String>,
    /// What happened.
    pub kind: String,
    /// For a person.
    pub message: String,
}

/// A line of a log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LogLineView {
    /// `stdout` or `stderr`; `gap` where bytes were lost before they could be sent, `error` where
    /// the log breaks off.
    pub stream: String,
    /// When, by the device's clock (RFC 3339, UTC).
    pub at: Option<String>,
    /// The line, without its end; what is not UTF-8 is replaced.
    pub line: String,
}

/// What became of a manifest, over HTTP and on `deploy/NAME/result`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DeployResult {
    /// It is stored and will be carried out.
    pub accepted: bool,
    /// The deployment it speaks of.
    pub name: String,
    /// `created`, `updated`, `unchanged` or `deleted`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The revision that will run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Everything that is wrong with the manifest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultView>,
}

/// One thing that is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FaultView {
    /// Where: `resources.memory`, `args[2]`; empty for the whole document.
    pub path: String,
    /// Line of a text manifest, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// What, and what to write instead.
    pub message: String,
}

/// What became of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyResult {
    /// It is stored, and devices are told.
    pub accepted: bool,
    /// Everything that is wrong with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<FaultView>,
    /// How each deployment breaks it that does.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub breaking: BTreeMap<String, Vec<String>>,
}

/// Why a request failed.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorView {
    /// What failed, on what, and what to do next.
    pub error: String,
}

/// Asks for another number of replicas.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ScaleRequest {
    /// How many.
    pub replicas: u32,
}

/// Asks that a device takes another's place.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ReplaceRequest {
    /// The id of the device that comes.
    pub by: String,
}

/// A secret; nothing gives its value back.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SecretView {
    /// Its name.
    pub name: String,
    /// Its latest version.
    pub version: u32,
    /// Its size, in bytes.
    pub bytes: usize,
    /// Seconds since this version was set.
    pub age_s: u64,
    /// The deployments that name it.
    pub deployments: Vec<String>,
}

/// A secret was set.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SecretResult {
    /// Its name.
    pub name: String,
    /// The version that was made.
    pub version: u32,
    /// The deployments that follow it, with their revisions.
    pub deployments: Vec<DeployResult>,
}

/// A device that holds more than the controller knows of.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HoldView {
    /// The device.
    pub device: String,
    /// Its presence, as [`DeviceView::presence`].
    pub presence: String,
    /// Seconds since it was last heard.
    pub heard_age_s: Option<u64>,
    /// Epoch and generation of the desired state that it holds.
    pub holds: String,
    /// Those of the last one that this controller knows to have told it.
    pub told: String,
    /// Workloads that the device has, and the store does not.
    pub only_device: Vec<String>,
    /// Workloads that the store has there, and the device does not.
    pub only_store: Vec<String>,
    /// Workloads that both have, in different revisions.
    pub differ: Vec<String>,
    /// Why what it holds could not be taken over.
    pub problem: Option<String>,
}

/// Chooses what holds on devices that are on hold.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RecoverRequest {
    /// Whose truth wins.
    pub choice: RecoverChoice,
    /// The devices; all that are on hold where empty.
    #[serde(default)]
    pub devices: Vec<String>,
}

/// Whose truth wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum RecoverChoice {
    /// The devices': the store takes over what they hold.
    Adopt,
    /// The store's: devices run what it says.
    Override,
}

/// What becomes of a choice.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RecoverResult {
    /// The devices that it is carried out on; those that are adopted leave their hold when they have
    /// answered.
    pub devices: Vec<String>,
    /// Devices on hold that are not connected, and were left out.
    pub away: Vec<String>,
}

/// What runs the fleet.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    /// Version of the controller.
    pub version: String,
}
