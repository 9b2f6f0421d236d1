//! Blobs: small ones are kept, layers are on their way to being unpacked.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

use limpet_protocol::Digest;
use ring::digest::{Context, SHA256};

use super::layer::oci_digest;
use super::manifest::Descriptor;
use super::registry::{BYTES_MIN, Source};
use super::{DOCUMENT_BYTES_MAX, ImageError, io, replace, room};

const BUFFER_BYTES: usize = 64 * 1024;
/// Requests that bring next to nothing, one after the other, before a download is given up for now.
const TRIES_MAX: u32 = 4;
const RETRY_WAIT: Duration = Duration::from_millis(250);

pub(super) struct Blobs {
    pub(super) folder: PathBuf,
}

impl Blobs {
    pub(super) fn open(folder: PathBuf) -> Result<Self, ImageError> {
        std::fs::create_dir_all(&folder).map_err(io("make", &folder))?;
        Ok(Self { folder })
    }

    pub(super) fn path(&self, digest: &str) -> PathBuf {
        self.folder.join(digest.replace(':', "-"))
    }

    /// A document that was kept; None where it is missing, or is no longer what it was.
    pub(super) fn document(&self, digest: &str) -> Option<Vec<u8>> {
        if !limpet_protocol::image::is_digest(digest) {
            return None;
        }
        let mut bytes = Vec::new();
        let file = File::open(self.path(digest)).ok()?;
        file.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes).ok()?;
        is(digest, &bytes).then_some(bytes)
    }

    /// Keeps a document.
    ///
    /// # Errors
    /// When it is not what its digest says: it would stand where another image's document is.
    pub(super) fn keep(&self, digest: &str, bytes: &[u8]) -> Result<(), ImageError> {
        let path = self.path(digest);
        if !is(digest, bytes) {
            return Err(io("keep", &path)(ErrorKind::InvalidData.into()));
        }
        replace(&path, bytes)
    }

    /// Bytes of a layer that an earlier try has left here.
    pub(super) fn received(&self, layer: &Descriptor) -> u64 {
        let part = std::fs::metadata(self.part(layer));
        part.map_or(0, |part| part.len()).min(layer.size)
    }

    /// Takes away what an earlier try has left.
    pub(super) fn drop_part(&self, layer: &Descriptor) -> Result<(), ImageError> {
        let path = self.part(layer);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(io("remove", &path)(e)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn part(&self, layer: &Descriptor) -> PathBuf {
        self.path(&layer.digest).with_extension("part")
    }

    /// Brings a layer here, going on from where an earlier try was cut off.
    pub(super) fn download(
        &self,
        source: Source<'_>,
        layer: &Descriptor,
        progress: &dyn Fn(u64),
    ) -> Result<PathBuf, ImageError> {
        let path = self.part(layer);
        let mut part = Part::open(path.clone(), layer.size)?;
        let mut tries = 0;
        while part.received < layer.size {
            let before = part.received;
            let blob = (layer.digest.as_str(), layer.size);
            let cut = match source.blob(blob, part.received) {
                Ok((body, resumed)) => {
                    if !resumed {
                        part.restart()?;
                    }
                    part.receive(body, progress)?
                }
                // It gave no answer: as a cut of the link.
                Err(ImageError::Unreachable { reason, .. }) => Some(reason),
                Err(error) => return Err(error),
            };
            let Some(why) = cut.filter(|_| part.received < layer.size) else {
                continue;
            };
            log::debug!("{}: layer {} is cut: {why}", source.endpoint, layer.digest);
            tries = if part.received >= before + BYTES_MIN { 0 } else { tries + 1 };
            if tries >= TRIES_MAX {
                let (received, size) = (part.received, layer.size);
                let reason =
                    format!("layer {} cut off at {received} of {size} bytes: {why}", layer.digest);
                let endpoint = source.endpoint.to_string();
                return Err(ImageError::Unreachable { endpoint, reason });
            }
            std::thread::sleep(RETRY_WAIT * tries);
        }
        let actual = part.finish()?;
        if actual != layer.digest {
            std::fs::remove_file(&path).map_err(io("remove", &path))?;
            let (name, expected) = (source.name.clone(), layer.digest.clone());
            return Err(ImageError::Digest { name, what: "layer", expected, actual });
        }
        Ok(path)
    }
}

/// Whether a digest, as OCI writes it, is that of these bytes.
fn is(digest: &str, bytes: &[u8]) -> bool {
    format!("sha256:{}", Digest::of(bytes)) == digest
}

/// A file that is being received: its bytes, and their digest so far.
pub(crate) struct Part {
    path: PathBuf,
    file: File,
    hash: Context,
    received: u64,
    size: u64,
}

impl Part {
    /// Opens what an earlier try left; its bytes are hashed again, whatever happened to them.
    pub(crate) fn open(path: PathBuf, size: u64) -> Result<Self, ImageError> {
        let opened =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = opened.map_err(io("write", &path))?;
        let mut part = Self { path, file, hash: Context::new(&SHA256), received: 0, size };
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = part.file.read(&mut buffer).map_err(io("read", &part.path))?;
            if read == 0 {
                break;
            }
            part.hash.update(&buffer[..read]);
            part.received += read as u64;
        }
        if part.received > size {
            part.restart()?;
        }
        Ok(part)
    }

    /// Bytes that are here.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Whether the disk has room for what is missing.
    pub(crate) fn room(&self) -> Result<(), ImageError> {
        let (missing, spare) = (self.size - self.received, room::spare_bytes(&self.path)?);
        match missing > spare {
            true => Err(io("write", &self.path)(ErrorKind::StorageFull.into())),
            false => Ok(()),
        }
    }

    /// Begins anew.
    pub(crate) fn restart(&mut self) -> Result<(), ImageError> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(io("empty", &self.path))?;
        self.hash = Context::new(&SHA256);
        self.received = 0;
        Ok(())
    }

    /// Takes a body in; says why where it ended before its time.
    pub(crate) fn receive(
        &mut self,
        mut body: impl Read,
        progress: &dyn Fn(u64),
    ) -> Result<Option<String>, ImageError> {
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let left = usize::try_from(self.size - self.received).unwrap_or(BUFFER_BYTES);
            let room = left.min(BUFFER_BYTES);
            if room == 0 {
                return Ok(None);
            }
            let read = match body.read(&mut buffer[..room]) {
                Ok(0) => return Ok(Some("the connection ended".to_owned())),
                Ok(read) => read,
                Err(e) => return Ok(Some(e.to_string())),
            };
            if room::spare_bytes(&self.path)? < read as u64 {
                return Err(io("write", &self.path)(ErrorKind::StorageFull.into()));
            }
            self.file.write_all(&buffer[..read]).map_err(io("write", &self.path))?;
            self.hash.update(&buffer[..read]);
            self.received += read as u64;
            progress(self.received);
        }
    }

    /// Has all of it on disk; gives its digest, as OCI writes it.
    pub(crate) fn finish(self) -> Result<String, ImageError> {
        self.file.sync_data().map_err(io("write", &self.path))?;
        Ok(oci_digest(self.hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_digest_says_is_kept_under_it() {
        let folder = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(folder.path().join("blobs")).unwrap();
        let digest = format!("sha256:{}", Digest::of(b"config"));
        blobs.keep(&digest, b"config").unwrap();
        let error = blobs.keep(&digest, b"of another").unwrap_err();
        assert!(error.to_string().starts_with("cannot keep "), "{error}");
        assert_eq!(blobs.document(&digest).unwrap(), b"config");
    }
}
