//! What fuzzing feeds the decoders of images with: whoever runs a registry, or makes an image,
//! decides every byte.

use std::fs::Metadata;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use limpet_protocol::{Signal, cbor};

use super::auth::Challenge;
use super::layer::{self, Compression};
use super::manifest::{ConfigFile, ImageConfig, Manifest, Platform};
use super::unpack::unpack;
use super::{ImageName, manifest, preload, signature};
use crate::tree;

/// What a layer may unpack to here: an input shows what it can do long before.
const UNPACKED_BYTES_MAX: u64 = 4 << 20;

/// Reads `data` as its first byte says: a manifest or index, a config, a name, what a registry asks
/// for, or signatures.
pub fn images(data: &[u8]) {
    let Some((what, data)) = data.split_first() else {
        return;
    };
    let text = std::str::from_utf8(data);
    match (what % 5, text) {
        (0, _) => manifest(data),
        (1, _) => config(data),
        (2, Ok(text)) => name(text),
        (3, Ok(text)) => challenge(text),
        (4, _) => signature::fuzz::signatures(data),
        _ => {}
    }
}

fn manifest(data: &[u8]) {
    let Ok(manifest) = Manifest::parse(data) else {
        return;
    };
    if let Some(Ok(chosen)) = platform().map(|here| manifest.choose(&here)) {
        assert!(manifest::digest(&chosen.digest).is_some());
    }
    for layer in manifest.config.iter().chain(&manifest.layers) {
        assert!(manifest::digest(&layer.digest).is_some());
        let _ = layer::compression(layer);
    }
}

fn platform() -> Option<Platform> {
    serde_json::from_str(r#"{"os":"linux","architecture":"arm","variant":"v7"}"#).ok()
}

fn config(data: &[u8]) {
    let Ok(file) = ConfigFile::parse(data) else {
        return;
    };
    let _ = platform().and_then(|here| file.foreign(&here));
    assert!(file.rootfs.diff_ids.iter().all(|id| manifest::digest(id).is_some()));
    let config = file.config.unwrap_or_default();
    let _ = config.stop_signal.as_ref().map(|signal| signal.parse::<Signal>());
    // As a shim is told of it.
    let told: Option<ImageConfig> = cbor::decode(&cbor::encode(&config), usize::MAX).ok();
    assert_eq!(told, Some(config));
}

fn name(text: &str) {
    if let Ok(name) = text.parse::<ImageName>() {
        assert_eq!(name.to_string().parse().as_ref(), Ok(&name));
        assert!(!name.repository().contains("..") && !name.reference().contains('/'));
    }
}

fn challenge(text: &str) {
    if let Some(Challenge::Bearer { realm, .. }) = Challenge::parse(text) {
        assert!(realm.len() <= text.len());
    }
}

/// Unpacks `data` below `folder`, after its first byte: an archive whose headers are given the check
/// sums that they lack, gzip, zstd, or an archive as it is; or reads it as an archive of images, with
/// check sums or as it is. Nothing beside may change.
pub fn layers(folder: &Path, data: &[u8]) {
    let Some((what, data)) = data.split_first() else {
        return;
    };
    let target = folder.join("target");
    let beside = Beside::new(folder);
    match what % 6 {
        0 => layer(&target, &checked(data), Compression::None),
        1 => layer(&target, data, Compression::Gzip),
        2 => layer(&target, data, Compression::Zstd),
        3 => layer(&target, data, Compression::None),
        4 => archive(&target, &checked(data)),
        _ => archive(&target, data),
    }
    beside.check(folder);
    let removed = match target.is_dir() {
        true => tree::remove(&target),
        false => std::fs::remove_file(&target),
    };
    assert!(removed.is_ok(), "{removed:?}");
}

fn layer(target: &Path, data: &[u8], compression: Compression) {
    assert!(std::fs::create_dir(target).is_ok());
    let mut reader = layer::decompressed(data, compression).take(UNPACKED_BYTES_MAX);
    if unpack(&mut reader, target, UNPACKED_BYTES_MAX).is_ok() {
        let _ = std::io::copy(&mut reader, &mut std::io::sink());
    }
}

fn archive(target: &Path, data: &[u8]) {
    assert!(std::fs::write(target, data).is_ok());
    let compression = Compression::of(data);
    let mut reader = layer::decompressed(data, compression).take(UNPACKED_BYTES_MAX + 1);
    // One that unpacks to much is read for long, and says nothing that a small one does not.
    if std::io::copy(&mut reader, &mut std::io::sink()).unwrap_or(0) <= UNPACKED_BYTES_MAX {
        preload::fuzz::archive(target, UNPACKED_BYTES_MAX);
    }
}

/// An archive with the check sums that its headers should have.
fn checked(data: &[u8]) -> Vec<u8> {
    let mut archive = data.to_vec();
    let mut at: usize = 0;
    while let Some(block) = archive.get_mut(at..at.saturating_add(512)) {
        let header = tar::Header::from_byte_slice(block);
        let size = header.entry_size().unwrap_or(0);
        let mut header = header.clone();
        if block.iter().any(|byte| *byte != 0) {
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        let blocks = usize::try_from(size.div_ceil(512)).unwrap_or(usize::MAX);
        at = at.saturating_add(blocks.saturating_add(1).saturating_mul(512));
    }
    archive
}

/// What is beside a layer's folder: a file, a folder with a file, and a link to that folder. They
/// are made once, and must never change.
struct Beside(Vec<[i64; 8]>);

const CANARIES: [&str; 4] = ["file", "folder", "folder/file", "link"];

impl Beside {
    fn new(folder: &Path) -> Self {
        if !folder.join("link").is_symlink() {
            let made = std::fs::create_dir(folder.join("folder"))
                .and_then(|()| std::fs::write(folder.join("file"), "canary"))
                .and_then(|()| std::fs::write(folder.join("folder/file"), "canary"))
                .and_then(|()| symlink("folder", folder.join("link")));
            assert!(made.is_ok(), "{made:?}");
        }
        Self(Self::look(folder))
    }

    /// Whatever is done to a file changes its time of change, at least.
    fn look(folder: &Path) -> Vec<[i64; 8]> {
        let canaries = CANARIES.iter().map(|name| folder.join(name).symlink_metadata());
        let times = canaries.map(|found| found.map(|found| Self::shape(&found)));
        times.map(|times| times.unwrap_or_default()).collect()
    }

    fn shape(found: &Metadata) -> [i64; 8] {
        let [inode, size, links] =
            [found.ino(), found.size(), found.nlink()].map(|n| i64::try_from(n).unwrap_or(-1));
        let [mode, owner] = [found.mode(), found.uid()].map(i64::from);
        [inode, size, links, mode, owner, found.mtime_nsec(), found.ctime(), found.ctime_nsec()]
    }

    fn check(&self, folder: &Path) {
        assert_eq!(self.0, Self::look(folder), "something beside the layer changed");
        let names = std::fs::read_dir(folder).map(|entries| entries.flatten().count());
        assert_eq!(names.ok(), Some(4), "something was made or removed beside the layer");
    }
}
