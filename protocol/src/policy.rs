//! What images must be before anything of them runs: for a whole fleet, and for one deployment.
//!
//! Read by the controller, which refuses what it can already see, and held by devices, which believe
//! neither the controller's reading nor any registry.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::image::{ImageName, is_component, is_host};

mod key;

pub use key::{ImageKey, ImageKeyError};

/// Keys of one policy at most: they travel with every workload.
pub const KEYS_MAX: usize = 16;
/// Registries of one policy at most.
pub const REGISTRIES_MAX: usize = 64;
/// A registry with its path at most, in bytes: as long as an image name.
const REGISTRY_BYTES_MAX: usize = 255;
/// What a message lists of them at most, in bytes.
const ALLOWED_BYTES_MAX: usize = 160;

/// What images must be. One that says nothing permits everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePolicy {
    /// Whether they must be named by digest.
    #[serde(rename = "d", default, skip_serializing_if = "DigestRule::is_optional")]
    pub digest: DigestRule,
    /// Where they may come from; from anywhere where empty.
    #[serde(rename = "r", default, skip_serializing_if = "Vec::is_empty")]
    pub registries: Vec<RegistryPath>,
    /// Whose cosign signature they must carry: any one of these; none is asked for where empty.
    #[serde(rename = "k", default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<ImageKey>,
}

/// Whether images must be named by digest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DigestRule {
    /// A tag will do.
    #[default]
    #[serde(rename = "o")]
    Optional,
    /// A tag is refused: whoever owns the registry decides what it stands for.
    #[serde(rename = "r")]
    Required,
}

impl DigestRule {
    fn is_optional(&self) -> bool {
        *self == Self::Optional
    }
}

/// A registry, or a part of one: `ghcr.io`, `ghcr.io/acme`. From the wire it may be anything: what
/// is no registry matches no image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RegistryPath(String);

/// Why a text is no registry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no registry: write HOST[:PORT][/PATH], as docker.io or ghcr.io/acme")]
pub struct RegistryPathError(String);

/// How an image name breaks a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It is named by tag only.
    #[error("it must be named by digest ({name}@sha256:...): a tag can change what it stands for")]
    Tag {
        /// Registry and repository.
        name: String,
    },
    /// It comes from elsewhere.
    #[error("its registry is not allowed: {name} is in none of {allowed}")]
    Registry {
        /// Registry and repository.
        name: String,
        /// Those that are.
        allowed: String,
    },
}

impl Violation {
    /// The field of the policy that it breaks.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::Tag { .. } => "digest",
            Self::Registry { .. } => "registries",
        }
    }
}

impl ImagePolicy {
    /// Whether it asks for nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// All ways in which a name breaks it. Signatures are seen only where the image is.
    pub fn violations(&self, image: &ImageName) -> Vec<Violation> {
        let name = format!("{}/{}", image.registry(), image.repository());
        let mut violations = Vec::new();
        if self.digest == DigestRule::Required && image.digest().is_none() {
            violations.push(Violation::Tag { name: name.clone() });
        }
        let from_there = self.registries.iter().any(|registry| registry.holds(image));
        if !self.registries.is_empty() && !from_there {
            violations.push(Violation::Registry { name, allowed: self.allowed() });
        }
        violations
    }

    /// Its registries, as far as a message has room for them.
    fn allowed(&self) -> String {
        let all: Vec<&str> = self.registries.iter().map(RegistryPath::as_str).collect();
        let mut text = all.join(", ");
        if text.len() > ALLOWED_BYTES_MAX {
            text.truncate(text.floor_char_boundary(ALLOWED_BYTES_MAX));
            text += "...";
        }
        text
    }
}

impl RegistryPath {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether an image belongs there: to the registry, and below the path, by whole parts.
    pub fn holds(&self, image: &ImageName) -> bool {
        let (host, path) = self.0.split_once('/').unwrap_or((&self.0, ""));
        let below = || image.repository().strip_prefix(path)?.chars().next();
        host == image.registry()
            && (path.is_empty() || path == image.repository() || below() == Some('/'))
    }
}

