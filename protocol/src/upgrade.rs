//! The agent's own program: which one a device is to run, and how far it has come with that.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::id::{AgentVersion, Digest};

/// The largest program of an agent, in bytes.
pub const PROGRAM_BYTES_MAX: u64 = 64 << 20;

/// How long a program may take to prove itself, in seconds: unless said otherwise, at least, and at
/// most. What it must do is connect; the longest leaves time for a link that comes up slowly.
pub const DEADLINE_S: u16 = 300;
/// The shortest.
pub const DEADLINE_S_MIN: u16 = 10;
/// The longest.
pub const DEADLINE_S_MAX: u16 = 3600;

/// In front of the version in an agent's file; behind it is a zero byte. Who sends a file to devices
/// can read from it what it is, whatever machine it is for.
pub const VERSION_MARK: &[u8; 22] = b"limpet-agent-version: ";

/// An order to run another program. A device carries each out once, whichever way it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// Grows with every order.
    #[serde(rename = "n")]
    pub order: u64,
    /// What the program must say that it is.
    #[serde(rename = "v")]
    pub version: AgentVersion,
    /// SHA-256 of the program.
    #[serde(rename = "d")]
    pub digest: Digest,
    /// Its size, in bytes; at most [`PROGRAM_BYTES_MAX`].
    #[serde(rename = "s")]
    pub size: u64,
    /// How long it may take to prove itself, in seconds.
    #[serde(rename = "t")]
    pub deadline_s: u16,
    /// Where a device that is no member of a fleet fetches it, `http://HOST:PORT`; a member knows its
    /// controller.
    #[serde(rename = "f", default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

impl Upgrade {
    /// What the program is fetched at, below the controller's address.
    pub fn path(&self) -> String {
        format!("/api/v1/agents/{}", self.digest)
    }
}

/// How far a device has come with the latest order that it has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpgradeStatus {
    /// Which order.
    #[serde(rename = "n")]
    pub order: u64,
    /// The version that it names.
    #[serde(rename = "v")]
    pub version: AgentVersion,
    /// How far.
    #[serde(rename = "p")]
    pub phase: UpgradePhase,
    /// Why it failed, or what it waits for; at most [`crate::reported::MESSAGE_BYTES_MAX`] bytes.
    #[serde(rename = "m", default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Phases of an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpgradePhase {
    /// The program is on its way here.
    Fetching,
    /// It runs, and has yet to prove itself.
    Trying,
    /// It has proved itself.
    Done,
    /// It is not to be had, or did not prove itself; the one before it runs.
    Failed,
    /// Sent by a later version.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for UpgradePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Fetching => "fetching",
            Self::Trying => "trying",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        })
    }
}
