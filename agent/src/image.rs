//! Images on this device: named as Docker names them, pulled from registries, verified, unpacked
//! once per layer.
//!
//! ```text
//! names/     image name -> digest of its manifest
//! blobs/     manifests and configs, and layers on their way (.part)
//! layers/    unpacked layers, named by their diff id
//! ```

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use limpet_protocol::Digest;
use serde::{Deserialize, Serialize};

mod auth;
mod blob;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod layer;
mod manifest;
mod name;
mod registry;
mod unpack;
mod zstd;

pub use manifest::ImageConfig;
pub use name::{ImageName, NameError};
pub use registry::Registries;

use blob::Blobs;
use layer::Layers;
use manifest::{ConfigFile, Descriptor, Manifest, Platform};
use registry::{Registry, Source};

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

/// Why an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A file or folder of the store.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Nobody has it.
    #[error("image {name}: {}", reasons.join("; "))]
    Unavailable {
        /// The image.
        name: ImageName,
        /// What each registry answered.
        reasons: Vec<String>,
    },
    /// A registry did not answer as it should.
    #[error("{endpoint}: {reason}")]
    Registry {
        /// The registry.
        endpoint: String,
        /// What it did.
        reason: String,
    },
    /// The bytes are not those that were asked for.
    #[error("{what} {expected} has bytes of {actual}: the registry or the link is faulty")]
    Digest {
        /// The image.
        name: ImageName,
        /// Manifest, config or layer.
        what: &'static str,
        /// What was asked for.
        expected: String,
        /// What came.
        actual: String,
    },
    /// A document that says something impossible.
    #[error("{reason}")]
    Document {
        /// The image.
        name: ImageName,
        /// What is wrong.
        reason: String,
    },
    /// A layer that must not be unpacked.
    #[error("layer {layer}: {source}")]
    Layer {
        /// The image.
        name: ImageName,
        /// Its digest.
        layer: String,
        /// What is wrong with it.
        source: unpack::UnpackError,
    },
    /// Not enough room.
    #[error(
        "image {name} needs {needs} bytes, {path} has {free} free: remove something, or use a larger disk"
    )]
    Space {
        /// The image.
        name: ImageName,
        /// The store.
        path: PathBuf,
        /// Bytes to be received.
        needs: u64,
        /// Bytes that are free.
        free: u64,
    },
}

fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> ImageError + 'a {
    move |source| ImageError::Io { action, path: path.into(), source }
}

/// The documents that make an image.
struct Parts {
    /// Digest of its manifest.
    manifest: String,
    /// Digest of its config.
    config: String,
    file: ConfigFile,
}

