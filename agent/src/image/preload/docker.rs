//! What `docker save`, and skopeo and others in its name, write (moby, image/spec/v1.2.md).

use std::collections::BTreeMap;
use std::io::Read;

use limpet_protocol::Digest;
use ring::digest::{Context, SHA256};
use serde::Deserialize;
use serde_json::json;

use super::{IMAGES_MAX, Offered};
use crate::image::archive::{Content, Files};
use crate::image::layer::{Compression, oci_digest};
use crate::image::manifest::{ConfigFile, Manifest};
use crate::image::proof::Proof;
use crate::image::{ImageError, ImageName, LAYERS_MAX};

const LIST: &str = "manifest.json";

/// One image, in the list that `manifest.json` is.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// The images of an archive. They have no manifests of OCI's form: those are made here.
pub(super) fn offered(files: &Files) -> Result<Vec<Offered>, ImageError> {
    let entries: Vec<Entry> = serde_json::from_slice(&files.document(LIST)?)
        .map_err(|e| files.fault(LIST, &format!("is no list of images: {e}")))?;
    if entries.len() > IMAGES_MAX {
        let reason = format!("lists {} images, {IMAGES_MAX} are taken", entries.len());
        return Err(files.fault(LIST, &reason));
    }
    entries.iter().map(|entry| image(files, entry)).collect()
}

fn image(files: &Files, entry: &Entry) -> Result<Offered, ImageError> {
    let config = config(files, &entry.config)?;
    let file = ConfigFile::parse(&config).map_err(|reason| files.fault(&entry.config, &reason))?;
    let diff_ids = file.rootfs.diff_ids;
    if diff_ids.len() != entry.layers.len() || diff_ids.len() > LAYERS_MAX {
        let (layers, ids) = (entry.layers.len(), diff_ids.len());
        let reason = format!("lists {layers} layers for {ids} diff ids; at most {LAYERS_MAX}");
        return Err(files.fault(LIST, &reason));
    }
    let (mut layers, mut places) = (Vec::new(), BTreeMap::new());
    for (path, diff_id) in entry.layers.iter().zip(&diff_ids) {
        let (compression, digest, size) = layer(files, path, diff_id)?;
        let media_type = compression.media_type();
        layers.push(json!({ "mediaType": media_type, "digest": digest, "size": size }));
        places.insert(digest, path.clone());
    }
    let bytes = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": format!("sha256:{}", Digest::of(&config)),
            "size": config.len(),
        },
        "layers": layers,
    });
    let bytes = bytes.to_string().into_bytes();
    let manifest = Manifest::parse(&bytes).map_err(|reason| files.fault(LIST, &reason))?;
    let digest = format!("sha256:{}", Digest::of(&bytes));
    let answers_to = vec![digest.clone()];
    let names = names(files, entry)?;
    // Nobody can have signed a manifest that is made here.
    let proof = Proof::default();
    Ok(Offered { names, answers_to, digest, bytes, manifest, config, files: places, proof })
}

fn names(files: &Files, entry: &Entry) -> Result<Vec<ImageName>, ImageError> {
    let tags = entry.repo_tags.iter().flatten();
    let names = tags.map(|tag| tag.parse().map_err(|e| files.fault(LIST, &format!("has an {e}"))));
    names.collect()
}

/// The config, which most name by its digest.
fn config(files: &Files, path: &str) -> Result<Vec<u8>, ImageError> {
    let bytes = files.document(path)?;
    let name = path.rsplit('/').next().unwrap_or(path);
    let claimed: Option<Digest> = name.strip_suffix(".json").unwrap_or(name).parse().ok();
    let actual = Digest::of(&bytes);
    match claimed {
        Some(claimed) if claimed != actual => {
            Err(files.fault(path, &format!("has bytes of sha256:{actual}: it is damaged")))
        }
        Some(_) | None => Ok(bytes),
    }
}

/// How a layer is packed, its digest as it is, and its size. One that is not compressed is what its
/// diff id says, which unpacking verifies.
fn layer(
    files: &Files,
    path: &str,
    diff_id: &str,
) -> Result<(Compression, String, u64), ImageError> {
    let fail = |e: std::io::Error| files.fault(path, &format!("cannot be read: {e}"));
    let Content { mut reader, size, compression } = files.content(path)?;
    let digest = match compression {
        Compression::None => diff_id.to_owned(),
        Compression::Gzip | Compression::Zstd => {
            let mut hash = Context::new(&SHA256);
            let mut buffer = vec![0; 64 * 1024];
            while let read @ 1.. = reader.read(&mut buffer).map_err(fail)? {
                hash.update(&buffer[..read]);
            }
            oci_digest(hash)
        }
    };
    Ok((compression, digest, size))
}
