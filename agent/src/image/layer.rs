//! Unpacked layers, each once, whichever images share it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flate2::bufread::MultiGzDecoder;
use ring::digest::{Context, SHA256};

use super::manifest::Descriptor;
use super::unpack::{self, UnpackError};
use super::{ImageError, ImageName, entries, io, rename, zstd};
use crate::tree;

/// Unpacked bytes of one layer at most: beyond it is no layer for a small device.
const UNPACKED_BYTES_MAX: u64 = 8 << 30;
/// Layers whose unpacked size is remembered.
const SIZES_MAX: usize = 1024;

pub(super) struct Layers {
    pub(super) folder: PathBuf,
    /// One lock per layer that is being had.
    busy: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
    /// What layers unpack to, of those that were tried: one that does not fit is not fetched again
    /// only to find that out.
    sizes: Mutex<BTreeMap<String, u64>>,
}

impl Layers {
    /// Opens the folder of layers; takes away those that were never completed.
    pub(super) fn open(folder: PathBuf) -> Result<Self, ImageError> {
        std::fs::create_dir_all(&folder).map_err(io("make", &folder))?;
        for path in entries(&folder)? {
            if path.extension().is_some_and(|extension| extension == "new") {
                tree::remove(&path).map_err(io("remove", &path))?;
            }
        }
        Ok(Self { folder, busy: Mutex::default(), sizes: Mutex::default() })
    }

    /// Bytes that a layer unpacks to, if that is known.
    pub(super) fn unpacked_bytes(&self, diff_id: &str) -> Option<u64> {
        self.sizes().get(diff_id).copied()
    }

