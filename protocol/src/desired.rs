//! Desired state: the complete list of what one device should run.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::hello::Feature;
use crate::id::{DeploymentName, Digest, WorkloadId};
use crate::policy::ImagePolicy;
use crate::sealed::SealedSecret;
use crate::spec::WorkloadSpec;
use crate::upgrade::Upgrade;

/// The largest encoded desired state, in bytes; checked when a manifest is applied.
pub const DESIRED_BYTES_MAX: usize = 96 * 1024;

/// Workloads on one device at most: a report of all of them, each with a long message, fits into
/// one message.
pub const DESIRED_WORKLOADS_MAX: usize = 256;

/// How far a device's desired state has come. Only grows: epoch first, then generation.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Held {
    /// Grows when an operator overrides what devices hold after a restore.
    #[serde(rename = "e")]
    pub epoch: u64,
    /// Grows with every change.
    #[serde(rename = "g")]
    pub generation: u64,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.generation)
    }
}

/// Everything that a device should run. What is not listed should not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredState {
    /// Epoch and generation of this document.
    #[serde(rename = "h")]
    pub held: Held,
    /// Controller's wall clock when it was made, in milliseconds since 1970.
    #[serde(rename = "t")]
    pub at_ms: u64,
    /// Reconnects are spread over this window, in milliseconds.
    #[serde(rename = "r", default)]
    pub reconnect_spread_ms: u32,
    /// What the images of all workloads must be.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<ImagePolicy>,
    /// What program the agent itself is to be; absent where it stays as it is.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub upgrade: Option<Upgrade>,
    /// The workloads.
    #[serde(rename = "w")]
    pub workloads: Vec<Workload>,
}

/// One workload of a desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Unique on the device.
    #[serde(rename = "i")]
    pub id: WorkloadId,
    /// The deployment it belongs to.
    #[serde(rename = "d")]
    pub deployment: DeploymentName,
    /// Digest of the template: another digest means another container.
    #[serde(rename = "v")]
    pub revision: Digest,
    /// What an agent must be able to enforce; an agent that cannot refuses the workload.
    #[serde(rename = "q", default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<Feature>,
    /// What its image must be, beside what the fleet's policy says. No part of the revision: a
    /// container that runs goes on when it changes.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<ImagePolicy>,
    /// The template.
    #[serde(rename = "s")]
    pub spec: WorkloadSpec,
    /// The secrets that the template names, for this device.
    #[serde(rename = "x", default, skip_serializing_if = "Vec::is_empty")]
    pub sealed: Vec<SealedSecret>,
}
