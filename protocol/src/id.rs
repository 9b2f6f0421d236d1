//! Identifiers: bounded, checked once where they enter, and cheap to compare.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Empty, or longer than the identifier's bound.
    #[error("{what} {text:?} must have 1 to {max} characters")]
    Length {
        /// The kind of identifier.
        what: &'static str,
        /// The beginning of the text.
        text: String,
        /// The bound, in bytes.
        max: usize,
    },
    /// A character that the identifier does not allow.
    #[error("{what} {text:?}: {rule}")]
    Characters {
        /// The kind of identifier.
        what: &'static str,
        /// The text.
        text: String,
        /// What is allowed.
        rule: &'static str,
    },
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $max:literal, $what:literal, $check:path, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(heapless::String<$max>);

        impl $name {
            /// The longest allowed, in bytes.
            pub const MAX: usize = $max;

            /// The identifier as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let length = || IdError::Length {
                    what: $what,
                    text: text.chars().take(40).collect(),
                    max: $max,
                };
                if text.is_empty() {
                    return Err(length());
                }
                let bounded = heapless::String::try_from(text).map_err(|_| length())?;
                if $check(text) {
                    Ok(Self(bounded))
                } else {
                    Err(IdError::Characters { what: $what, text: text.to_owned(), rule: $rule })
                }
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = heapless::String::<$max>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

identifier!(
    /// One machine with an agent. One MQTT topic level, so no `/`, `+` or `#`.
    DeviceId, 64, "device id", is_device,
    "use letters, digits, '.', '_' and '-', beginning with a letter or digit"
);
identifier!(
    /// What an operator calls a deployment: a DNS label (RFC 1123).
    DeploymentName, 63, "deployment name", is_dns_label,
    "use lower-case letters, digits and '-', beginning and ending with a letter or digit"
);
identifier!(
    /// What an operator calls a secret: a DNS label (RFC 1123).
    SecretName, 63, "secret name", is_dns_label,
    "use lower-case letters, digits and '-', beginning and ending with a letter or digit"
);
identifier!(
    /// One workload: `DEPLOYMENT.N` for the Nth replica, `DEPLOYMENT` where it runs everywhere.
    WorkloadId, 74, "workload id", is_workload,
    "use a deployment name, or a deployment name, '.' and a number"
);
identifier!(
    /// One container of a workload: `WORKLOAD.N`, where N counts the containers of the device, so
    /// that none is ever taken for another.
    ContainerId, 85, "container id", is_container,
    "use a workload id, '.' and a number"
);
identifier!(
    /// A version of the agent, as its program says it.
    AgentVersion, 32, "version", is_version,
    "use letters, digits, '.', '+', '-', '_' and '~', beginning with a letter or digit"
);

impl DeviceId {
    /// An id made from any text (a host name, a serial number): what is not allowed becomes `-`.
    pub fn lossy(text: &str) -> Option<Self> {
        let clean: String = text
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '-' })
            .skip_while(|c| !c.is_ascii_alphanumeric())
            .take(Self::MAX)
            .collect();
        clean.parse().ok()
    }
}

/// What an envelope about a deployment names in the place of a device: a DNS label is an id, too.
impl From<&DeploymentName> for DeviceId {
    fn from(name: &DeploymentName) -> Self {
        Self(bounded(format_args!("{name}")))
    }
}

impl WorkloadId {
    /// The id of replica `index` of a deployment.
    pub fn replica(deployment: &DeploymentName, index: u32) -> Self {
        Self(bounded(format_args!("{deployment}.{index}")))
    }

    /// The id of a deployment's only workload on a device.
    pub fn everywhere(deployment: &DeploymentName) -> Self {
        Self(bounded(format_args!("{deployment}")))
    }

    /// The deployment that this workload belongs to.
    pub fn deployment(&self) -> DeploymentName {
        let name = self.0.split_once('.').map_or(self.as_str(), |(name, _)| name);
        DeploymentName(bounded(format_args!("{name}")))
    }
}

impl ContainerId {
    /// The id of container `number` of a workload.
    pub fn new(workload: &WorkloadId, number: u32) -> Self {
        Self(bounded(format_args!("{workload}.{number}")))
    }