/// A name and the manifest it stood for.
#[derive(Serialize, Deserialize)]
struct Named {
    name: String,
    manifest: String,
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
        })
    }

    /// The image if it is complete here; asks nobody.
    pub fn local(&self, name: &ImageName) -> Option<Image> {
        let named = self.named(name);
        if read_named(&named)?.name != name.to_string() {
            return None;
        }
        let Parts { manifest, file, .. } = self.parts(&named)?;
        let diff_ids = file.rootfs.diff_ids.iter();
        let layers: Option<Vec<String>> = diff_ids.map(|id| self.layers.find(id)).collect();
        Some(Image {
            digest: manifest::digest(&manifest)?,
            layers_dir: self.layers.folder.clone(),
            layers: layers?,
            config: file.config.unwrap_or_default(),
        })
    }

    /// The documents of the image that a file of `names/` names, if they are here.
    fn parts(&self, named: &Path) -> Option<Parts> {
        let Named { manifest: digest, .. } = read_named(named)?;
        let manifest: Manifest = serde_json::from_slice(&self.blobs.document(&digest)?).ok()?;
        let config = manifest.config?.digest;
        let file = serde_json::from_slice(&self.blobs.document(&config)?).ok()?;
        Some(Parts { manifest: digest, config, file })
    }

    /// Whether less than a quarter of the disk is free: until then what is not needed stays, because
    /// it may be wanted again and a link is dearer than a disk.
    pub fn is_short_of_room(&self) -> bool {
        let stat = rustix::fs::statvfs(&self.layers.folder);
        stat.is_ok_and(|stat| stat.f_bavail < stat.f_blocks / 4)
    }

    /// Removes all complete images but these, and what only they need but for these layers; where
    /// asked, also what belongs to no complete image. Nothing may be pulled meanwhile.
    ///
    /// # Errors
    /// When something would not go; the rest stays, and goes another time.
    pub fn collect(
        &self,
        keep: &[ImageName],
        layers: &BTreeSet<String>,
        orphans: bool,
    ) -> Result<(), ImageError> {
        let kept: BTreeSet<PathBuf> = keep.iter().map(|name| self.named(name)).collect();
        let names = entries(&self.names)?;
        let (stay, go): (Vec<_>, Vec<_>) = names.into_iter().partition(|path| kept.contains(path));
        let (blobs, mut needed) = self.needs(&stay);
        needed.extend(layers.iter().map(|name| self.layers.folder.join(name)));
        let (go_blobs, go_layers) = match orphans {
            true => (entries(&self.blobs.folder)?, entries(&self.layers.folder)?),
            false => {
                let (blobs, layers) = self.needs(&go);
                (blobs.into_iter().collect(), layers.into_iter().collect())
            }
        };
        // What names comes before what is named: a power cut leaves nothing that is half there.
        let go_blobs = go_blobs.into_iter().filter(|path| !blobs.contains(path));
        for path in go.into_iter().chain(go_blobs) {
            std::fs::remove_file(&path).map_err(io("remove", &path))?;
        }
        let mut go_layers = go_layers.into_iter().filter(|path| !needed.contains(path));
        go_layers.try_for_each(|path| self.layers.remove(&path))
    }

    /// The blobs and layers that named images stand on.
    fn needs(&self, names: &[PathBuf]) -> (BTreeSet<PathBuf>, BTreeSet<PathBuf>) {
        let (mut blobs, mut layers) = (BTreeSet::new(), BTreeSet::new());
        for Parts { manifest, config, file } in names.iter().filter_map(|path| self.parts(path)) {
            blobs.extend([manifest, config].map(|digest| self.blobs.path(&digest)));
            let found = file.rootfs.diff_ids.iter().filter_map(|id| self.layers.find(id));
            layers.extend(found.map(|name| self.layers.folder.join(name)));
        }
        (blobs, layers)
    }

    /// Makes the image complete here, from a mirror or its own registry.
    ///
    /// # Errors
    /// When nobody has it, when what came is not what was asked for, or when there is no room. What
    /// was received stays and is not asked for again.
    pub fn pull(&self, name: &ImageName, progress: &dyn Fn(Progress)) -> Result<Image, ImageError> {
        let mut reasons = Vec::new();
        for endpoint in self.registry.endpoints(name) {
            let source = Source { registry: &self.registry, endpoint: &endpoint, name };
            match self.pull_from(source, progress) {
                Ok(()) => match self.local(name) {
                    Some(image) => return Ok(image),
                    None => reasons.push("the store lost it; is the disk failing?".to_owned()),
                },
                Err(ImageError::Registry { endpoint, reason }) => {
                    reasons.push(format!("{endpoint}: {reason}"));
                }
                // What one has spoilt another may have whole.
                Err(
                    error @ (ImageError::Digest { .. }
                    | ImageError::Document { .. }
                    | ImageError::Layer { .. }),
                ) => reasons.push(format!("{endpoint}: {error}")),
                Err(
                    error @ (ImageError::Name(_)
                    | ImageError::Io { .. }
                    | ImageError::Unavailable { .. }
                    | ImageError::Space { .. }),
                ) => return Err(error),
            }
        }
        Err(ImageError::Unavailable { name: name.clone(), reasons })
    }

    fn pull_from(&self, source: Source<'_>, progress: &dyn Fn(Progress)) -> Result<(), ImageError> {
        let document = |reason: String| ImageError::Document { name: source.name.clone(), reason };
        let (mut digest, mut bytes) = self.fetch_manifest(source, source.name.reference())?;
        let mut manifest = Manifest::parse(&bytes).map_err(document)?;
        if manifest.config.is_none() {
            let chosen = manifest.choose(&self.platform).map_err(document)?.digest.clone();
            (digest, bytes) = self.fetch_manifest(source, &chosen)?;
            manifest = Manifest::parse(&bytes).map_err(document)?;
        }
        let described = manifest.config.as_ref();
        let described = described.ok_or_else(|| document("its manifest names no config".into()))?;
        let config = self.fetch_config(source, described)?;
        let file = ConfigFile::parse(&config).map_err(document)?;
        if let Some(reason) = file.foreign(&self.platform) {
            return Err(document(reason));
        }
        let diff_ids = file.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers.len() || diff_ids.len() > LAYERS_MAX {
            let (layers, ids) = (manifest.layers.len(), diff_ids.len());
            let reason =
                format!("{layers} layers and {ids} diff ids; at most {LAYERS_MAX} of each");
            return Err(document(reason));
        }
        self.fetch_layers(source, &manifest.layers, &diff_ids, progress)?;
        self.blobs.keep(&digest, &bytes)?;
        self.blobs.keep(&described.digest, &config)?;
        let named = Named { name: source.name.to_string(), manifest: digest };
        let text = serde_json::to_vec(&named).unwrap_or_default();
        replace(&self.named(source.name), &text)
    }

    fn fetch_manifest(
        &self,
        source: Source<'_>,
        reference: &str,
    ) -> Result<(String, Vec<u8>), ImageError> {
        let bytes = source.manifest(reference)?;
        let actual = format!("sha256:{}", Digest::of(&bytes));
        if reference.contains(':') && actual != reference {
            let (name, expected) = (source.name.clone(), reference.to_owned());
            return Err(ImageError::Digest { name, what: "manifest", expected, actual });
        }
        Ok((actual, bytes))
    }

    fn fetch_config(
        &self,
        source: Source<'_>,
        described: &Descriptor,
    ) -> Result<Vec<u8>, ImageError> {
        let bytes = source.document(&described.digest)?;
        let actual = format!("sha256:{}", Digest::of(&bytes));
        if actual != described.digest {
            let (name, expected) = (source.name.clone(), described.digest.clone());
            return Err(ImageError::Digest { name, what: "config", expected, actual });
        }
        Ok(bytes)
    }

    fn fetch_layers(
        &self,
        source: Source<'_>,
        layers: &[Descriptor],
        diff_ids: &[String],
        progress: &dyn Fn(Progress),
    ) -> Result<(), ImageError> {
        let missing: Vec<(&Descriptor, &String)> = layers
            .iter()
            .zip(diff_ids)
            .filter(|(_, diff_id)| self.layers.find(diff_id).is_none())
            .collect();
        for (descriptor, _) in &missing {
            layer::compression(descriptor).map_err(|error| ImageError::Layer {
                name: source.name.clone(),
                layer: descriptor.digest.clone(),
                source: error,
            })?;
        }
        let total = missing.iter().map(|(layer, _)| layer.size).fold(0, u64::saturating_add);
        let free = layer::free_bytes(&self.layers.folder)?;
        if total > free {
            let path = self.layers.folder.clone();
            return Err(ImageError::Space { name: source.name.clone(), path, needs: total, free });
        }
        let mut before: u64 = 0;
        for (layer, diff_id) in missing {
            let tell = |received: u64| progress(Progress { received: before + received, total });
            self.layers.once(diff_id, || {
                let path = self.blobs.download(source, layer, &tell)?;
                self.layers.unpack(source.name, layer, diff_id, &path)?;
                std::fs::remove_file(&path).map_err(io("remove", &path))
            })?;
            before += layer.size;
        }
        Ok(())
    }

    fn named(&self, name: &ImageName) -> PathBuf {
        self.names.join(Digest::of(name.to_string().as_bytes()).short())
    }
}

fn read_named(path: &Path) -> Option<Named> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// What is in a folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let entries = std::fs::read_dir(folder).map_err(io("read", folder))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// Replaces a file whole: a power cut leaves the old one or the new one.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
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
