//! What the owner of a device allows the controller: the section `[owner]` of `agent.toml`.
//!
//! Values in, a refusal or none out. Opening what a path leads to is the shell's; what it opened is
//! judged here.

use std::fmt;

use limpet_protocol::host::{is_below, is_clean};
use limpet_protocol::{Feature, ImageName, WorkloadSpec};
use serde::{Deserialize, Serialize};

mod value;

pub use value::{DeviceRule, MemoryShare, PathRule, RegistryRule, RuleError};

/// The rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Owner {
    /// Containers may be privileged.
    pub privileged: bool,
    /// What containers may be given of the host's files.
    pub host_paths: Vec<PathRule>,
    /// What containers may be given of the host's devices.
    pub host_devices: Vec<DeviceRule>,
    /// Containers may use the host's network.
    pub host_network: bool,
    /// Where images may come from; anywhere where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registries: Option<Vec<RegistryRule>>,
    /// The part of the machine's memory that workloads may have together; all where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_share: Option<MemoryShare>,
    /// Logs may be read from afar.
    pub remote_logs: bool,
}

impl Default for Owner {
    fn default() -> Self {
        Self {
            privileged: false,
            host_paths: Vec::new(),
            host_devices: Vec::new(),
            host_network: true,
            registries: None,
            memory_share: None,
            remote_logs: true,
        }
    }
}

/// Names a rule, as the file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// `privileged`
    Privileged,
    /// `host_paths`
    HostPaths,
    /// `host_devices`
    HostDevices,
    /// `host_network`
    HostNetwork,
    /// `registries`
    Registries,
    /// `memory_share`
    MemoryShare,
    /// `remote_logs`
    RemoteLogs,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Privileged => "privileged",
            Self::HostPaths => "host_paths",
            Self::HostDevices => "host_devices",
            Self::HostNetwork => "host_network",
            Self::Registries => "registries",
            Self::MemoryShare => "memory_share",
            Self::RemoteLogs => "remote_logs",
        })
    }
}

/// What the owner does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("refused by this device's owner: {rule} {what}")]
pub struct Refusal {
    /// Which rule.
    pub rule: Rule,
    /// What it does.
    what: String,
}

fn refusal(rule: Rule, what: impl Into<String>) -> Refusal {
    Refusal { rule, what: what.into() }
}

/// How a path may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathUse {
    /// As the workload asks.
    AsAsked,
    /// Nothing is written through it, whatever the workload asks.
    ReadOnly,
}

/// Memory of a machine, in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// All of it.
    pub(crate) machine: u64,
    /// What the other workloads may take.
    pub(crate) taken: u64,
}

impl Owner {
    /// What the agent can do, where the owner lets it.
    pub(crate) fn features(&self, features: Vec<Feature>) -> Vec<Feature> {
        let denied = |feature: &Feature| match feature.as_str() {
            Feature::PRIVILEGED => !self.privileged,
            Feature::HOST_PATHS => self.host_paths.is_empty(),
            Feature::HOST_DEVICES => self.host_devices.is_empty(),
            _ => false,
        };
        let told = |feature: Feature| if denied(&feature) { feature.denied() } else { feature };
        features.into_iter().map(told).collect()
    }

    /// Judges a workload by what it says of itself.
    pub(crate) fn judge(&self, spec: &WorkloadSpec, memory: Memory) -> Result<(), Refusal> {
        if spec.host.privileged && !self.privileged {
            return Err(refusal(Rule::Privileged, "is not allowed"));
        }
        if !self.host_network {
            let what = "is not allowed, and containers have no other network yet";
            return Err(refusal(Rule::HostNetwork, what));
        }
        self.judge_image(&spec.image)?;
        if let (Some(mount), true) = (spec.host.mounts.first(), self.host_paths.is_empty()) {
            return Err(refusal(Rule::HostPaths, format!("does not allow {}", mount.host)));
        }
        if let (Some(device), true) = (spec.host.devices.first(), self.host_devices.is_empty()) {
            return Err(refusal(Rule::HostDevices, format!("does not allow {}", device.host)));
        }
        self.judge_memory(spec.resources.memory_bytes, memory)
    }

