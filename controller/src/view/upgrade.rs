//! What the API says of agents' programs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A program that devices can be told to run as their agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AgentView {
    /// The version that it is to be.
    pub version: String,
    /// The architecture that it is for, as OCI names it: `amd64`, `arm64`, `arm`.
    pub arch: String,
    /// Its SHA-256, in hexadecimal digits.
    pub digest: String,
    /// Its size, in bytes.
    pub bytes: u64,
    /// Seconds since it was uploaded.
    pub age_s: u64,
    /// Its file is there; not so after a restore: a backup does not hold it.
    pub is_here: bool,
}

/// Has devices run another version of their agent.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct UpgradeRequest {
    /// Which; somebody has uploaded it.
    pub version: String,
    /// The devices; all that `select` picks where empty.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Labels that a device must carry.
    #[serde(default)]
    pub select: BTreeMap<String, String>,
    /// How long the program may take to prove itself on a device, in seconds: 10 to 3600, 300 where
    /// absent.
    #[serde(default)]
    pub deadline_s: Option<u16>,
}

/// An order that is given.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UpgradeResult {
    /// The order on each device.
    pub orders: BTreeMap<String, u64>,
}

/// How far a device has come with the latest order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpgradeView {
    /// The order.
    pub order: u64,
    /// The version that it names.
    pub version: String,
    /// `ordered`, `fetching`, `trying`, `done` or `failed`.
    pub phase: String,
    /// Why it failed, or what it waits for.
    pub message: String,
}
