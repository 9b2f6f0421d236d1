//! The form of a document on disk: a header of 24 bytes, then its content.
//!
//! ```text
//! 0   "LMPT"    magic
//! 4   kind      1 identity, 2 desired, 3 checkpoint, 4 clock, 5 upgrade
//! 5   version   of the content's form, from 1
//! 6   0 0
//! 8   length    of the content, u64, big endian
//! 16  check     the first 8 bytes of SHA-256 over bytes 0 to 15 and the content
//! 24  content
//! ```
//!
//! A document that is replaced whole has a copy beside it, written after it: what damages one file
//! leaves the other.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use limpet_protocol::Digest;
use rustix::fs::FallocateFlags;

const HEADER_BYTES: usize = 24;
/// The longest document: far above a full checkpoint, far below a small device's memory.
pub(super) const BYTES_MAX: usize = 1 << 20;

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Identity = 1,
    Desired = 2,
    Checkpoint = 3,
    Clock = 4,
    Upgrade = 5,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Desired => "desired",
            Self::Checkpoint => "checkpoint",
            Self::Clock => "clock",
            Self::Upgrade => "upgrade",
        }
    }

    /// The version that this agent writes, and the newest that it reads.
    fn version(self) -> u8 {
        match self {
            Self::Checkpoint => 2,
            Self::Identity | Self::Desired | Self::Clock | Self::Upgrade => 1,
        }
    }

    pub(super) fn path(self, folder: &Path) -> PathBuf {
        folder.join(self.name())
    }

    fn copy(self, folder: &Path) -> PathBuf {
        self.path(folder).with_extension("old")
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
         {known}): install that version, or use another --data-dir"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u8,
        /// The newest that this agent reads.
        known: u8,
    },
}

/// A document as it is on disk.
pub(super) fn seal(kind: Kind, content: &[u8]) -> Vec<u8> {
    let mut out = b"LMPT".to_vec();
    out.extend([kind as u8, kind.version(), 0, 0]);
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

/// The version and the content of the document that `bytes` begin with, and what follows it.
pub(super) fn unseal<'a>(
    path: &Path,
    kind: Kind,
    bytes: &'a [u8],
) -> Result<(u8, &'a [u8], &'a [u8]), DocumentError> {
    let whole = || {
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES)?;
        let (described, checked) = header.split_at(16);
        let length = u64::from_be_bytes(described[8..].try_into().ok()?);
        let (content, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        let ours = described[..4] == *b"LMPT" && described[4] == kind as u8;
        (ours && checked == check(described, content)).then_some((described[5], content, rest))
    };
    match whole() {
        None => Err(DocumentError::Damaged { path: path.into() }),
        Some((version, ..)) if version > kind.version() => {
            Err(DocumentError::Newer { path: path.into(), version, known: kind.version() })
        }
        Some(document) => Ok(document),
    }
}

/// Reads a document; None where there is none, nor a copy. The copy takes the place of one that is
/// damaged or missing, and `lost` says so.
///
/// # Errors
/// When a newer version wrote it; and for the identity, which cannot be had again, when the disk would
/// not give it: that may pass.
pub(super) fn read(
    folder: &Path,
    kind: Kind,
    lost: &mut Vec<String>,
) -> Result<Option<Vec<u8>>, DocumentError> {
    let first = kind.path(folder);
    let why = match read_one(&first, kind) {
        Ok(Some(content)) => return Ok(Some(content)),
        Err(error @ DocumentError::Newer { .. }) => return Err(error),
        Ok(None) => Ok(format!("{} is missing", first.display())),
        Err(error) => Err(error),
    };
    let said = why.as_ref().map_or_else(ToString::to_string, Clone::clone);
    match (why, read_one(&kind.copy(folder), kind)) {
        (_, Ok(Some(content))) => {
            lost.push(format!("{said}: going on with its copy"));
            Ok(Some(content))
        }
        (_, Err(error @ DocumentError::Newer { .. })) => Err(error),
        (Err(error @ DocumentError::Io { .. }), _) | (_, Err(error @ DocumentError::Io { .. }))
            if kind == Kind::Identity =>
        {
            Err(error)
        }
        (Ok(_), Ok(None)) => Ok(None),
        (Ok(_) | Err(_), Ok(None) | Err(_)) => {
            lost.push(format!("{said}, and so is its copy: going on without"));
            Ok(None)
        }
    }
}

/// Moves a document that nobody understands out of the way of another, with its copy: somebody may
/// still want what is left of it.
pub(super) fn set_aside(folder: &Path, kind: Kind) -> Result<(), DocumentError> {
    for path in [kind.path(folder), kind.copy(folder)] {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".damaged");
        match std::fs::rename(&path, aside) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            moved => moved.map_err(|source| DocumentError::Io {
                action: "move aside",
                path: path.clone(),
                source,
            })?,
        }
    }
    Ok(())
}

pub(super) fn read_one(path: &Path, kind: Kind) -> Result<Option<Vec<u8>>, DocumentError> {
    let Some(bytes) = read_bytes(path)? else {
        return Ok(None);
    };
    match unseal(path, kind, &bytes)? {
        (_, content, []) => Ok(Some(content.to_vec())),
        _ => Err(DocumentError::Damaged { path: path.into() }),
    }
}