    /// What is no image name is told where the image is looked for.
    fn judge_image(&self, image: &str) -> Result<(), Refusal> {
        let (Some(rules), Ok(name)) = (&self.registries, image.parse::<ImageName>()) else {
            return Ok(());
        };
        match rules.iter().any(|RegistryRule(path)| path.holds(&name)) {
            true => Ok(()),
            false => {
                let (registry, repository) = (name.registry(), name.repository());
                Err(refusal(Rule::Registries, format!("does not allow {registry}/{repository}")))
            }
        }
    }

    fn judge_memory(&self, limit: Option<u64>, memory: Memory) -> Result<(), Refusal> {
        let Some(MemoryShare(thousandths)) = self.memory_share else {
            return Ok(());
        };
        // What has no limit could take all: the kernel would not keep the owner's promise.
        let Some(limit) = limit else {
            let what = "needs workloads with a limit: give this one resources.memory";
            return Err(refusal(Rule::MemoryShare, what));
        };
        let share = (memory.machine / 1000).saturating_mul(thousandths.into());
        let wanted = memory.taken.saturating_add(limit);
        if wanted <= share {
            return Ok(());
        }
        let mb = |bytes: u64| bytes / 1_000_000;
        let what = format!(
            "leaves {} MB to workloads, which would have {} MB with this one",
            mb(share),
            mb(wanted)
        );
        Err(refusal(Rule::MemoryShare, what))
    }

    /// Judges the file or folder that the path `asked` leads to, all links followed: the rule that
    /// says most about it decides. Whatever the rules, nobody is given one of `own`, the folders that
    /// the agent keeps the device's key and state in, nor what is above or below them.
    ///
    /// # Errors
    /// When no rule allows it.
    pub fn host_path(&self, asked: &str, real: &str, own: &[String]) -> Result<PathUse, Refusal> {
        if let Some(own) = own.iter().find(|own| is_below(real, own) || is_below(own, real)) {
            let what = format!(
                "{}: it is above, at or below {own}, which is the agent's own",
                led(asked, real)
            );
            return Err(refusal(Rule::HostPaths, what));
        }
        let rules = self.host_paths.iter();
        let rules = rules.filter(|rule| is_clean(real) && is_below(real, &rule.path));
        match rules.max_by_key(|rule| rule.path.len()) {
            Some(PathRule { read_only: true, .. }) => Ok(PathUse::ReadOnly),
            Some(PathRule { read_only: false, .. }) => Ok(PathUse::AsAsked),
            None => Err(refusal(Rule::HostPaths, led(asked, real))),
        }
    }

    /// Judges the device that the path `asked` leads to, all links followed. Either name will do:
    /// those in `/dev` are given by the host, and the ones that last, as in `/dev/serial/by-id`, are
    /// links.
    ///
    /// # Errors
    /// When no rule allows it.
    pub fn host_device(&self, asked: &str, real: &str) -> Result<(), Refusal> {
        let names = [asked, real];
        let allowed =
            self.host_devices.iter().any(|rule| names.iter().any(|name| rule.matches(name)));
        allowed.then_some(()).ok_or_else(|| refusal(Rule::HostDevices, led(asked, real)))
    }

    /// Judges whether a log may be read from afar.
    pub(crate) fn logs(&self) -> Result<(), Refusal> {
        match self.remote_logs {
            true => Ok(()),
            false => Err(refusal(Rule::RemoteLogs, "is not allowed")),
        }
    }
}

fn led(asked: &str, real: &str) -> String {
    match asked == real {
        true => format!("does not allow {real}"),
        false => format!("does not allow {real}, which {asked} leads to"),
    }
}

#[cfg(test)]
mod tests;