    /// The workload and the number that this id was made from.
    pub fn parts(&self) -> Option<(WorkloadId, u32)> {
        let (workload, number) = self.0.rsplit_once('.')?;
        Some((workload.parse().ok()?, number.parse().ok()?))
    }
}

/// Formats into a bound that the caller has chosen to be large enough for every input.
fn bounded<const N: usize>(text: fmt::Arguments<'_>) -> heapless::String<N> {
    let mut out = heapless::String::new();
    let fits = fmt::Write::write_fmt(&mut out, text);
    debug_assert!(fits.is_ok(), "{text} is longer than {N}");
    out
}

fn is_device(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn is_version(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".+-_~".contains(&b))
}

fn is_dns_label(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.len() <= DeploymentName::MAX
        && edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn is_workload(text: &str) -> bool {
    match text.split_once('.') {
        Some((name, index)) => is_dns_label(name) && is_number(index),
        None => is_dns_label(text),
    }
}

fn is_container(text: &str) -> bool {
    text.rsplit_once('.').is_some_and(|(workload, n)| is_workload(workload) && is_number(n))
}

/// A `u32` written one way only, so that no two texts name the same thing.
fn is_number(text: &str) -> bool {
    text.parse::<u32>().is_ok_and(|n| n.to_string() == text)
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(#[serde(with = "serde_bytes")] pub [u8; $len]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            /// Reads lower-case hexadecimal digits.
            fn from_str(text: &str) -> Result<Self, IdError> {
                crate::id::from_hex(text).map(Self).ok_or_else(|| IdError::Characters {
                    what: stringify!($name),
                    text: text.chars().take(80).collect(),
                    rule: concat!("use ", stringify!($len), " bytes in hexadecimal"),
                })
            }
        }
    };
}
pub(crate) use byte_id;

byte_id!(
    /// A SHA-256 digest (FIPS 180-4), shown in hexadecimal.
    Digest, 32
);
byte_id!(
    /// Names one life of a device's outbox: a device that lost its outbox counts from 1 again
    /// under another id.
    OutboxId, 8
);
byte_id!(
    /// Names one leased stream of logs.
    StreamId, 8
);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
        let mut out = [0; 32];
        out.copy_from_slice(digest.as_ref());
        Self(out)
    }

    /// The first 12 hexadecimal digits: what people read and type.
    pub fn short(&self) -> String {
        self.to_string().chars().take(12).collect()
    }
}

pub(crate) fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut out = [0; N];
    if text.len() != N * 2 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_refused_say_why() {
        let long = "a".repeat(300);
        for (text, ok) in [
            ("web", true),
            ("a-1", true),
            ("", false),
            ("-a", false),
            ("a-", false),
            ("A", false),
            ("a/b", false),
            ("a.b", false),
            (long.as_str(), false),
        ] {
            assert_eq!(text.parse::<DeploymentName>().is_ok(), ok, "{text}");
        }
        let error = long.parse::<DeploymentName>().unwrap_err().to_string();
        assert!(error.ends_with("must have 1 to 63 characters"), "{error}");
    }

    #[test]
    fn container_ids_name_one_workload_each() {
        let name: DeploymentName = "web".parse().unwrap();
        let everywhere = ContainerId::new(&WorkloadId::everywhere(&name), 3);
        let replica = ContainerId::new(&WorkloadId::replica(&name, 3), 1);
        assert_eq!(everywhere.as_str(), "web.3");
        assert_eq!(replica.as_str(), "web.3.1");
        assert_eq!(everywhere.parts(), Some((WorkloadId::everywhere(&name), 3)));
        assert_eq!(replica.parts(), Some((WorkloadId::replica(&name, 3), 1)));
        assert!("web.03".parse::<WorkloadId>().is_err());
    }

    #[test]
    fn the_longest_names_fit() {
        let name: DeploymentName = "a".repeat(63).parse().unwrap();
        let container = ContainerId::new(&WorkloadId::replica(&name, u32::MAX), u32::MAX);
        assert_eq!(container.as_str().len(), ContainerId::MAX);
        assert_eq!(container.as_str().parse::<ContainerId>().unwrap(), container);
    }
}