/// A file as far as a document may go; None where there is none.
pub(super) fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>, DocumentError> {
    let mut bytes = Vec::new();
    let read = File::open(path)
        .and_then(|file| file.take((BYTES_MAX + HEADER_BYTES) as u64).read_to_end(&mut bytes));
    match read {
        Ok(_) => Ok(Some(bytes)),
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

/// Replaces a document, so that a power cut leaves the old one or the new one.
pub(super) fn write(folder: &Path, kind: Kind, content: &[u8]) -> Result<(), DocumentError> {
    let path = kind.path(folder);
    if content.len() > BYTES_MAX {
        let source = std::io::Error::new(ErrorKind::FileTooLarge, "it would not be read again");
        return Err(DocumentError::Io { action: "write", path, source });
    }
    make_room(folder, || replace(&path, &seal(kind, content))).map_err(|source| DocumentError::Io {
        action: "write",
        path,
        source,
    })
}

/// Writes the copy of a document, where it is not one already.
pub(super) fn copy(folder: &Path, kind: Kind) -> Result<(), DocumentError> {
    let (path, copy) = (kind.path(folder), kind.copy(folder));
    match read_one(&path, kind)? {
        Some(content) if read_one(&copy, kind).ok().flatten().as_ref() != Some(&content) => {
            make_room(folder, || replace(&copy, &seal(kind, &content)))
                .map_err(|source| DocumentError::Io { action: "write", path: copy, source })
        }
        Some(_) | None => Ok(()),
    }
}

/// Makes a document and its copy the same again: the copy where it is older, and the one that is
/// damaged or missing of the other.
pub(super) fn mend(folder: &Path, kind: Kind) -> Result<(), DocumentError> {
    match read_one(&kind.path(folder), kind) {
        Ok(Some(_)) => copy(folder, kind),
        Ok(None) | Err(DocumentError::Damaged { .. }) => {
            match read_one(&kind.copy(folder), kind) {
                Ok(Some(content)) => write(folder, kind, &content),
                // Neither is there, which was said.
                Ok(None) | Err(_) => Ok(()),
            }
        }
        Err(error) => Err(error),
    }
}

/// Writes; on a full disk the reserve makes room.
pub(super) fn make_room(
    folder: &Path,
    write: impl Fn() -> std::io::Result<()>,
) -> std::io::Result<()> {
    match write() {
        Err(e) if e.kind() == ErrorKind::StorageFull => {
            // Where it is gone already, the second try says so.
            let _ = std::fs::remove_file(folder.join("reserve"));
            let written = write();
            take_reserve(folder);
            written
        }
        written => written,
    }
}

fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    std::fs::rename(&fresh, path)?;
    sync_folder(path)
}

/// Has on disk that a file is in its folder.
pub(super) fn sync_folder(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
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
        assert_eq!(unseal(path, Kind::Desired, &whole).unwrap(), (1, &b"content"[..], &b""[..]));
        assert!(unseal(path, Kind::Identity, &whole).is_err());
        for length in 0..whole.len() {
            assert!(unseal(path, Kind::Desired, &whole[..length]).is_err(), "{length}");
        }
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = unseal(path, Kind::Desired, &flipped).unwrap_err();
            assert!(matches!(error, DocumentError::Damaged { .. }), "{bit}");
        }
    }

    #[test]
    fn what_damages_one_file_leaves_its_copy() {
        let folder = tempfile::tempdir().unwrap();
        let (folder, mut lost) = (folder.path(), Vec::new());
        write(folder, Kind::Desired, b"x").unwrap();
        copy(folder, Kind::Desired).unwrap();
        std::fs::write(folder.join("desired"), b"").unwrap();
        assert_eq!(read(folder, Kind::Desired, &mut lost).unwrap().unwrap(), b"x");
        std::fs::remove_file(folder.join("desired")).unwrap();
        assert_eq!(read(folder, Kind::Desired, &mut lost).unwrap().unwrap(), b"x");
        std::fs::write(folder.join("desired.old"), b"junk").unwrap();
        assert_eq!(read(folder, Kind::Desired, &mut lost).unwrap(), None);
        let says = ["is damaged: going on with its copy", "is missing: going on with its copy"];
        assert!(says.iter().zip(&lost).all(|(says, lost)| lost.ends_with(says)), "{lost:?}");
        assert!(lost[2].ends_with("is missing, and so is its copy: going on without"), "{lost:?}");
    }

    #[test]
    fn a_newer_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut newer = seal(Kind::Desired, b"x");
        newer[5] = 2;
        let check = check(&newer[..16], b"x");
        newer[16..24].copy_from_slice(&check);
        std::fs::write(folder.path().join("desired"), &newer).unwrap();
        let error = read(folder.path(), Kind::Desired, &mut Vec::new()).unwrap_err().to_string();
        assert!(error.contains("newer version of limpet-agent (format 2"), "{error}");
    }
}
