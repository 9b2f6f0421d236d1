//! Archives that are whole are taken in whole; of all others nothing is.

use std::fs::File;
use std::path::PathBuf;

use limpet_protocol::Digest;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::image::Registries;
use crate::image::layer::Compression;

/// Files of an archive, by name.
type Contents<'a> = Vec<(&'a str, &'a [u8])>;

struct Store {
    folder: tempfile::TempDir,
    images: Images,
}

impl Store {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::open(&folder.path().join("images"), Registries::default()).unwrap();
        Self { folder, images: images.made_for("linux/amd64".parse().unwrap()) }
    }

    fn preload(&self, files: &[(&str, &[u8])], name: Option<&str>) -> Result<Vec<String>, String> {
        let path = self.folder.path().join("archive.tar");
        let mut archive = tar::Builder::new(File::create(&path).unwrap());
        for (name, content) in files {
            append(&mut archive, name, content);
        }
        archive.finish().unwrap();
        self.preload_file(&path, name)
    }

    fn preload_file(&self, path: &Path, name: Option<&str>) -> Result<Vec<String>, String> {
        let name = name.map(|name| name.parse().unwrap());
        let done = self.images.preload(path, name.as_ref(), &|_| {});
        let names = |all: Vec<Preloaded>| all.into_iter().map(|image| image.name).collect();
        done.map(names).map_err(|e| e.to_string())
    }

    /// Whether nothing is kept of anything.
    fn is_empty(&self) -> bool {
        ["names", "blobs", "layers"].iter().all(|kind| self.count(kind) == 0)
    }

    fn count(&self, kind: &str) -> usize {
        entries(&self.folder.path().join("images").join(kind)).unwrap().len()
    }

    fn has(&self, name: &str) -> bool {
        self.images.local(&name.parse().unwrap()).is_some()
    }
}

fn append<W: std::io::Write>(archive: &mut tar::Builder<W>, name: &str, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(rustix::process::getuid().as_raw().into());
    header.set_gid(rustix::process::getgid().as_raw().into());
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, name, content).unwrap();
}

fn layer(file: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    append(&mut archive, file, file.as_bytes());
    archive.into_inner().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", Digest::of(bytes))
}

