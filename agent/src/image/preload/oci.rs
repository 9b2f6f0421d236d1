//! OCI's image layout (image-spec, image-layout.md), in a folder or an archive.

use std::collections::BTreeMap;

use limpet_protocol::Digest;
use limpet_protocol::image::is_digest;
use serde::Deserialize;

use super::{IMAGES_MAX, Offered};
use crate::image::archive::Files;
use crate::image::manifest::{Descriptor, Manifest, Platform};
use crate::image::proof::Proof;
use crate::image::signature::PAYLOAD_BYTES_MAX;
use crate::image::{ImageError, ImageName, signature};

/// Annotations that hold a name, the one that always holds a full one first (containerd's, and OCI
/// image-spec, annotations.md).
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
/// What builders put beside images, and is none (in-toto attestations of BuildKit).
const NOT_AN_IMAGE: &str = "vnd.docker.reference.type";

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(flatten)]
    descriptor: Descriptor,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// The images of a layout, each for this platform where there are several of one name.
pub(super) fn offered(files: &Files, here: &Platform) -> Result<Vec<Offered>, ImageError> {
    let fault = |reason: String| files.fault("index.json", &reason);
    let text = files.document("index.json")?;
    let index: Index =
        serde_json::from_slice(&text).map_err(|e| fault(format!("is no index of images: {e}")))?;
    let mut by_name: BTreeMap<Option<ImageName>, Vec<Descriptor>> = BTreeMap::new();
    let mut signatures = Vec::new();
    for entry in index.manifests {
        if !is_digest(&entry.descriptor.digest) {
            return Err(fault(format!("{:?} is no SHA-256 digest", entry.descriptor.digest)));
        }
        let annotations = entry.annotations.unwrap_or_default();
        if signs(&annotations) {
            signatures.push(entry.descriptor.digest);
        } else if !annotations.contains_key(NOT_AN_IMAGE) {
            by_name.entry(name(&annotations)).or_default().push(entry.descriptor);
        }
    }
    for (count, what) in [(by_name.len(), "images"), (signatures.len(), "images' signatures")] {
        if count > IMAGES_MAX {
            return Err(fault(format!("names {count} {what}, {IMAGES_MAX} are taken")));
        }
    }
    let images = by_name.into_iter().map(|(name, descriptors)| {
        let top = match descriptors.as_slice() {
            [one] => one.clone(),
            several => choose(several, here).map_err(fault)?,
        };
        image(files, here, name, &top)
    });
    let mut images = images.collect::<Result<Vec<_>, _>>()?;
    signatures.iter().try_for_each(|digest| attach(files, digest, &mut images))?;
    Ok(images)
}

/// Whether an entry is a manifest of cosign's signatures: `cosign save` says so, and whoever copied
/// it here by its tag has kept that.
fn signs(annotations: &BTreeMap<String, String>) -> bool {
    let tags = NAMES.iter().filter_map(|key| annotations.get(*key));
    let tag = |text: &String| text.contains("sha256-") && text.ends_with(".sig");
    annotations.get("kind").is_some_and(|kind| kind == "dev.cosignproject.cosign/sigs")
        || tags.into_iter().any(tag)
}

/// Gives signatures to the images that they are for.
fn attach(files: &Files, digest: &str, images: &mut [Offered]) -> Result<(), ImageError> {
    let bytes = blob(files, digest)?;
    let listed = signature::listed(&bytes);
    let listed = listed.map_err(|reason| files.fault(&path(digest), &reason))?;
    let payloads = listed.iter().map(|listed| payload(files, &listed.payload));
    let payloads = payloads.collect::<Result<Vec<_>, _>>()?;
    let subjects: Vec<String> =
        payloads.iter().filter_map(|bytes| signature::subject(bytes)).collect();
    let signed = |image: &&mut Offered| subjects.iter().any(|one| image.answers_to.contains(one));
    for image in images.iter_mut().filter(signed) {
        image.proof.add((digest.to_owned(), bytes.clone()), |digest| payload(files, digest))?;
    }
    Ok(())
}

/// The full name that annotations give; a tag alone is none.
fn name(annotations: &BTreeMap<String, String>) -> Option<ImageName> {
    let texts = NAMES.iter().filter_map(|key| annotations.get(*key));
    let mut full = texts.filter(|text| text.contains(['/', ':']));
    full.find_map(|text| text.parse().ok())
}

fn choose(several: &[Descriptor], here: &Platform) -> Result<Descriptor, String> {
    if several.iter().all(|descriptor| descriptor.platform.is_none()) {
        let count = several.len();
        return Err(format!("lists {count} images with no name or the same one: which is meant?"));
    }
    Manifest::of(several.to_vec())
        .choose(here)
        .cloned()
        .map_err(|reason| format!("says that {reason}"))
}

fn image(
    files: &Files,
    here: &Platform,
    name: Option<ImageName>,
    top: &Descriptor,
) -> Result<Offered, ImageError> {
    let mut digest = top.digest.clone();
    let mut answers_to = vec![digest.clone()];
    let (mut bytes, mut manifest) = manifest(files, &digest)?;
    let mut proof = Proof::default();
    if manifest.config.is_none() {
        let chosen = manifest.choose(here);
        proof.index = Some((digest.clone(), bytes));
        digest = chosen.map_err(|reason| files.fault(&path(&digest), &reason))?.digest.clone();
        (bytes, manifest) = self::manifest(files, &digest)?;
        answers_to.push(digest.clone());
    }
    let Some(config) = &manifest.config else {
        return Err(files.fault(&path(&digest), "names no config"));
    };
    let config = blob(files, &config.digest)?;
    let layers = manifest.layers.iter();
    let places = layers.map(|layer| (layer.digest.clone(), path(&layer.digest))).collect();
    let names = name.into_iter().collect();
    Ok(Offered { names, answers_to, digest, bytes, manifest, config, files: places, proof })
}

fn manifest(files: &Files, digest: &str) -> Result<(Vec<u8>, Manifest), ImageError> {
    let bytes = blob(files, digest)?;
    let manifest = Manifest::parse(&bytes).map_err(|reason| files.fault(&path(digest), &reason))?;
    Ok((bytes, manifest))
}

/// A small blob that is what its name says.
fn blob(files: &Files, digest: &str) -> Result<Vec<u8>, ImageError> {
    let path = path(digest);
    let bytes = files.document(&path)?;
    let actual = Digest::of(&bytes);
    if format!("sha256:{actual}") == digest {
        Ok(bytes)
    } else {
        Err(files.fault(&path, &format!("has bytes of sha256:{actual}: it is damaged")))
    }
}

/// What was signed, bounded as what a registry sends is.
fn payload(files: &Files, digest: &str) -> Result<Vec<u8>, ImageError> {
    let bytes = blob(files, digest)?;
    match bytes.len() as u64 > PAYLOAD_BYTES_MAX {
        true => Err(files.fault(&path(digest), "was signed, and has more than the 16 KiB read")),
        false => Ok(bytes),
    }
}

fn path(digest: &str) -> String {
    format!("blobs/{}", digest.replacen(':', "/", 1))
}
