//! What rules are made of, checked as it is read.

use limpet_protocol::host::is_clean;
use limpet_protocol::policy::{RegistryPath, RegistryPathError};
use serde::{Deserialize, Serialize};

/// A file or folder, and all below it: `/srv/data`, or `/run/foo:ro`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PathRule {
    pub(super) path: String,
    pub(super) read_only: bool,
}

/// A device below `/dev`; `*` stands for anything but a slash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceRule(String);

/// A registry, `HOST[:PORT]`, or a part of one: `ghcr.io/acme`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegistryRule(pub(super) RegistryPath);

/// In thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct MemoryShare(pub(super) u16);

/// A rule that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not a path.
    #[error("{0:?}: write an absolute path without . and .., with :ro behind it for read-only")]
    Path(String),
    /// Not a device.
    #[error("{0:?}: write a path below /dev, where * stands for anything but a slash")]
    Device(String),
    /// Not a registry.
    #[error(transparent)]
    Registry(RegistryPathError),
    /// Not a share.
    #[error("{0}: write a part of 1, such as 0.8")]
    Share(String),
}

impl DeviceRule {
    /// Whether it allows the device of this path.
    pub(super) fn matches(&self, path: &str) -> bool {
        is_clean(path) && matches(&self.0, path)
    }
}

/// Whether a path matches a pattern with `*` in it.
fn matches(pattern: &str, path: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else {
        return pattern == path;
    };
    path.strip_prefix(before).is_some_and(|rest| {
        let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
        let within = |at: &usize| rest.get(..*at).is_some_and(|run| !run.contains('/'));
        ends.take_while(within).any(|at| rest.get(at..).is_some_and(|rest| matches(after, rest)))
    })
}

impl TryFrom<String> for PathRule {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        let (path, read_only) = match text.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (text.as_str(), false),
        };
        match is_clean(path) {
            true => Ok(Self { path: path.to_owned(), read_only }),
            false => Err(RuleError::Path(text)),
        }
    }
}

impl From<PathRule> for String {
    fn from(rule: PathRule) -> Self {
        rule.path + if rule.read_only { ":ro" } else { "" }
    }
}

impl TryFrom<String> for DeviceRule {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        match is_clean(&text) && text.starts_with("/dev/") {
            true => Ok(Self(text)),
            false => Err(RuleError::Device(text)),
        }
    }
}

impl From<DeviceRule> for String {
    fn from(rule: DeviceRule) -> Self {
        rule.0
    }
}

impl TryFrom<String> for RegistryRule {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse().map(Self).map_err(RuleError::Registry)
    }
}

impl From<RegistryRule> for String {
    fn from(rule: RegistryRule) -> Self {
        rule.0.to_string()
    }
}

impl TryFrom<f64> for MemoryShare {
    type Error = RuleError;

    fn try_from(share: f64) -> Result<Self, RuleError> {
        let found = (1..=1000u16).find(|thousandths| f64::from(*thousandths) / 1000.0 >= share);
        found.filter(|_| share > 0.0).map(Self).ok_or_else(|| RuleError::Share(share.to_string()))
    }
}

impl From<MemoryShare> for f64 {
    fn from(share: MemoryShare) -> Self {
        Self::from(share.0) / 1000.0
    }
}
