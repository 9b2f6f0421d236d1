//! Room on the disk: what an image needs, and what it must leave to others.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::StatVfs;
use rustix::io::Errno;

use super::manifest::Descriptor;
use super::{ImageError, io};

/// Images leave a part of the disk free, for what containers that run write meanwhile: a 64th, at
/// least and at most this much. Documents of the agent have a reserve of their own.
const RESERVE_PARTS: u64 = 64;
const RESERVE_BYTES_MIN: u64 = 1 << 20;
const RESERVE_BYTES_MAX: u64 = 256 << 20;
/// Files that may still be made, where the file system counts them.
const RESERVE_FILES: u64 = 256;

/// Bytes that images may still take below a folder.
pub(super) fn spare_bytes(folder: &Path) -> Result<u64, ImageError> {
    rustix::fs::statvfs(folder)
        .map(|stat| spare(&stat))
        .map_err(|e| io("look at", folder)(e.into()))
}

/// The same, of an open folder.
pub(super) fn spare_bytes_at(folder: impl AsFd) -> Result<u64, Errno> {
    rustix::fs::fstatvfs(folder).map(|stat| spare(&stat))
}

fn spare(stat: &StatVfs) -> u64 {
    if stat.f_files > 0 && stat.f_favail < RESERVE_FILES {
        return 0;
    }
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let reserve = bytes(stat.f_blocks) / RESERVE_PARTS;
    bytes(stat.f_bavail).saturating_sub(reserve.clamp(RESERVE_BYTES_MIN, RESERVE_BYTES_MAX))
}

/// A layer that is to be had.
pub(super) struct Wanted<'a> {
    pub(super) layer: &'a Descriptor,
    pub(super) diff_id: &'a String,
    /// Bytes that have yet to be received into the store.
    pub(super) to_receive: u64,
    /// Bytes that it unpacks to, as far as is known: never fewer than it has packed.
    pub(super) unpacked: u64,
}

/// The most that is taken at any moment while layers are received and unpacked one after the other.
pub(super) fn needed_bytes(layers: &[Wanted<'_>]) -> u64 {
    let step = |(held, peak): (u64, u64), wanted: &Wanted<'_>| {
        let held = held.saturating_add(wanted.unpacked);
        (held, peak.max(held.saturating_add(wanted.to_receive)))
    };
    layers.iter().fold((0, 0), step).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_stands_beside_its_archive_until_it_is_unpacked() {
        let text = r#"{"mediaType": "", "digest": "", "size": 0}"#;
        let (layer, diff_id) = (serde_json::from_str(text).unwrap(), String::new());
        let wanted = |to_receive, unpacked| Wanted {
            layer: &layer,
            diff_id: &diff_id,
            to_receive,
            unpacked,
        };
        assert_eq!(needed_bytes(&[]), 0);
        assert_eq!(needed_bytes(&[wanted(10, 30)]), 40);
        assert_eq!(needed_bytes(&[wanted(10, 30), wanted(1, 5)]), 40);
        assert_eq!(needed_bytes(&[wanted(10, 30), wanted(10, 10)]), 50);
        assert_eq!(needed_bytes(&[wanted(0, u64::MAX), wanted(1, 1)]), u64::MAX);
    }
}
