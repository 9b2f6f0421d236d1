//! The documents of an image: index, manifest and config, of OCI and of Docker.

use std::str::FromStr;

use limpet_protocol::Digest;
use limpet_protocol::image::is_digest;
use serde::{Deserialize, Deserializer, Serialize};

/// What is asked for, in the order of preference.
pub(super) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A manifest or an index of manifests (OCI image-spec, manifest.md and image-index.md).
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    #[serde(default)]
    pub(super) config: Option<Descriptor>,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

/// Something with a digest (OCI image-spec, descriptor.md).
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Descriptor {
    #[serde(rename = "mediaType", default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(default)]
    pub(super) platform: Option<Platform>,
}

/// What an image was made for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Platform {
    os: String,
    architecture: String,
    #[serde(default)]
    variant: String,
}

/// The config (OCI image-spec, config.md).
#[derive(Debug, Deserialize)]
pub(super) struct ConfigFile {
    #[serde(default)]
    pub(super) config: Option<ImageConfig>,
    pub(super) rootfs: RootFs,
    #[serde(flatten)]
    platform: Option<Platform>,
}

/// The digests of the layers before compression.
#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    pub(super) diff_ids: Vec<String>,
}

/// How an image says that it should be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase"), default)]
pub struct ImageConfig {
    /// `KEY=VALUE`.
    #[serde(alias = "env", deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The program, and arguments that always come first.
    #[serde(alias = "entrypoint", deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Arguments, or the program where there is no entrypoint.
    #[serde(alias = "cmd", deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Where it starts.
    #[serde(alias = "working_dir")]
    pub working_dir: Option<String>,
    /// `USER[:GROUP]`.
    #[serde(alias = "user")]
    pub user: Option<String>,
    /// What it wants to be sent when it should end.
    #[serde(alias = "stop_signal")]
    pub stop_signal: Option<String>,
}

/// Builders write `null` where they mean an empty list.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Manifest {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|e| format!("its manifest is not one of OCI or Docker: {e}"))?;
        let all = manifest.config.iter().chain(&manifest.layers).chain(&manifest.manifests);
        match all.map(|descriptor| &descriptor.digest).find(|digest| !is_digest(digest)) {
            Some(digest) => Err(format!("{digest:?} is no SHA-256 digest")),
            None => Ok(manifest),
        }
    }

    /// An index of these manifests.
    pub(super) fn of(manifests: Vec<Descriptor>) -> Self {
        Self { config: None, layers: Vec::new(), manifests }
    }

    /// Whether it is an index that lists this manifest.
    pub(super) fn lists(&self, digest: &str) -> bool {
        self.manifests.iter().any(|descriptor| descriptor.digest == digest)
    }

    /// The manifest of an index for a platform: its exact variant, otherwise the nearest older one.
    pub(super) fn choose(&self, here: &Platform) -> Result<&Descriptor, String> {
        let distance = |descriptor: &&Descriptor| {
            let platform = descriptor.platform.as_ref()?;
            here.runs(platform)
        };
        let fit = self.manifests.iter().filter(|d| distance(d).is_some());
        fit.min_by_key(distance).ok_or_else(|| {
            let offered: Vec<String> = self
                .manifests
                .iter()
                .filter_map(|d| d.platform.as_ref())
                .filter(|platform| platform.os != "unknown")
                .map(Platform::show)
                .collect();
            format!("it is made for {}, this device is {}", offered.join(", "), here.show())
        })
    }
}

impl ConfigFile {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let file: Self = serde_json::from_slice(bytes).map_err(|e| format!("its config: {e}"))?;
        match file.rootfs.diff_ids.iter().find(|diff_id| !is_digest(diff_id)) {
            Some(diff_id) => Err(format!("its config: {diff_id:?} is no SHA-256 digest")),
            None => Ok(file),
        }
    }
}

impl ConfigFile {
    /// Why an image does not run on `here`; what names no platform is taken at its word.
    pub(super) fn foreign(&self, here: &Platform) -> Option<String> {
        let platform = self.platform.as_ref().filter(|platform| here.runs(platform).is_none())?;
        Some(format!("it is made for {}, this device is {}", platform.show(), here.show()))
    }
}

