//! Signatures of images, in the form that cosign keeps beside an image in its repository: a manifest
//! tagged `sha256-HEX.sig` with a layer per signature (cosign's SIGNATURE_SPEC.md). Verified by the
//! keys that policies list, and nothing else: no certificate, no log, no clock.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use limpet_protocol::{Digest, ImageKey, ImageName, ImagePolicies};
use serde::Deserialize;

use super::manifest::Manifest;

const MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const TYPE: &str = "cosign container image signature";

/// A manifest of signatures at most, in bytes: one made with a certificate has some 10 KB of it.
pub(super) const MANIFEST_BYTES_MAX: usize = 256 * 1024;
/// Signatures of one image that are looked at.
const SIGNATURES_MAX: usize = 32;
/// What was signed at most, in bytes: a name, a digest, and what the signer adds.
pub(super) const PAYLOAD_BYTES_MAX: u64 = 16 * 1024;
/// Words of strangers are quoted up to this length.
const QUOTED_CHARS_MAX: usize = 80;

/// The tag that signatures of a manifest, or of an index, have.
pub(super) fn tag(digest: &str) -> String {
    format!("{}.sig", digest.replace(':', "-"))
}

/// A signature as its manifest lists it: nothing of it is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    /// Digest of what was signed.
    pub(super) payload: String,
    signature: String,
}

/// The manifest of signatures.
#[derive(Deserialize)]
struct Signatures {
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What was signed (containers-signature(5), with cosign's type). Whoever does not understand a
/// field of `critical` must refuse it all.
#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    identity: Identity,
    image: Signed,
    r#type: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Identity {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Signed {
    docker_manifest_digest: String,
}

/// The signatures that a manifest lists; layers of other kinds are none.
///
/// # Errors
/// Why it is no manifest of signatures that is read.
pub(super) fn listed(manifest: &[u8]) -> Result<Vec<Listed>, String> {
    if manifest.len() > MANIFEST_BYTES_MAX {
        let bytes = manifest.len();
        return Err(format!("its signatures' manifest has {bytes} bytes, at most 256 KiB is read"));
    }
    // Digests that are none are refused as they are in any manifest.
    Manifest::parse(manifest)?;
    let Signatures { layers } = serde_json::from_slice(manifest)
        .map_err(|e| format!("its signatures' manifest is none: {e}"))?;
    let mut all = Vec::new();
    for layer in layers.into_iter().filter(|layer| layer.media_type == MEDIA_TYPE) {
        let Layer { digest, size, mut annotations, .. } = layer;
        if size > PAYLOAD_BYTES_MAX {
            return Err(format!(
                "one of its signatures is for {size} bytes, at most 16 KiB is read"
            ));
        }
        let signature = annotations.remove(ANNOTATION).unwrap_or_default();
        all.push(Listed { payload: digest, signature });
    }
    if all.len() > SIGNATURES_MAX {
        return Err(format!("it has {} signatures, {SIGNATURES_MAX} are looked at", all.len()));
    }
    Ok(all)
}

/// The digest that a payload speaks of, whoever made it.
pub(super) fn subject(payload: &[u8]) -> Option<String> {
    let payload: Payload = serde_json::from_slice(payload).ok()?;
    Some(payload.critical.image.docker_manifest_digest)
}

/// An image that is to be vouched for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) name: &'a ImageName,
    /// Digests of its manifest, and of the index that lists it.
    pub(super) digests: &'a [&'a str],
}

/// Signatures, each with what was signed.
pub(super) type Seen = Vec<(Listed, Vec<u8>)>;

impl Subject<'_> {
    /// Whether signatures are what each policy asks for: one good one by any of its keys.
    ///
    /// # Errors
    /// Which policy is not satisfied, and what is wrong with each signature.
    pub(super) fn satisfies(&self, policies: &ImagePolicies, seen: &Seen) -> Result<(), String> {
        for (whose, policy) in policies.each().filter(|(_, policy)| !policy.keys.is_empty()) {
            let mut reasons = Vec::new();
            let good = seen.iter().any(|(listed, payload)| {
                let verified = self.verify(listed, payload, &policy.keys);
                verified.map_err(|reason| reasons.push(reason)).is_ok()
            });
            if !good {
                reasons.dedup();
                let keys = policy.keys.len();
                let why = match reasons.as_slice() {
                    [] => "it has none".to_owned(),
                    reasons => reasons.join("; "),
                };
                return Err(format!(
                    "{whose} (keys) asks for a cosign signature by one of {keys} keys: {why}"
                ));
            }
        }
        Ok(())
    }

    /// Whether a signature is by one of these keys, and for this image.
    fn verify(&self, listed: &Listed, payload: &[u8], keys: &[ImageKey]) -> Result<(), String> {
        if format!("sha256:{}", Digest::of(payload)) != listed.payload {
            return Err("what was signed has another digest than its manifest says".to_owned());
        }
        // As cosign reads it: others break it into lines.
        let signature: String = listed.signature.split_ascii_whitespace().collect();
        let signature = STANDARD.decode(signature);
        let signature = signature.map_err(|_| "a signature is no base64".to_owned())?;
        if !keys.iter().any(|key| key.verifies(payload, &signature)) {
            return Err("a signature is by another key, or for other bytes".to_owned());
        }
        // Only what one of the keys has signed is looked into.
        let Payload { critical } = serde_json::from_slice(payload)
            .map_err(|e| format!("what was signed is nothing that cosign signs: {e}"))?;
        let Critical { identity, image, r#type } = critical;
        if r#type != TYPE {
            return Err(format!("a signature is of type {}, not {TYPE:?}", quoted(&r#type)));
        }
        let digest = image.docker_manifest_digest;
        if !self.digests.contains(&digest.as_str()) {
            return Err(format!("a signature is for {}", quoted(&digest)));
        }
        if !is_for(&identity.docker_reference, self.name) {
            let reference = quoted(&identity.docker_reference);
            return Err(format!("a signature is for the name {reference}"));
        }
        Ok(())
    }
}

/// Whether a signature's name is the image's: the same registry and repository, read as Docker reads
/// them, wherever a mirror brought the image from. A tag, which cosign leaves out unless it is told
/// one and others write, must be the image's where the image is named by tag: what was signed as
/// `:test` is not `:stable`.
fn is_for(reference: &str, image: &ImageName) -> bool {
    let (named, _) = reference.split_once('@').unwrap_or((reference, ""));
    let has_tag = named.rsplit('/').next().is_some_and(|last| last.contains(':'));
    let Ok(signed) = named.parse::<ImageName>() else {
        return false;
    };
    (signed.registry(), signed.repository()) == (image.registry(), image.repository())
        && (!has_tag || image.digest().is_some() || signed.tag() == image.tag())
}

fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(QUOTED_CHARS_MAX).collect::<String>())
}

#[cfg(any(test, fuzzing))]
pub(super) mod fuzz;
#[cfg(test)]
mod tests;
