//! Images on this device: named as Docker names them, pulled from registries, verified, unpacked
//! once per layer.
//!
//! ```text
//! names/     image name -> digest of its manifest, and whether it is pinned
//! blobs/     manifests, configs and signatures, and layers on their way (.part)
//! layers/    unpacked layers, named by their diff id
//! ```

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};

use limpet_protocol::Digest;
pub use limpet_protocol::{ImageName, NameError};
use serde::{Deserialize, Serialize};

mod archive;
mod auth;
mod blob;
mod collect;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod layer;
mod manifest;
mod outage;
mod preload;
mod proof;
mod pull;
mod registry;
mod room;
mod signature;
mod unpack;
mod zstd;

pub(crate) use blob::Part;
pub use error::ImageError;
pub use manifest::{ImageConfig, Platform};
pub use preload::{Preloaded, pinned};
pub use registry::Registries;

use blob::Blobs;
use error::io;
use layer::Layers;
use manifest::{ConfigFile, Descriptor, Manifest};
use proof::Proof;
use registry::Registry;
use room::Wanted;

/// Layers of one image at most: what one overlay mount carries.
const LAYERS_MAX: usize = 120;
/// Manifests and configs are read up to this size (the distribution specification asks for 4 MiB).
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// The images of this device.
pub struct Images {
    names: PathBuf,
    blobs: Blobs,
    layers: Layers,
    registry: Registry,
    platform: Platform,
    /// Read while something is being had, written while something goes.
    in_use: RwLock<()>,
    /// An image could not be had for want of room.
    lacks_room: AtomicBool,
    /// Held while an image is named: two pulls of one image end at the same time.
    naming: Mutex<()>,
}

/// An image that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Folder that its layers are in.
    pub layers_dir: PathBuf,
    /// Names of its layers in it, lowest first.
    pub layers: Vec<String>,
    /// What it says of how to run it.
    pub config: ImageConfig,
}

/// How far a pull has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes that are here.
    pub received: u64,
    /// Bytes in all.
    pub total: u64,
}

/// The documents that make an image.
struct Parts {
    /// Digest of its manifest.
    manifest: String,
    /// Digest of its config.
    config: String,
    file: ConfigFile,
}

/// The digests and bytes of an image's manifest and config.
type Described<'a> = [(&'a String, &'a Vec<u8>); 2];

/// A name and the manifest it stood for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Named {
    name: String,
    manifest: String,
    #[serde(default)]
    keep: Keep,
    /// The index that it was chosen from: it may be what is signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    index: Option<String>,
    /// Manifests of its signatures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    signatures: Vec<String>,
}

/// How long an image stays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Keep {
    /// Until room is short and nothing needs it.
    #[default]
    WhileNeeded,
    /// Until somebody says otherwise: it was brought here by hand, and perhaps cannot be had again.
    Pinned,
}

