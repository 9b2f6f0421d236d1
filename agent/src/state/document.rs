//! The form of a document on disk: a header of 24 bytes, then its content.
//!
//! ```text
//! 0   "LMPT"    magic
//! 4   kind      1 identity, 2 desired, 3 checkpoint
//! 5   version   of the content's form, from 1
//! 6   0 0
//! 8   length    of the content, u64, big endian
//! 16  check     the first 8 bytes of SHA-256 over bytes 0 to 15 and the content
//! 24  content
//! ```

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use limpet_protocol::Digest;
use rustix::fs::FallocateFlags;

/// The version that this agent writes, and the newest that it reads.
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 24;
/// The longest document: far above a full checkpoint, far below a small device's memory.
pub(super) const BYTES_MAX: usize = 1 << 20;

/// What a document is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Identity = 1,
    Desired = 2,
    Checkpoint = 3,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Desired => "desired",
            Self::Checkpoint => "checkpoint",
        }
    }

    /// Whether one that is damaged may give way to the one before it. Not the checkpoint: an older
    /// one would give numbers out a second time.
    fn keeps_previous(self) -> bool {
        match self {
            Self::Identity | Self::Desired => true,
            Self::Checkpoint => false,
        }
    }

    pub(super) fn path(self, folder: &Path) -> PathBuf {
        folder.join(self.name())
    }
}

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The file system would not.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Torn, cut short, or changed.
    #[error("{path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Written by a newer version.
    #[error(
        "{path} was written by a newer version of limpet-agent (format {version}, this one reads \
         {VERSION}): install that version, or use another --data-dir"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u8,
    },
}

impl DocumentError {
    pub(super) fn source_kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Io { source, .. } => Some(source.kind()),
            Self::Damaged { .. } | Self::Newer { .. } => None,
        }
    }
}

fn seal(kind: Kind, content: &[u8]) -> Vec<u8> {
    let mut out = b"LMPT".to_vec();
    out.extend([kind as u8, VERSION, 0, 0]);
    out.extend((content.len() as u64).to_be_bytes());
    out.extend(check(&out, content));
    out.extend(content);
    out
}

fn check(header: &[u8], content: &[u8]) -> [u8; 8] {
    let Digest(digest) = Digest::of(&[header, content].concat());
    let mut out = [0; 8];
    out.copy_from_slice(&digest[..8]);
    out
}

fn open(path: &Path, kind: Kind, bytes: &[u8]) -> Result<Vec<u8>, DocumentError> {
    let damaged = || DocumentError::Damaged { path: path.into() };
    let (header, content) = bytes.split_at_checked(HEADER_BYTES).ok_or_else(damaged)?;
    let (described, checked) = header.split_at(16);
    let length = (content.len() as u64).to_be_bytes();
    let whole = checked == check(described, content) && described[8..] == length;
    if !whole || described[..4] != *b"LMPT" || described[4] != kind as u8 {
        return Err(damaged());
    }
    match described[5] {
        VERSION => Ok(content.to_vec()),
        version => Err(DocumentError::Newer { path: path.into(), version }),
    }
}

/// Reads a document; None where there is none. One that is damaged gives way to the one before it,
/// where that was kept.
pub(super) fn read(folder: &Path, kind: Kind) -> Result<Option<Vec<u8>>, DocumentError> {
    let path = kind.path(folder);
    match read_one(&path, kind) {
        Err(error @ (DocumentError::Damaged { .. } | DocumentError::Io { .. })) => {
            let before = path.with_extension("old");
            match read_one(&before, kind) {
                Ok(Some(content)) => {
                    log::error!("{error}: going on with {}", before.display());
                    Ok(Some(content))
                }
                Ok(None) | Err(_) => Err(error),
            }
        }
        read => read,
    }
}

fn read_one(path: &Path, kind: Kind) -> Result<Option<Vec<u8>>, DocumentError> {
    let mut bytes = Vec::new();
    let read = File::open(path)
        .and_then(|file| file.take((BYTES_MAX + HEADER_BYTES) as u64).read_to_end(&mut bytes));
    match read {
        Ok(_) => open(path, kind, &bytes).map(Some),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DocumentError::Io { action: "read", path: path.into(), source }),
    }
}

/// Room that is given up when the disk is full, so that what a controller orders can still be
/// stored: it may be what frees the disk.
const RESERVE_BYTES: u64 = 2 * BYTES_MAX as u64;

/// Takes the reserve, if it is not taken and there is room for it.
pub(super) fn take_reserve(folder: &Path) {
    let path = folder.join("reserve");
    let taken = path.metadata().is_ok_and(|reserve| reserve.len() == RESERVE_BYTES);
    if !taken
        && let Ok(file) = File::create(&path)
        && rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, RESERVE_BYTES).is_err()
    {
        // A disk that is full now: the next write or start tries again.
        let _ = std::fs::remove_file(path);
    }
}

/// Replaces a document, so that a power cut leaves the old one or the new one. On a full disk the
/// reserve makes room.
pub(super) fn write(folder: &Path, kind: Kind, content: &[u8]) -> Result<(), DocumentError> {
    match write_one(folder, kind, content) {
        Err(DocumentError::Io { source, .. }) if source.kind() == ErrorKind::StorageFull => {
            // Where it is gone already, the second try says so.
            let _ = std::fs::remove_file(folder.join("reserve"));
            let written = write_one(folder, kind, content);
            take_reserve(folder);
            written
        }
        written => written,
    }
}

fn write_one(folder: &Path, kind: Kind, content: &[u8]) -> Result<(), DocumentError> {
    let path = kind.path(folder);
    let fresh = path.with_extension("new");
    if content.len() > BYTES_MAX {
        let source = std::io::Error::new(ErrorKind::FileTooLarge, "it would not be read again");
        return Err(DocumentError::Io { action: "write", path, source });
    }
    let written = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&seal(kind, content))?;
        file.sync_data()?;
        if kind.keeps_previous() && path.exists() {
            let before = path.with_extension("old");
            match std::fs::remove_file(&before) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                Ok(()) | Err(_) => std::fs::hard_link(&path, before)?,
            }
        }
        std::fs::rename(&fresh, &path)?;
        File::open(folder)?.sync_all()
    };
    written().map_err(|source| DocumentError::Io { action: "write", path: path.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let hex: String = seal(Kind::Desired, b"x").iter().map(|b| format!("{b:02x}")).collect();
        expect_test::expect!["4c4d50540201000000000000000000011389ef84f1c50d8b78"].assert_eq(&hex);
    }

    #[test]
    fn no_prefix_and_no_flipped_bit_is_taken_for_a_document() {
        let path = Path::new("desired");
        let whole = seal(Kind::Desired, b"content");
        assert_eq!(open(path, Kind::Desired, &whole).unwrap(), b"content");
        assert!(open(path, Kind::Identity, &whole).is_err());
        for length in 0..whole.len() {
            assert!(open(path, Kind::Desired, &whole[..length]).is_err(), "{length}");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = open(path, Kind::Desired, &flipped).unwrap_err();
            assert!(matches!(error, DocumentError::Damaged { .. }), "{bit}");
        }
    }

    #[test]
    fn a_newer_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut newer = seal(Kind::Desired, b"x");
        newer[5] = 2;
        let check = check(&newer[..16], b"x");
        newer[16..24].copy_from_slice(&check);
        std::fs::write(folder.path().join("desired"), &newer).unwrap();
        let error = read(folder.path(), Kind::Desired).unwrap_err().to_string();
        assert!(error.contains("newer version of limpet-agent (format 2"), "{error}");
    }
}
