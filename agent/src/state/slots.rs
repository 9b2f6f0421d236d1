//! The checkpoint, which is written often: two files that take turns.
//!
//! Each holds a document whose content begins with a generation, u64, big endian. A write goes over
//! the older one, in place: no new blocks, no folder and no file's length change, and whatever
//! becomes of it, the other one is whole. The valid one of the higher generation is read.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::document::{self, BYTES_MAX, DocumentError, Kind};

/// Files grow by this much, so that most writes change no length.
const GROWS_BY: usize = 16 * 1024;

/// The generation of the next write; one write is under way at a time.
pub(super) struct Slots(AtomicU64);

/// What the files hold.
pub(super) struct Stored {
    pub(super) slots: Slots,
    pub(super) content: Option<Vec<u8>>,
}

impl Slots {
    /// Reads the latest checkpoint; None where there is none. Where one file is damaged `lost`
    /// says so: it may have been on its way when the power failed, or worn out since.
    ///
    /// # Errors
    /// When a newer version wrote it.
    pub(super) fn open(folder: &Path, lost: &mut Vec<String>) -> Result<Stored, DocumentError> {
        let mut best: Option<(u64, Vec<u8>)> = None;
        let mut missing = None;
        for path in [0, 1].map(|parity| path(folder, parity)) {
            match read(&path) {
                Ok(Some(found)) if best.as_ref().is_none_or(|best| found.0 > best.0) => {
                    best = Some(found);
                }
                Ok(Some(_)) => {}
                Ok(None) => missing = Some(path),
                Err(error @ DocumentError::Newer { .. }) => return Err(error),
                Err(error) => lost.push(format!(
                    "{error}: going on with the other one (a write that a power cut broke off \
                     leaves it so)"
                )),
            }
        }
        let generation = best.as_ref().map_or(0, |(generation, _)| *generation);
        if let Some(path) = missing.filter(|_| generation > 1) {
            lost.push(format!("{} is missing: going on with the other one", path.display()));
        }
        let slots = Self(AtomicU64::new(generation.saturating_add(1)));
        let content = best.map(|(_, content)| content);
        Ok(Stored { slots, content })
    }

    /// Writes a checkpoint over the older of the two.
    ///
    /// # Errors
    /// When it is not on disk; the other one still is, and the next write takes the same turn.
    pub(super) fn store(&self, folder: &Path, content: &[u8]) -> Result<(), DocumentError> {
        let generation = self.0.load(Ordering::Relaxed);
        let path = path(folder, generation % 2);
        let content = [&generation.to_be_bytes(), content].concat();
        let written = match content.len() > BYTES_MAX {
            true => Err(std::io::Error::new(ErrorKind::FileTooLarge, "it would not be read again")),
            false => {
                let bytes = document::seal(Kind::Checkpoint, &content);
                document::make_room(folder, || write_over(&path, &bytes))
            }
        };
        written.map_err(|source| DocumentError::Io { action: "write", path, source })?;
        self.0.store(generation.saturating_add(1), Ordering::Relaxed);
        Ok(())
    }
}

fn path(folder: &Path, parity: u64) -> PathBuf {
    folder.join(format!("{}.{parity}", Kind::Checkpoint.name()))
}

fn read(path: &Path) -> Result<Option<(u64, Vec<u8>)>, DocumentError> {
    let Some(bytes) = document::read_bytes(path)? else {
        return Ok(None);
    };
    let (_, content, _) = document::unseal(path, Kind::Checkpoint, &bytes)?;
    match content.split_first_chunk() {
        Some((generation, content)) => {
            Ok(Some((u64::from_be_bytes(*generation), content.to_vec())))
        }
        None => Err(DocumentError::Damaged { path: path.into() }),
    }
}

fn write_over(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let file = match OpenOptions::new().write(true).open(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => create(path)?,
        file => file?,
    };
    let mut bytes = bytes.to_vec();
    if bytes.len() as u64 > file.metadata()?.len() {
        bytes.resize(bytes.len().next_multiple_of(GROWS_BY), 0);
    }
    file.write_all_at(&bytes, 0)?;
    file.sync_data()
}

fn create(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    document::sync_folder(path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path) -> (Slots, Option<Vec<u8>>, usize) {
        let mut lost = Vec::new();
        let Stored { slots, content } = Slots::open(folder, &mut lost).unwrap();
        (slots, content, lost.len())
    }

    #[test]
    fn golden_bytes() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path()).0.store(folder.path(), b"x").unwrap();
        let bytes = std::fs::read(folder.path().join("checkpoint.1")).unwrap();
        assert_eq!(bytes.len(), GROWS_BY);
        let hex: String = bytes[..33].iter().map(|b| format!("{b:02x}")).collect();
        expect_test::expect!["4c4d5054030200000000000000000009fef3db6104423f34000000000000000178"]
            .assert_eq(&hex);
    }

    #[test]
    fn the_latest_is_read_and_lengths_do_not_matter() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for content in [&b"long, long ago"[..], b"later", &[7; 3 * GROWS_BY], b"short", b""] {
            let (slots, ..) = open(folder);
            slots.store(folder, content).unwrap();
            let (_, latest, lost) = open(folder);
            assert_eq!((latest.as_deref(), lost), (Some(content), 0));
        }
    }

    #[test]
    fn a_torn_write_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let (slots, ..) = open(folder);
        slots.store(folder, b"first").unwrap();
        slots.store(folder, b"second").unwrap();
        let path = path(folder, 0);
        let whole = std::fs::read(&path).unwrap();
        for end in 0..40 {
            for torn in [whole[..end].to_vec(), [&whole[..end], &[0; 64]].concat()] {
                std::fs::write(&path, torn).unwrap();
                let (_, content, lost) = open(folder);
                let expected = if end < 38 { "first" } else { "second" };
                assert_eq!(content.unwrap(), expected.as_bytes(), "{end}");
                assert_eq!(lost, usize::from(end < 38), "{end}");
            }
        }
        // What was read is not written over.
        std::fs::write(&path, b"torn").unwrap();
        open(folder).0.store(folder, b"third").unwrap();
        assert_eq!(open(folder).1.unwrap(), b"third");
        assert_eq!(read(&super::path(folder, 1)).unwrap().unwrap().1, b"first");
    }
}
