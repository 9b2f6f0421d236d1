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

/// Reads a document; None where there is none.
pub(super) fn read(folder: &Path, kind: Kind) -> Result<Option<Vec<u8>>, DocumentError> {
    let path = kind.path(folder);
    let mut bytes = Vec::new();
    let read = File::open(&path)
        .and_then(|file| file.take((BYTES_MAX + HEADER_BYTES) as u64).read_to_end(&mut bytes));
    match read {
        Ok(_) => open(&path, kind, &bytes).map(Some),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DocumentError::Io { action: "read", path, source }),
    }
}

/// Replaces a document, so that a power cut leaves the old one or the new one.
pub(super) fn write(folder: &Path, kind: Kind, content: &[u8]) -> Result<(), DocumentError> {
    let path = kind.path(folder);
    let fresh = path.with_extension("new");
    let written = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(&seal(kind, content))?;
        file.sync_data()?;
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