impl Images {
    /// The store in `folder`; makes it where it is missing, and sweeps what a power cut left.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(folder: &Path, registries: Registries) -> Result<Self, ImageError> {
        let names = folder.join("names");
        std::fs::create_dir_all(&names).map_err(io("make", &names))?;
        Ok(Self {
            names,
            blobs: Blobs::open(folder.join("blobs"))?,
            layers: Layers::open(folder.join("layers"))?,
            registry: Registry::new(registries)?,
            platform: Platform::here(),
            in_use: RwLock::new(()),
            lacks_room: AtomicBool::new(false),
            naming: Mutex::new(()),
        })
    }

    /// The device's link was down and is up: every registry may be asked again.
    pub fn link_is_back(&self) {
        self.registry.forget_outages();
    }

    /// The image if it is complete here; asks nobody.
    pub fn local(&self, name: &ImageName) -> Option<Image> {
        self.complete_image(&self.stands_for(name)?)
    }

    /// What a name stands for, as far as it was ever had.
    fn stands_for(&self, name: &ImageName) -> Option<Named> {
        read_named(&self.named(name)).filter(|named| named.name == name.to_string())
    }

    /// What a name stands for, if all of that is here.
    fn complete_image(&self, named: &Named) -> Option<Image> {
        let Parts { manifest, file, .. } = self.parts(named)?;
        let diff_ids = file.rootfs.diff_ids.iter();
        let layers: Option<Vec<String>> = diff_ids.map(|id| self.layers.find(id)).collect();
        Some(Image {
            digest: manifest::digest(&manifest)?,
            layers_dir: self.layers.folder.clone(),
            layers: layers?,
            config: file.config.unwrap_or_default(),
        })
    }

    /// The documents of an image, if they are here.
    fn parts(&self, named: &Named) -> Option<Parts> {
        let digest = named.manifest.clone();
        let manifest: Manifest = serde_json::from_slice(&self.blobs.document(&digest)?).ok()?;
        let config = manifest.config?.digest;
        let file = serde_json::from_slice(&self.blobs.document(&config)?).ok()?;
        Some(Parts { manifest: digest, config, file })
    }

    /// Notes where an image could not be had for want of room.
    fn note_room<T>(&self, had: &Result<T, ImageError>) {
        if had.as_ref().is_err_and(ImageError::is_for_want_of_room) {
            self.lacks_room.store(true, Ordering::Relaxed);
        }
    }

    /// Something is being had: nothing goes meanwhile.
    fn begin(&self) -> RwLockReadGuard<'_, ()> {
        self.in_use.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The digests of an image's unpacked layers, if it is one for this device.
    fn diff_ids(&self, manifest: &Manifest, config: &[u8]) -> Result<Vec<String>, String> {
        let file = ConfigFile::parse(config)?;
        if let Some(reason) = file.foreign(&self.platform) {
            return Err(reason);
        }
        let (layers, ids) = (manifest.layers.len(), file.rootfs.diff_ids.len());
        if layers != ids || ids > LAYERS_MAX {
            return Err(format!(
                "{layers} layers and {ids} diff ids; at most {LAYERS_MAX} of each"
            ));
        }
        Ok(file.rootfs.diff_ids)
    }

    /// Those of an image's layers that are not here; `to_receive` says how many bytes of one have
    /// yet to come.
    fn missing<'a>(
        &self,
        pairs: &[(&'a Descriptor, &'a String)],
        to_receive: impl Fn(&Descriptor) -> u64,
    ) -> Vec<Wanted<'a>> {
        let missing = pairs.iter().filter(|(_, diff_id)| self.layers.find(diff_id).is_none());
        let wanted = missing.map(|(layer, diff_id)| Wanted {
            layer,
            diff_id,
            to_receive: to_receive(layer),
            unpacked: self.layers.unpacked_bytes(diff_id).unwrap_or(layer.size),
        });
        wanted.collect()
    }

    /// Checks before anything is had that it is of a kind we know, and that it fits.
    fn check_room(&self, name: &ImageName, missing: &[Wanted<'_>]) -> Result<(), ImageError> {
        for Wanted { layer, .. } in missing {
            layer::compression(layer).map_err(|source| ImageError::Layer {
                name: name.clone(),
                layer: layer.digest.clone(),
                source,
            })?;
        }
        let path = &self.layers.folder;
        let (needs, free) = (room::needed_bytes(missing), room::spare_bytes(path)?);
        if needs > free {
            return Err(ImageError::Space { name: name.clone(), path: path.clone(), needs, free });
        }
        Ok(())
    }

    /// Keeps the documents of an image whose layers are here, the manifest first, and names it: with
    /// that it is complete.
    fn complete(
        &self,
        name: &ImageName,
        (parts, proof): (Described<'_>, &Proof),
        keep: Keep,
    ) -> Result<(), ImageError> {
        let [(manifest, _), _] = parts;
        let _alone = self.naming.lock().unwrap_or_else(PoisonError::into_inner);
        proof.documents().try_for_each(|(digest, bytes)| self.blobs.keep(digest, bytes))?;
        parts.iter().try_for_each(|(digest, bytes)| self.blobs.keep(digest, bytes))?;
        let digest_of = |(digest, _): &(String, Vec<u8>)| digest.clone();
        let mut named = Named {
            name: name.to_string(),
            manifest: manifest.clone(),
            keep,
            index: proof.index.as_ref().map(digest_of),
            signatures: proof.manifests.iter().map(digest_of).collect(),
        };
        let path = self.named(name);
        if let Some(before) = read_named(&path) {
            if before.keep == Keep::Pinned {
                named.keep = Keep::Pinned;
            }
            // What vouched for it before still does.
            if before.manifest == named.manifest {
                named.index = named.index.or(before.index);
                if named.signatures.is_empty() {
                    named.signatures = before.signatures;
                }
            }
        }
        write_named(&path, &named)
    }

    fn named(&self, name: &ImageName) -> PathBuf {
        self.names.join(Digest::of(name.to_string().as_bytes()).short())
    }
}

fn read_named(path: &Path) -> Option<Named> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write_named(path: &Path, named: &Named) -> Result<(), ImageError> {
    replace(path, &serde_json::to_vec(named).unwrap_or_default())
}

/// What is in a folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let entries = std::fs::read_dir(folder).map_err(io("read", folder))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// Replaces a file whole: a power cut leaves the old one or the new one.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    // Two pulls of one image write the same documents: one after the other, under one name, so that
    // what a power cut leaves of it is written over.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let fresh = path.with_extension("new");
    let written = || {
        let mut file = std::fs::File::create(&fresh)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        rename(&fresh, path)
    };
    written().map_err(io("write", path))
}

/// Moves a file or folder that is on disk to where it belongs, and has that on disk too.
fn rename(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::rename(from, to)?;
    match to.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
