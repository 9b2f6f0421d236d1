//! The files of an archive, or of a folder, read where they are: nothing is unpacked only to be
//! looked at, and of an archive no more is kept in memory than where its files begin.
//!
//! A compressed archive cannot be read from the middle: each of its files is reached by unpacking
//! what comes before it once more. That costs time, and no room.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::layer::{Compression, decompressed};
use super::{DOCUMENT_BYTES_MAX, ImageError};

mod index;

use index::{Index, Place};

/// What a compressed archive may unpack to: beyond it is no archive for a small device.
const UNPACKED_BYTES_MAX: u64 = 64 << 30;

/// An archive or a folder.
pub(super) struct Files {
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    Folder(OwnedFd),
    Archive { file: File, compression: Compression, index: Index },
}

/// A file in it, and its size.
pub(super) struct Content<'a> {
    pub(super) reader: Box<dyn Read + 'a>,
    pub(super) size: u64,
    /// How it is packed, as its first bytes say.
    pub(super) compression: Compression,
}

impl Files {
    /// Opens a folder or an archive; which, and how it is packed, its content says.
    ///
    /// # Errors
    /// When it cannot be read, or an archive has entries that no archive of images has.
    pub(super) fn open(path: &Path) -> Result<Self, ImageError> {
        let fail = |e: std::io::Error| fault(path, format!("cannot read it: {e}"));
        // A pipe would block, and cannot be read twice.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| fail(e.into()))?;
        let file = File::from(opened);
        let metadata = file.metadata().map_err(fail)?;
        if metadata.is_dir() {
            return Ok(Self { path: path.into(), kind: Kind::Folder(file.into()) });
        }
        if !metadata.is_file() {
            return Err(fault(path, "it is neither a file nor a folder".to_owned()));
        }
        let mut magic = [0; 4];
        let read = file.read_at(&mut magic, 0).map_err(fail)?;
        let compression = Compression::of(&magic[..read]);
        let index = match compression {
            Compression::None => Index::seeking(&file, metadata.len()),
            Compression::Gzip | Compression::Zstd => {
                Index::reading(&mut unpacked(&file, compression))
            }
        };
        let index = index.map_err(|reason| fault(path, reason))?;
        Ok(Self { path: path.into(), kind: Kind::Archive { file, compression, index } })
    }

    /// Whether it has this file.
    pub(super) fn has(&self, name: &str) -> bool {
        match &self.kind {
            Kind::Folder(folder) => in_folder(folder, name).is_ok(),
            Kind::Archive { index, .. } => index.find(name).is_ok(),
        }
    }

    /// A small file, whole.
    ///
    /// # Errors
    /// When it is not there, or is too large to be a document.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let Content { reader, size, .. } = self.content(name)?;
        if size > DOCUMENT_BYTES_MAX {
            let reason = format!("has {size} bytes, a document at most {DOCUMENT_BYTES_MAX}");
            return Err(self.fault(name, &reason));
        }
        let mut bytes = Vec::new();
        let read = reader.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes);
        read.map_err(|e| self.fault(name, &format!("cannot be read: {e}")))?;
        if bytes.len() as u64 == size { Ok(bytes) } else { Err(self.fault(name, "is cut off")) }
    }

    /// A file's content, from its beginning.
    ///
    /// # Errors
    /// When it is not there.
    pub(super) fn content(&self, name: &str) -> Result<Content<'_>, ImageError> {
        let found = match &self.kind {
            Kind::Folder(folder) => in_folder(folder, name),
            Kind::Archive { file, compression, index } => {
                index.find(name).and_then(|place| in_archive(file, *compression, place))
            }
        };
        found.map_err(|reason| self.fault(name, &reason))
    }

    /// An error about one file.
    pub(super) fn fault(&self, name: &str, reason: &str) -> ImageError {
        fault(&self.path, format!("{name} {reason}"))
    }

    /// An error about the whole.
    pub(super) fn fault_of_all(&self, reason: String) -> ImageError {
        fault(&self.path, reason)
    }
}

fn fault(path: &Path, reason: String) -> ImageError {
    ImageError::Archive { path: path.into(), reason }
}

/// Links of a folder lead at most to other files of it.
fn in_folder<'a>(folder: &OwnedFd, name: &str) -> Result<Content<'a>, String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(folder, name, flags, Mode::empty(), resolve);
    let file = File::from(opened.map_err(|e| match e {
        Errno::NOENT => "is not there".to_owned(),
        e => format!("cannot be read: {e}"),
    })?);
    let metadata = file.metadata().map_err(|e| format!("cannot be read: {e}"))?;
    if !metadata.is_file() {
        return Err("is no file".to_owned());
    }
    let mut magic = [0; 4];
    let read = file.read_at(&mut magic, 0).map_err(|e| format!("cannot be read: {e}"))?;
    let compression = Compression::of(&magic[..read]);
    Ok(Content { reader: Box::new(file), size: metadata.len(), compression })
}

fn in_archive(file: &File, compression: Compression, place: Place) -> Result<Content<'_>, String> {
    let Place { offset, size, compression: own } = place;
    let reader: Box<dyn Read> = match compression {
        Compression::None => Box::new(Part { file, at: offset, left: size }),
        Compression::Gzip | Compression::Zstd => {
            let mut reader = unpacked(file, compression);
            let before = std::io::copy(&mut reader.by_ref().take(offset), &mut std::io::sink());
            before.map_err(|e| format!("cannot be read: {e}"))?;
            Box::new(reader.take(size))
        }
    };
    Ok(Content { reader, size, compression: own })
}

fn unpacked(file: &File, compression: Compression) -> Box<dyn Read + '_> {
    let whole = Part { file, at: 0, left: u64::MAX };
    Box::new(decompressed(BufReader::new(whole), compression).take(UNPACKED_BYTES_MAX))
}

/// A part of a file; many can be read at once.
struct Part<'a> {
    file: &'a File,
    at: u64,
    left: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let room = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..room], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests;
