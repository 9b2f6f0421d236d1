//! What an archive says of its entries, believed only as far as it goes.

use std::io::Write;

use tar::EntryType;

use super::*;

/// An entry: its kind, its name, where it leads, and what it holds.
type Entry<'a> = (EntryType, &'a str, &'a str, &'a [u8]);

fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (kind, name, link, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        if let Some(fields) = header.as_gnu_mut() {
            fields.name[..name.len()].copy_from_slice(name.as_bytes());
            fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_cksum();
        archive.append(&header, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

fn open(bytes: &[u8]) -> (tempfile::NamedTempFile, Result<Files, String>) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    let path = file.path().display().to_string();
    let files = Files::open(file.path()).map_err(|e| e.to_string().replace(&path, "FILE"));
    (file, files)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn files_are_found_through_links_and_compression() {
    let (file, link, hard) = (EntryType::Regular, EntryType::Symlink, EntryType::Link);
    let big = vec![7; 100_000];
    let tar = archive(&[
        (EntryType::Directory, "d/", "", b""),
        (file, "./d/big", "", &big),
        (file, "small", "", b"text"),
        (link, "d/up", "../small", b""),
        (link, "d/again", "up", b""),
        (hard, "hard", "d/big", b""),
    ]);
    for bytes in [tar.clone(), gzip(&tar)] {
        let (_file, files) = open(&bytes);
        let files = files.unwrap();
        for name in ["small", "./small", "d/up", "d/again"] {
            assert_eq!(files.document(name).unwrap(), b"text", "{name}");
        }
        assert_eq!(files.document("hard").unwrap(), big);
        assert!(!files.has("d") && !files.has("absent") && !files.has("../small"));
    }
}

#[test]
fn entries_that_no_archive_has_are_refused() {
    let (file, link, hard) = (EntryType::Regular, EntryType::Symlink, EntryType::Link);
    let cases: [(&[Entry<'_>], &str); 9] = [
        (&[(file, "../x", "", b"x")], "\"../x\" leads out of the archive"),
        (&[(file, "a/../../x", "", b"x")], "leads out of the archive"),
        (&[(file, "x", "", b"1"), (file, "./x", "", b"2")], "\"x\" is there twice"),
        (&[(link, "x", "../y", b"")], "\"x\" links out of the archive"),
        (&[(link, "d/x", "../../y", b"")], "links out of the archive"),
        (&[(link, "x", "/etc/passwd", b"")], "links out of the archive"),
        (&[(hard, "x", "../etc/passwd", b"")], "links out of the archive"),
        (&[(EntryType::Char, "x", "", b"")], "is neither file, folder nor link"),
        (&[(EntryType::GNUSparse, "x", "", b"")], "is sparse"),
    ];
    for (entries, says) in cases {
        for bytes in [archive(entries), gzip(&archive(entries))] {
            let error = open(&bytes).1.err().unwrap();
            assert!(error.starts_with("FILE: ") && error.contains(says), "{says}: {error}");
        }
    }
    let rounds = archive(&[(link, "a", "b", b""), (link, "b", "a", b"")]);
    let (_file, files) = open(&rounds);
    let error = files.unwrap().document("a").unwrap_err().to_string();
    assert!(error.contains("a is a link to a link"), "{error}");
}

#[test]
fn what_was_not_copied_whole_is_refused() {
    let whole = archive(&[(EntryType::Regular, "x", "", &[1; 5000])]);
    let error = open(&whole[..3000]).1.err().unwrap();
    assert!(error.contains("ends within x: it was not copied whole"), "{error}");
    let packed = gzip(&whole);
    assert!(open(&packed[..packed.len() / 2]).1.is_err());
    let (_file, files) = open(b"root:x:0:0:\x1b[2J no archive at all, and longer than one block");
    let error = files.err();
    assert!(error.is_none_or(|e| !e.contains('\x1b')));
}

#[test]
fn names_are_bounded() {
    let names: Vec<String> = (0..66_000).map(|number| format!("{number}")).collect();
    let entries: Vec<Entry<'_>> =
        names.iter().map(|name| (EntryType::Regular, name.as_str(), "", &b""[..])).collect();
    let error = open(&archive(&entries)).1.err().unwrap();
    assert!(error.contains("no archive of images"), "{error}");
}

#[test]
fn a_folder_gives_only_what_is_in_it() {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("inner");
    std::fs::create_dir_all(inner.join("folder")).unwrap();
    std::fs::write(outer.path().join("outside"), "secret").unwrap();
    std::fs::write(inner.join("inside"), "text").unwrap();
    std::os::unix::fs::symlink("../outside", inner.join("exit")).unwrap();
    std::os::unix::fs::symlink("inside", inner.join("link")).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, inner.join("fifo"), fifo, Mode::RUSR, 0).unwrap();
    let files = Files::open(&inner).unwrap();
    assert_eq!(files.document("link").unwrap(), b"text");
    for name in ["exit", "../outside", "/etc/passwd", "fifo", "folder", "absent"] {
        assert!(files.document(name).is_err(), "{name}");
    }
}
