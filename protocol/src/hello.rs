//! What a device says when it connects, and how its presence is told.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::desired::Held;
use crate::hpke::SealingKey;
use crate::id::{Digest, IdError, OutboxId, byte_id};
use crate::key::PublicKey;

/// Labels a device may carry.
pub const LABELS_MAX: usize = 64;

/// Time between signs of life where nothing else was chosen, in seconds.
pub const KEEP_ALIVE_S: u16 = 600;

byte_id!(
    /// Names one boot of a device (Linux: `/proc/sys/kernel/random/boot_id`).
    BootId, 16
);
byte_id!(
    /// Made anew for every connection: a command that carries it was meant for that connection.
    Nonce, 16
);

/// Labels of a device: keys and values of at most 63 bytes.
pub type Labels = BTreeMap<heapless::String<63>, heapless::String<63>>;

/// The first message on every connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// This boot.
    #[serde(rename = "b")]
    pub boot: BootId,
    /// Milliseconds since boot when the connection began: orders the connections of a boot.
    #[serde(rename = "c")]
    pub connection: u64,
    /// Of this connection.
    #[serde(rename = "n")]
    pub nonce: Nonce,
    /// Version of the agent.
    #[serde(rename = "v")]
    pub agent_version: heapless::String<32>,
    /// What the agent can enforce.
    #[serde(rename = "q", default)]
    pub features: Vec<Feature>,
    /// Labels that the device's owner gave it; at most [`LABELS_MAX`].
    #[serde(rename = "l", default)]
    pub labels: Labels,
    /// What the machine is.
    #[serde(rename = "f")]
    pub facts: Facts,
    /// The desired state that the device holds.
    #[serde(rename = "h")]
    pub held: Held,
    /// A later one that it has accepted, and that is on its way to its disk.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub arriving: Option<Held>,
    /// Digest of the device's reported state.
    #[serde(rename = "d")]
    pub reported: Digest,
    /// The device's outbox.
    #[serde(rename = "o")]
    pub outbox: OutboxId,
    /// Seconds between signs of life of this connection; 0 where an older agent does not say.
    #[serde(rename = "k", default)]
    pub keep_alive_s: u16,
    /// What secrets are sealed to; absent where an agent takes none.
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    pub sealing_key: Option<SealingKey>,
    /// When this was said, in milliseconds since boot: orders what is said on one connection; 0 where
    /// an older agent does not say.
    #[serde(rename = "t", default, skip_serializing_if = "is_zero")]
    pub sent_ms: u64,
    /// Events that are on the device's disk, or were there once: each start records one, so that this
    /// orders boots. Absent where the device has lost something and does not know.
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    pub recorded: Option<u64>,
    /// Whose signature the device believes; absent where it has seen none, or an older agent does not
    /// say.
    #[serde(rename = "y", default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<PublicKey>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Hello {
    /// The latest desired state that the device has accepted.
    pub fn accepted(&self) -> Held {
        self.arriving.unwrap_or_default().max(self.held)
    }
}

/// What a machine is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Architecture as OCI names it: `amd64`, `arm64`, `arm`.
    #[serde(rename = "a")]
    pub arch: heapless::String<16>,
    /// Variant as OCI names it (`v7`), or empty.
    #[serde(rename = "v", default)]
    pub variant: heapless::String<8>,
    /// Memory, in bytes.
    #[serde(rename = "m")]
    pub memory_bytes: u64,
    /// Processors.
    #[serde(rename = "c")]
    pub cpus: u16,
    /// Release of the kernel.
    #[serde(rename = "k")]
    pub kernel: heapless::String<64>,
}

/// The broker tells it when the connection is gone (MQTT 5.0 section 3.1.2.5, the will).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presence {
    /// What it tells.
    #[serde(rename = "s")]
    pub state: PresenceState,
    /// Boot of the connection it tells of.
    #[serde(rename = "b")]
    pub boot: BootId,
    /// The connection it tells of; one that is not the latest is ignored.
    #[serde(rename = "c")]
    pub connection: u64,
}

/// States that a device announces of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PresenceState {
    /// Connected.
    #[serde(rename = "on")]
    Online,
    /// Gone, or going.
    #[serde(rename = "off")]
    Offline,
    /// Gone on purpose, for this long, in milliseconds: a wrong clock does not matter.
    #[serde(rename = "asleep")]
    Asleep {
        /// From when it was sent.
        #[serde(rename = "f")]
        for_ms: u64,
    },
}

/// Something that an agent must be able to enforce; text, so that a stranger's is still a feature.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Feature(heapless::String<32>);

impl Feature {
    /// Memory is limited per container.
    pub const LIMIT_MEMORY: &'static str = "limit.memory";
    /// CPU time is limited per container.
    pub const LIMIT_CPU: &'static str = "limit.cpu";
    /// Processes are limited per container.
    pub const LIMIT_PIDS: &'static str = "limit.pids";
    /// Images are what policies say before anything of them runs.
    pub const IMAGE_POLICY: &'static str = "image.policy";
    /// Secrets are opened in memory only.
    pub const SECRETS: &'static str = "secrets";
    /// Containers can be privileged.
    pub const PRIVILEGED: &'static str = "privileged";
    /// Containers can be given paths of the host.
    pub const HOST_PATHS: &'static str = "host.paths";
    /// Containers can be given devices of the host.
    pub const HOST_DEVICES: &'static str = "host.devices";
    /// A device can be given for reading or writing only.
    pub const DEVICE_ACCESS: &'static str = "device.access";
    /// The agent can be told to run another program of itself.
    pub const UPGRADE: &'static str = "agent.upgrade";
    /// In front of a feature that the agent has and the owner of the device does not allow.
    const DENIED: &'static str = "denied:";

    /// One of the constants above.
    pub fn known(name: &'static str) -> Self {
        Self(name.chars().take(32).collect())
    }

    /// The same feature, as a device has it whose owner does not allow its use.
    pub fn denied(&self) -> Self {
        Self(Self::DENIED.chars().chain(self.0.chars()).take(32).collect())
    }

    /// Its name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}
