//! What a workload is: the template that an operator writes and a device runs.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::hello::Feature;
use crate::host::{DeviceAccess, HostAccess};
use crate::id::{Digest, SecretName};

/// How long a workload may take to end after its stop signal unless its manifest says otherwise.
pub const STOP_GRACE_MS_DEFAULT: u32 = 10_000;

/// The template of a workload. Bounds are checked where a manifest is read; a device relies only
/// on the size of the whole message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadSpec {
    /// Image name as an operator writes it; read as Docker reads it.
    #[serde(rename = "i")]
    pub image: String,
    /// Replaces the image's entrypoint where not empty.
    #[serde(rename = "c", default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Replaces the image's arguments where not empty.
    #[serde(rename = "a", default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Added to the image's environment.
    #[serde(rename = "e", default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Absolute path inside the container; the image's where absent.
    #[serde(rename = "w", default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// `USER[:GROUP]`, names or numbers; the image's where absent.
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Limits.
    #[serde(rename = "l", default)]
    pub resources: Resources,
    /// What happens when the main process ends.
    #[serde(rename = "r", default)]
    pub restart: Restart,
    /// How the main process is asked to end.
    #[serde(rename = "s", default)]
    pub stop: Stop,
    /// Secrets, and where the program finds them.
    #[serde(rename = "x", default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretUse>,
    /// What it is given of its host.
    #[serde(rename = "h", default, skip_serializing_if = "HostAccess::is_empty")]
    pub host: HostAccess,
}

impl WorkloadSpec {
    /// A template that says nothing but its image.
    pub fn of(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            command: Vec::new(),
            args: Vec::new(),
            env: BTreeMap::new(),
            workdir: None,
            user: None,
            resources: Resources::default(),
            restart: Restart::default(),
            stop: Stop::default(),
            secrets: Vec::new(),
            host: HostAccess::default(),
        }
    }

    /// Names the revision: equal templates have equal digests.
    pub fn digest(&self) -> Digest {
        Digest::of(&crate::cbor::encode(self))
    }

    /// What an agent must be able to enforce to run this.
    pub fn requires(&self) -> Vec<Feature> {
        let Resources { memory_bytes, cpu_millis, pids } = self.resources;
        let HostAccess { privileged, mounts, devices } = &self.host;
        let limited = devices.iter().any(|device| device.access != DeviceAccess::ReadWrite);
        [
            (memory_bytes.is_some(), Feature::LIMIT_MEMORY),
            (cpu_millis.is_some(), Feature::LIMIT_CPU),
            (pids.is_some(), Feature::LIMIT_PIDS),
            (!self.secrets.is_empty(), Feature::SECRETS),
            (*privileged, Feature::PRIVILEGED),
            (!mounts.is_empty(), Feature::HOST_PATHS),
            (!devices.is_empty(), Feature::HOST_DEVICES),
            (limited, Feature::DEVICE_ACCESS),
        ]
        .into_iter()
        .filter(|(needed, _)| *needed)
        .map(|(_, feature)| Feature::known(feature))
        .collect()
    }
}

/// A secret that a program is given. Revisions name its version, never its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretUse {
    /// Its name.
    #[serde(rename = "n")]
    pub name: SecretName,
    /// Its version, from 1; [`SecretUse::LATEST`] in a manifest, which names none.
    #[serde(rename = "v")]
    pub version: u32,
    /// Where the program finds it.
    #[serde(rename = "p")]
    pub place: SecretPlace,
}

impl SecretUse {
    /// Whichever version is the latest when the manifest is applied.
    pub const LATEST: u32 = 0;
}

/// Where a program finds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretPlace {
    /// In a file of this absolute path, which only its user may read.
    #[serde(rename = "f")]
    File(String),
    /// In this variable.
    #[serde(rename = "e")]
    Env(String),
}

/// Limits on one container; absent means not limited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Memory, in bytes.
    #[serde(rename = "m", default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// CPU time, in thousandths of one processor.
    #[serde(rename = "c", default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Processes and threads.
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
}

/// What happens when a container's main process ends by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Restart {
    /// A new container, whatever the exit was.
    #[default]
    #[serde(rename = "a")]
    Always,
    /// A new container unless it ended with status 0.
    #[serde(rename = "f")]
    OnFailure,
    /// It stays ended.
    #[serde(rename = "n")]
    Never,
}

/// How a container is asked to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// The signal sent first; the image's, or SIGTERM, where absent.
    #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
    /// Time until SIGKILL, in milliseconds.
    #[serde(rename = "g")]
    pub grace_ms: u32,
}

impl Default for Stop {
    fn default() -> Self {
        Self { signal: None, grace_ms: STOP_GRACE_MS_DEFAULT }
    }
}

/// A Linux signal, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Signal(u8);

/// The signals with a name that is the same on every architecture Limpet runs on (signal(7)).
const SIGNAL_NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

impl Signal {
    /// Ends a process that cannot refuse.
    pub const KILL: Self = Self(9);
    /// Asks a process to end.
    pub const TERM: Self = Self(15);

    /// The number, as the kernel knows it.
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }
}

/// Not a signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a signal; write a name such as SIGTERM or a number from 1 to 64")]
pub struct SignalError(String);

impl TryFrom<u8> for Signal {
    type Error = SignalError;

    fn try_from(number: u8) -> Result<Self, SignalError> {
        if (1..=64).contains(&number) {
            Ok(Self(number))
        } else {
            Err(SignalError(number.to_string()))
        }
    }
}

impl From<Signal> for u8 {
    fn from(signal: Signal) -> Self {
        signal.0
    }
}

impl FromStr for Signal {
    type Err = SignalError;

    /// Reads `SIGTERM`, `TERM` or `15`, as Docker does.
    fn from_str(text: &str) -> Result<Self, SignalError> {
        if let Ok(number) = text.parse::<u8>() {
            return Self::try_from(number);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        (1..)
            .zip(SIGNAL_NAMES)
            .find_map(|(number, known)| (known == name).then_some(Self(number)))
            .ok_or_else(|| SignalError(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNAL_NAMES.get(usize::from(self.0) - 1) {
            Some(name) => write!(f, "SIG{name}"),
            None => write!(f, "signal {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_docker_reads_them() {
        for text in ["SIGTERM", "TERM", "sigterm", "15"] {
            assert_eq!(text.parse(), Ok(Signal::TERM), "{text}");
        }
        assert_eq!("SIGSYS".parse::<Signal>().unwrap().number(), 31);
        assert_eq!("34".parse::<Signal>().unwrap().to_string(), "signal 34");
        for text in ["", "0", "65", "SIG", "SIGNOPE", "-9"] {
            assert!(text.parse::<Signal>().is_err(), "{text}");
        }
    }
}
