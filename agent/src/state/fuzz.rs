//! What fuzzing feeds the decoders of the data folder with.

use limpet_agent_core::upgrade::{Launch, Now};

use super::*;

/// Starts on a data folder in which two files of one kind are as a disk may give them back (0 to 2),
/// or in which one holds what is foreign behind a check that holds (3 to 5).
pub(crate) fn document(folder: &Path, what: u8, data: &[u8]) {
    let folder = folder.join("data");
    let empty = emptied(&folder);
    assert!(empty.is_ok(), "{empty:?}");
    let kind = match what % 3 {
        0 => Kind::Identity,
        1 => Kind::Desired,
        _ => Kind::Checkpoint,
    };
    let written = match what {
        0..3 => found(&folder, kind, data),
        _ => std::fs::write(first(&folder, kind), sealed(kind, data)),
    };
    assert!(written.is_ok(), "{written:?}");
    starts(&folder);
    launches(&folder, data);
}

/// Whatever is recorded of programs leads to one.
fn launches(folder: &Path, data: &[u8]) {
    let written = std::fs::write(first(folder, Kind::Upgrade), sealed(Kind::Upgrade, data));
    assert!(written.is_ok(), "{written:?}");
    let (record, _) = upgrade_record(folder);
    let (base, boot) = (limpet_protocol::Digest([1; 32]), limpet_protocol::BootId([1; 16]));
    let now = Now { base, boot, at_ms: 0 };
    let Some(Launch { write: Some(write), .. }) = record.map(|record| record.launch(now)) else {
        return;
    };
    let kept = store_upgrade_record(folder, &write);
    assert!(kept.is_ok(), "{kept:?}");
    assert_eq!(upgrade_record(folder), (Some(write), Vec::new()));
}

/// Makes the folder, or leaves of it what costs most to make and says nothing.
fn emptied(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let entries = std::fs::read_dir(folder)?.flatten();
    let mut go = entries.filter(|entry| entry.file_name() != "reserve");
    go.try_for_each(|entry| std::fs::remove_file(entry.path()))
}

fn first(folder: &Path, kind: Kind) -> PathBuf {
    match kind {
        Kind::Checkpoint => folder.join("checkpoint.0"),
        Kind::Identity | Kind::Desired | Kind::Clock | Kind::Upgrade => kind.path(folder),
    }
}

/// The first two bytes of `data` say where the second file begins.
fn found(folder: &Path, kind: Kind, data: &[u8]) -> std::io::Result<()> {
    let Some(([high, low], data)) = data.split_first_chunk() else {
        return Ok(());
    };
    let middle = usize::from(u16::from_be_bytes([*high, *low])).min(data.len());
    let (one, other) = data.split_at(middle);
    let beside = match kind {
        Kind::Checkpoint => folder.join("checkpoint.1"),
        Kind::Identity | Kind::Desired | Kind::Clock | Kind::Upgrade => {
            kind.path(folder).with_extension("old")
        }
    };
    std::fs::write(Kind::Clock.path(folder), data)?;
    std::fs::write(first(folder, kind), one)?;
    std::fs::write(beside, other)
}

fn sealed(kind: Kind, data: &[u8]) -> Vec<u8> {
    match kind {
        Kind::Checkpoint => document::seal(kind, &[&7u64.to_be_bytes(), data].concat()),
        Kind::Identity | Kind::Desired | Kind::Clock | Kind::Upgrade => document::seal(kind, data),
    }
}

/// A device comes up whatever it finds, with an identity that it keeps, and what it finds the next
/// time is what it had.
fn starts(folder: &Path) {
    let opened = match State::open(folder, "pi-1".parse().ok()) {
        Ok(opened) => opened,
        Err(StateError::Document(DocumentError::Newer { .. }) | StateError::Key(_)) => return,
        Err(e) => return assert!(e.to_string().is_empty(), "{e}"),
    };
    let Opened { state, identity, desired, checkpoint, .. } = opened;
    if let Some(checkpoint) = &checkpoint {
        assert!(state.store_checkpoint(checkpoint).is_ok());
    }
    drop(state);
    let again = State::open(folder, None);
    assert!(again.is_ok(), "{:?}", again.err());
    if let Ok(again) = again {
        assert_eq!(again.identity.key.public(), identity.key.public());
        assert_eq!((again.desired, again.checkpoint), (desired, checkpoint));
    }
}