fn config(architecture: &str, layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| sha256(layer)).collect();
    let config = json!({
        "os": "linux", "architecture": architecture,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    config.to_string().into_bytes()
}

fn docker(entries: Value) -> Vec<u8> {
    entries.to_string().into_bytes()
}

fn described(bytes: &[u8], more: Value) -> Value {
    let mut described = json!({ "digest": sha256(bytes), "size": bytes.len() });
    let (Some(into), Value::Object(more)) = (described.as_object_mut(), more) else {
        unreachable!()
    };
    into.extend(more);
    described
}

fn manifest(config: &[u8], layers: &[&[u8]]) -> Vec<u8> {
    let media_type = Compression::None.media_type();
    let layers: Vec<Value> =
        layers.iter().map(|layer| described(layer, json!({ "mediaType": media_type }))).collect();
    let manifest =
        json!({ "schemaVersion": 2, "config": described(config, json!({})), "layers": layers });
    manifest.to_string().into_bytes()
}

/// A folder of OCI's layout.
fn layout(store: &Store, index: &Value, blobs: &[&[u8]]) -> PathBuf {
    let folder = store.folder.path().join("layout");
    std::fs::create_dir_all(folder.join("blobs/sha256")).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
    for blob in blobs {
        std::fs::write(folder.join("blobs/sha256").join(Digest::of(blob).to_string()), blob)
            .unwrap();
    }
    folder
}

#[test]
fn all_images_of_an_archive_are_taken_in_and_pinned() {
    let store = Store::new();
    let (one, two) = (layer("one"), layer("two"));
    let (first, second) = (config("amd64", &[&one]), config("amd64", &[&one, &two]));
    let list = docker(json!([
        { "Config": "a.json", "RepoTags": ["a", "r.io/a:1"], "Layers": ["one.tar"] },
        { "Config": "b.json", "RepoTags": ["b:2"], "Layers": ["one.tar", "two.tar"] },
    ]));
    let files: [(&str, &[u8]); 5] = [
        ("one.tar", &one),
        ("two.tar", &two),
        ("a.json", &first),
        ("b.json", &second),
        ("manifest.json", &list),
    ];
    let names = store.preload(&files, None).unwrap();
    assert_eq!(names, ["docker.io/library/a:latest", "r.io/a:1", "docker.io/library/b:2"]);
    let folder = store.folder.path().join("images");
    // Nothing needs them: they stay all the same.
    store.images.collect(&[], &std::collections::BTreeSet::new(), true).unwrap();
    assert!(store.has("a") && store.has("r.io/a:1") && store.has("b:2"));
    assert_eq!(pinned(&folder).unwrap().len(), 3);
    let why = store.preload(&files, Some("c")).unwrap_err();
    assert!(why.contains("holds 2 images"), "{why}");

    let b = "b:2".parse().unwrap();
    assert!(store.images.unpin(&b).unwrap() && !store.images.unpin(&b).unwrap());
    store.images.collect(&[], &std::collections::BTreeSet::new(), false).unwrap();
    assert!(store.has("a") && !store.has("b:2"));
    assert_eq!((store.count("layers"), store.count("names")), (1, 2));
}

#[test]
fn a_layout_gives_the_image_of_this_platform() {
    let store = Store::new();
    let (ours, theirs) = (layer("ours"), layer("theirs"));
    let (amd64, s390x) = (config("amd64", &[&ours]), config("s390x", &[&theirs]));
    let (right, wrong) = (manifest(&amd64, &[&ours]), manifest(&s390x, &[&theirs]));
    let platform = |arch: &str| json!({ "platform": { "os": "linux", "architecture": arch } });
    let nested = json!({ "schemaVersion": 2, "manifests": [
        described(&wrong, platform("s390x")), described(&right, platform("amd64")),
    ]});
    let nested = nested.to_string().into_bytes();
    let index = json!({ "manifests": [
        described(&nested, json!({ "annotations": { "org.opencontainers.image.ref.name": "1.0" } })),
    ]});
    // Of the other platform nothing is there, as `docker save` leaves it.
    let folder = layout(&store, &index, &[&nested, &right, &amd64, &ours]);
    let why = store.preload_file(&folder, None).unwrap_err();
    assert!(why.contains("has no full name in it: say `--name NAME`"), "{why}");
    let other = format!("r.io/a@sha256:{}", "0".repeat(64));
    let why = store.preload_file(&folder, Some(&other)).unwrap_err();
    assert!(why.contains("is wanted, what is here has sha256:"), "{why}");
    assert!(store.is_empty());
    for digest in [sha256(&nested), sha256(&right)] {
        let name = format!("r.io/a:1.0@{digest}");
        assert_eq!(store.preload_file(&folder, Some(&name)), Ok(vec![name.clone()]));
        let image = store.images.local(&name.parse().unwrap()).unwrap();
        assert_eq!(image.digest, Digest::of(&right));
    }
    let store = Store { images: store.images.made_for("linux/arm64".parse().unwrap()), ..store };
    let why = store.preload_file(&folder, Some("r.io/b")).unwrap_err();
    assert!(why.contains("made for linux/s390x, linux/amd64"), "{why}");
}

#[test]
fn of_an_archive_that_lies_nothing_stays() {
    let store = Store::new();
    let (one, two) = (layer("one"), layer("two"));
    let good = config("amd64", &[&one, &two]);
    let list = |config: &str, layers: &[&str]| {
        docker(json!([{ "Config": config, "RepoTags": ["a"], "Layers": layers }]))
    };
    let whole = list("c.json", &["1", "2"]);
    let named = format!("{}.json", Digest::of(b"other"));
    let foreign = config("s390x", &[&one, &two]);
    let cases: Vec<(Contents<'_>, &str)> = vec![
        (vec![("1", &one)], "neither oci-layout and index.json"),
        (vec![("manifest.json", b"{")], "manifest.json is no list of images"),
        (vec![("manifest.json", &whole), ("1", &one)], "c.json is not there"),
        (vec![("manifest.json", &whole), ("c.json", &good), ("1", &one)], "2 is not there"),
        (
            vec![("manifest.json", &whole), ("c.json", &good), ("1", &one), ("2", &one)],
            "unpacked layer sha256:",
        ),
        (
            vec![("manifest.json", &whole), ("c.json", &good), ("1", &one), ("2", b"\x1f\x8bno")],
            "layer sha256:",
        ),
        (
            vec![("manifest.json", &whole), ("c.json", &good), ("1", &one), ("2", &two[..513])],
            "is cut off",
        ),
        (vec![("manifest.json", &whole), ("c.json", b"{}")], "c.json its config: "),
        (vec![("manifest.json", &whole), ("c.json", &foreign), ("1", &one), ("2", &two)], "s390x"),
    ];
    for (files, says) in cases {
        let why = store.preload(&files, None).unwrap_err();
        assert!(why.contains("archive.tar: ") && why.contains(says), "{says}: {why}");
        assert!(store.is_empty(), "{says}");
    }
    let wrong = list(&named, &["1", "2"]);
    let files = [("manifest.json", &wrong[..]), (named.as_str(), &good), ("1", &one), ("2", &two)];
    let why = store.preload(&files, None).unwrap_err();
    assert!(why.contains("has bytes of sha256:"), "{why}");
    let short = list("c.json", &["1"]);
    let files = [("manifest.json", &short[..]), ("c.json", &good), ("1", &one)];
    let why = store.preload(&files, None).unwrap_err();
    assert!(why.contains("lists 1 layers for 2 diff ids"), "{why}");
}

#[test]
fn blobs_of_a_layout_are_what_they_are_called() {
    let layer = layer("a");
    let config = config("amd64", &[&layer]);
    let manifest = manifest(&config, &[&layer]);
    let name = json!({ "annotations": { "io.containerd.image.name": "docker.io/library/a:1" } });
    let index = json!({ "manifests": [described(&manifest, name)] });
    for (number, blob) in [&manifest, &config, &layer].into_iter().enumerate() {
        let store = Store::new();
        let folder = layout(&store, &index, &[&manifest, &config, &layer]);
        let path = folder.join("blobs/sha256").join(Digest::of(blob).to_string());
        let mut bytes = blob.clone();
        // Of the layer, what its one file holds.
        let last = bytes.len().min(513) - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let why = store.preload_file(&folder, None).unwrap_err();
        assert!(why.contains("has bytes of sha256:"), "{number}: {why}");
        std::fs::write(&path, [&blob[..], b" "].concat()).unwrap();
        let why = store.preload_file(&folder, None).unwrap_err();
        assert!(why.contains("has "), "{number}: {why}");
        std::fs::remove_file(&path).unwrap();
        let why = store.preload_file(&folder, None).unwrap_err();
        assert!(why.contains(" is not there"), "{number}: {why}");
        assert!(store.is_empty());
        std::fs::write(&path, blob).unwrap();
        assert_eq!(store.preload_file(&folder, None), Ok(vec!["docker.io/library/a:1".into()]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_changed_byte_never_panics_and_leaves_all_or_nothing(
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let store = Store::new();
        let one = layer("one");
        let config = config("amd64", &[&one]);
        let list = docker(json!([{ "Config": "c", "RepoTags": ["a"], "Layers": ["1"] }]));
        let mut archive = tar::Builder::new(Vec::new());
        for (name, content) in [("1", &one), ("c", &config), ("manifest.json", &list)] {
            append(&mut archive, name, content);
        }
        let mut bytes = archive.into_inner().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        let path = store.folder.path().join("changed.tar");
        std::fs::write(&path, bytes).unwrap();
        match store.preload_file(&path, None) {
            Ok(names) => prop_assert!(names.iter().all(|name| store.has(name))),
            Err(_) => prop_assert!(store.is_empty()),
        }
    }
}