impl FromStr for Platform {
    type Err = String;

    /// Reads `OS/ARCHITECTURE[/VARIANT]`, as OCI names them.
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts.as_slice() {
            [os, architecture, variant] => (os, architecture, *variant),
            // As Docker has it (containerd, platforms).
            [os, architecture @ "arm"] => (os, architecture, "v7"),
            [os, architecture @ "arm64"] => (os, architecture, "v8"),
            [os, architecture] => (os, architecture, ""),
            _ => {
                let wants = "write OS/ARCHITECTURE[/VARIANT], as linux/arm/v7";
                return Err(format!("platform {text:?}: {wants}"));
            }
        };
        let [os, architecture, variant] = [*os, *architecture, variant].map(str::to_owned);
        Ok(Self { os, architecture, variant })
    }
}

impl Platform {
    /// This device's.
    pub(super) fn here() -> Self {
        let facts = crate::facts::gather();
        Self {
            os: "linux".to_owned(),
            architecture: facts.arch.to_string(),
            variant: facts.variant.to_string(),
        }
    }

    /// How many variants back an image for `other` is; None where it does not run here.
    fn runs(&self, other: &Self) -> Option<u8> {
        if (&self.os, &self.architecture) != (&other.os, &other.architecture) {
            return None;
        }
        let number = |variant: &str| variant.strip_prefix('v')?.parse::<u8>().ok();
        match (number(&self.variant), number(&other.variant)) {
            (Some(ours), Some(theirs)) => ours.checked_sub(theirs),
            (_, None) => Some(u8::MAX),
            (None, Some(_)) => None,
        }
    }

    fn show(&self) -> String {
        let Self { os, architecture, variant } = self;
        if variant.is_empty() {
            format!("{os}/{architecture}")
        } else {
            format!("{os}/{architecture}/{variant}")
        }
    }
}

/// Reads a digest as OCI writes it.
pub(super) fn digest(text: &str) -> Option<Digest> {
    text.strip_prefix("sha256:")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[&str]) -> Manifest {
        let manifests: Vec<_> = platforms
            .iter()
            .enumerate()
            .map(|(number, platform)| {
                let mut parts = platform.split('/');
                serde_json::json!({
                    "digest": format!("sha256:{number:0>64}"), "size": 1,
                    "platform": { "os": "linux", "architecture": parts.next(),
                                  "variant": parts.next().unwrap_or("") }
                })
            })
            .collect();
        let text = serde_json::json!({ "manifests": manifests }).to_string();
        Manifest::parse(text.as_bytes()).unwrap()
    }

    fn chosen(here: &str, offered: &[&str]) -> Option<usize> {
        let mut parts = here.split('/');
        let here = Platform {
            os: "linux".into(),
            architecture: parts.next().unwrap().into(),
            variant: parts.next().unwrap_or("").into(),
        };
        let index = index(offered);
        let digest = &index.choose(&here).ok()?.digest;
        index.manifests.iter().position(|d| d.digest == *digest)
    }

    #[test]
    fn the_nearest_variant_is_chosen() {
        for (here, offered, expected) in [
            ("amd64", &["arm64", "amd64"][..], Some(1)),
            ("arm/v7", &["arm/v5", "arm/v6", "arm/v7", "arm64/v8"], Some(2)),
            ("arm/v7", &["arm/v5", "arm/v6"], Some(1)),
            ("arm/v6", &["arm/v7"], None),
            ("arm64/v8", &["arm64"], Some(0)),
            ("arm/v7", &["arm64/v8", "arm"], Some(1)),
            ("amd64", &[], None),
        ] {
            assert_eq!(chosen(here, offered), expected, "{here} of {offered:?}");
        }
    }

    #[test]
    fn a_config_may_say_null() {
        let text = br#"{"config":{"Env":null,"Cmd":["a"],"User":"u"},"rootfs":{"diff_ids":[]}}"#;
        let config = ConfigFile::parse(text).unwrap().config.unwrap();
        assert_eq!((config.env.len(), config.cmd.len(), config.user), (0, 1, Some("u".into())));
        assert!(ConfigFile::parse(br#"{"rootfs":{"diff_ids":["../x"]}}"#).is_err());
    }
}