    fn sizes(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of a layer's folder, if it is complete.
    pub(super) fn find(&self, diff_id: &str) -> Option<String> {
        let name = name_of(diff_id)?;
        self.folder.join(&name).is_dir().then_some(name)
    }

    /// Removes a layer, first under a name that is swept at the next start: no half of it passes
    /// for a layer.
    pub(super) fn remove(&self, layer: &Path) -> Result<(), ImageError> {
        let gone = layer.with_extension("new");
        rename(layer, &gone).map_err(io("remove", layer))?;
        tree::remove(&gone).map_err(io("remove", &gone))
    }

    /// Has a layer made by `make`, unless it is there, or another thread is at it already.
    pub(super) fn once(
        &self,
        diff_id: &str,
        make: impl FnOnce() -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let lock = {
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            busy.retain(|_, lock| Arc::strong_count(lock) > 1);
            busy.entry(diff_id.to_owned()).or_default().clone()
        };
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if self.find(diff_id).is_some() { Ok(()) } else { make() }
    }

    /// Unpacks a layer beside the others and moves it among them when it is whole and on disk.
    /// `packed` is read to its end.
    pub(super) fn unpack(
        &self,
        name: &ImageName,
        layer: &Descriptor,
        diff_id: &str,
        packed: &mut dyn Read,
    ) -> Result<(), ImageError> {
        let Some(folder) = name_of(diff_id) else {
            let reason = format!("{diff_id:?} is no SHA-256 digest");
            return Err(ImageError::Document { name: name.clone(), reason });
        };
        let target = self.folder.join(folder);
        let fresh = target.with_extension("new");
        if fresh.exists() {
            tree::remove(&fresh).map_err(io("remove", &fresh))?;
        }
        std::fs::create_dir(&fresh).map_err(io("make", &fresh))?;
        let actual = self.unpack_into(&fresh, layer, diff_id, packed);
        let actual = actual.map_err(|source| ImageError::Layer {
            name: name.clone(),
            layer: layer.digest.clone(),
            source,
        });
        let checked = actual.and_then(|actual| match actual == diff_id {
            true => sync(&fresh),
            false => Err(ImageError::Digest {
                name: name.clone(),
                what: "unpacked layer",
                expected: diff_id.to_owned(),
                actual,
            }),
        });
        match checked {
            Ok(()) => rename(&fresh, &target).map_err(io("complete", &target)),
            Err(error) => {
                // The error says more than what went wrong with taking the rest away. The blob
                // stays: it is what was asked for, and costs nothing to be tried again.
                let _ = tree::remove(&fresh);
                Err(error)
            }
        }
    }

    /// Unpacks and gives the digest of what was unpacked.
    fn unpack_into(
        &self,
        folder: &Path,
        layer: &Descriptor,
        diff_id: &str,
        packed: &mut dyn Read,
    ) -> Result<String, UnpackError> {
        let mut reader = decompressed(BufReader::new(packed), compression(layer)?);
        let mut reader = Hashing { reader: &mut reader, hash: Context::new(&SHA256), read: 0 };
        let unpacked = unpack::unpack(&mut reader, folder, UNPACKED_BYTES_MAX);
        if let Err(error) = &unpacked
            && !error.is_for_want_of_room()
        {
            return unpacked.map(|()| String::new());
        }
        let rest = std::io::copy(&mut reader, &mut std::io::sink()).map_err(UnpackError::Read);
        self.learn(diff_id, reader.read);
        unpacked.and(rest)?;
        Ok(oci_digest(reader.hash))
    }

    fn learn(&self, diff_id: &str, bytes: u64) {
        let mut sizes = self.sizes();
        if sizes.len() >= SIZES_MAX {
            sizes.clear();
        }
        sizes.insert(diff_id.to_owned(), bytes);
    }
}

/// A digest as OCI writes it.
pub(super) fn oci_digest(hash: Context) -> String {
    let hex: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// How a layer is packed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Compression {
    Gzip,
    Zstd,
    None,
}

impl Compression {
    /// How something is packed, as its first bytes say (RFC 1952, RFC 8878).
    pub(super) fn of(magic: &[u8]) -> Self {
        match magic {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// The media type of a layer that is packed so (OCI image-spec, layer.md).
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            Self::None => "application/vnd.oci.image.layer.v1.tar",
        }
    }
}

/// How a layer is packed, as its media type says (OCI image-spec, layer.md; Docker's types).
pub(super) fn compression(layer: &Descriptor) -> Result<Compression, UnpackError> {
    match layer.media_type.rsplit(['.', '+']).next() {
        Some("gzip") => Ok(Compression::Gzip),
        Some("zstd") => Ok(Compression::Zstd),
        Some("tar") => Ok(Compression::None),
        Some(_) | None => Err(UnpackError::MediaType(layer.media_type.clone())),
    }
}

/// What a blob unpacks to.
pub(super) fn decompressed<'a>(
    blob: impl BufRead + 'a,
    compression: Compression,
) -> Box<dyn Read + 'a> {
    match compression {
        Compression::Gzip => Box::new(MultiGzDecoder::new(blob)),
        Compression::Zstd => Box::new(zstd::Frames::new(blob)),
        Compression::None => Box::new(blob),
    }
}

fn sync(folder: &Path) -> Result<(), ImageError> {
    let synced = File::open(folder).and_then(|file| Ok(rustix::fs::syncfs(&file)?));
    synced.map_err(io("write", folder))
}

/// Half of the digest names a layer well enough, and lets many names fit into one mount.
fn name_of(diff_id: &str) -> Option<String> {
    let hex =
        limpet_protocol::image::is_digest(diff_id).then(|| diff_id.strip_prefix("sha256:"))??;
    Some(hex.chars().take(32).collect())
}

/// Hashes what passes, and bounds it: what a small archive may grow to when it is unpacked.
struct Hashing<'a> {
    reader: &'a mut dyn Read,
    hash: Context,
    read: u64,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.read += read as u64;
        if self.read > UNPACKED_BYTES_MAX {
            let message = format!("it unpacks to more than {UNPACKED_BYTES_MAX} bytes");
            return Err(std::io::Error::other(message));
        }
        Ok(read)
    }
}
