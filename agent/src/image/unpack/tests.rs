//! No archive, however made, reaches out of its folder.

use proptest::prelude::*;

use super::*;

/// An archive of these entries: kind, path and link.
fn archive(entries: &[(EntryType, String, String)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (kind, path, link) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        header.set_uid(rustix::process::getuid().as_raw().into());
        header.set_gid(rustix::process::getgid().as_raw().into());
        let content: &[u8] = if *kind == EntryType::Regular { b"x" } else { b"" };
        header.set_size(content.len() as u64);
        if let Some(fields) = header.as_gnu_mut() {
            fields.name[..path.len()].copy_from_slice(path.as_bytes());
            fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_cksum();
        archive.append(&header, content).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Unpacks into `inner` of a folder; gives what is in the folder beside it.
fn beside(archive: &[u8]) -> Vec<std::ffi::OsString> {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let _ = unpack(&mut &archive[..], &inner, 1 << 20);
    let entries = std::fs::read_dir(outer.path()).unwrap().flatten();
    entries.map(|entry| entry.file_name()).filter(|name| name != "inner").collect()
}

fn paths() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        3 => Just("a"), 3 => Just("b"), 2 => Just(".."), 1 => Just("."), 1 => Just(""),
        1 => Just(".wh.a"), 1 => Just(".wh..wh..opq"), 1 => Just(".wh..."),
    ];
    (any::<bool>(), prop::collection::vec(part, 1..5))
        .prop_map(|(root, parts)| format!("{}{}", if root { "/" } else { "" }, parts.join("/")))
}

#[test]
fn an_archive_may_end_with_its_last_byte_but_not_before() {
    let entries = [(EntryType::Regular, "a".to_owned(), String::new())];
    let whole = archive(&entries);
    for (length, fits) in [(512, false), (513, true), (700, true), (1024, true), (100, false)] {
        let folder = tempfile::tempdir().unwrap();
        let done = unpack(&mut &whole[..length], folder.path(), 1 << 20);
        assert_eq!(done.is_ok(), fits, "{length}: {done:?}");
        let content = std::fs::read(folder.path().join("a")).unwrap_or_default();
        assert!(!fits || content == b"x");
    }
}

#[test]
fn folders_that_an_archive_does_not_make_are_bounded() {
    let long = "a/".repeat(45) + "x";
    let entries: Vec<_> = (0..1500)
        .map(|number| (EntryType::Regular, format!("{number}/{long}"), String::new()))
        .collect();
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let done = unpack(&mut &archive(&entries)[..], folder.path(), 1 << 20);
    assert!(matches!(done, Err(UnpackError::TooManyImplied)), "{done:?}");
}

proptest! {
    #[test]
    fn nothing_is_made_outside(
        entries in prop::collection::vec((prop_oneof![
            Just(EntryType::Regular), Just(EntryType::Directory), Just(EntryType::Symlink),
            Just(EntryType::Link), Just(EntryType::Fifo), Just(EntryType::Char),
        ], paths(), paths()), 1..8),
    ) {
        prop_assert!(beside(&archive(&entries)).is_empty());
    }

    #[test]
    fn a_changed_byte_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let entries = [("a", ""), ("b/c", ""), ("b/d", "a")].map(|(path, link)| {
            let kind = if link.is_empty() { EntryType::Regular } else { EntryType::Symlink };
            (kind, path.to_owned(), link.to_owned())
        });
        let mut bytes = archive(&entries);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        prop_assert!(beside(&bytes).is_empty());
    }
}
