//! What an operator asks for.

use std::collections::BTreeMap;

use limpet_protocol::{DeploymentName, Feature, ImagePolicy, WorkloadSpec};
use serde::{Deserialize, Serialize};

/// Replicas of one deployment at most: what one message per device can still carry.
pub const REPLICAS_MAX: u32 = 1000;

/// A workload template, how many, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Its name.
    pub name: DeploymentName,
    /// The template of its workloads.
    pub spec: WorkloadSpec,
    /// What its image must be, beside what the fleet's policy says. No part of its revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_policy: Option<ImagePolicy>,
    /// How many workloads.
    pub count: Count,
    /// Labels that a device must carry.
    pub select: BTreeMap<String, String>,
}

impl Deployment {
    /// What an agent must be able to enforce to run it.
    pub fn requires(&self) -> Vec<Feature> {
        let policy = self.image_policy.as_ref().map(|_| Feature::known(Feature::IMAGE_POLICY));
        self.spec.requires().into_iter().chain(policy).collect()
    }
}

/// How many workloads a deployment has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Count {
    /// This many, spread over the matching devices; at most [`REPLICAS_MAX`].
    Replicas(u32),
    /// One on every matching device.
    Everywhere,
}