impl FromStr for RegistryPath {
    type Err = RegistryPathError;

    fn from_str(text: &str) -> Result<Self, RegistryPathError> {
        let (host, path) = match text.split_once('/') {
            Some((host, path)) => (host, Some(path)),
            None => (text, None),
        };
        let named = host.contains(['.', ':']) || host == "localhost";
        let parts = path.is_none_or(|path| path.split('/').all(is_component));
        if !named || !is_host(host) || !parts || text.len() > REGISTRY_BYTES_MAX {
            return Err(RegistryPathError(text.chars().take(60).collect()));
        }
        // As image names are read.
        let rest = text.strip_prefix("index.docker.io");
        let text = rest.map_or_else(|| text.to_owned(), |rest| format!("docker.io{rest}"));
        Ok(Self(text))
    }
}

impl fmt::Display for RegistryPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// All that an image must be on a device: both policies hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImagePolicies {
    /// The fleet's.
    pub fleet: Option<ImagePolicy>,
    /// That of the deployment which wants the image.
    pub deployment: Option<ImagePolicy>,
}

impl ImagePolicies {
    /// Each with what it is called, for a person.
    pub fn each(&self) -> impl Iterator<Item = (&'static str, &ImagePolicy)> {
        let fleet = self.fleet.iter().map(|policy| ("the fleet's policy", policy));
        fleet.chain(self.deployment.iter().map(|policy| ("its deployment's image_policy", policy)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(registries: &[&str]) -> ImagePolicy {
        let registries = registries.iter().map(|text| text.parse().unwrap()).collect();
        ImagePolicy { registries, ..ImagePolicy::default() }
    }

    #[test]
    fn an_image_is_from_a_registry_or_a_part_of_it() {
        for (registries, image, allowed) in [
            (&[][..], "r.io/a", true),
            (&["r.io"], "r.io/a", true),
            (&["r.io"], "r.io:5000/a", false),
            (&["r.io"], "evil.r.io/a", false),
            (&["r.io"], "r.io.evil.example/a", false),
            (&["a.io", "r.io:5000"], "r.io:5000/x/y:1", true),
            (&["r.io/acme"], "r.io/acme/web", true),
            (&["r.io/acme"], "r.io/acme", true),
            (&["r.io/acme"], "r.io/acmevil/web", false),
            (&["r.io/acme"], "r.io/other/acme", false),
            (&["docker.io"], "node", true),
            (&["index.docker.io/library"], "node", true),
            (&["docker.io/library"], "acme/web", false),
            (&["localhost:5000"], "localhost:5000/a", true),
        ] {
            let found = policy(registries).violations(&image.parse().unwrap());
            assert_eq!(found.is_empty(), allowed, "{image} of {registries:?}: {found:?}");
        }
        for text in ["", "acme", "r.io/", "/a", "r.io/A", "https://r.io", "r.io/a//b", "*.io"] {
            assert!(text.parse::<RegistryPath>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_way_to_break_it_is_told() {
        let digest = DigestRule::Required;
        let strict = ImagePolicy { digest, ..policy(&["r.io/acme", "s.io"]) };
        let told = |image: &str| -> Vec<String> {
            let violations = strict.violations(&image.parse().unwrap());
            violations.iter().map(|broken| format!("{}: {broken}", broken.rule())).collect()
        };
        assert_eq!(
            told("node:1"),
            [
                "digest: it must be named by digest (docker.io/library/node@sha256:...): a tag can \
                 change what it stands for",
                "registries: its registry is not allowed: docker.io/library/node is in none of \
                 r.io/acme, s.io",
            ]
        );
        let digest = format!("sha256:{}", "0a".repeat(32));
        assert!(told(&format!("r.io/acme/web:1@{digest}")).is_empty());
    }
}
