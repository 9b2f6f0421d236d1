//! Where the files of an archive begin (POSIX pax, ustar, GNU tar).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;

use tar::EntryType;

use crate::image::layer::Compression;
use crate::image::unpack::{Extended, clean, entry, extension, text, trimmed};

/// Entries of an archive at most: an image has some hundred.
const ENTRIES_MAX: usize = 65_536;
/// All their names, which are kept in memory.
const NAME_BYTES_MAX: usize = 4 << 20;
/// Links from one entry to the next: old versions of `docker save` write one.
const LINKS_MAX: usize = 8;

/// The entries of an archive, by name.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: BTreeMap<String, Entry>,
    name_bytes: usize,
}

/// A file of an archive.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) size: u64,
    /// How it is packed itself, as its first bytes say.
    pub(super) compression: Compression,
}

#[derive(Debug)]
enum Entry {
    File(Place),
    /// Leads to another entry.
    Link(String),
}

impl Index {
    /// Looks through an archive, passing over what its files hold.
    pub(super) fn seeking(mut file: &File, bytes: u64) -> Result<Self, String> {
        let mut archive = tar::Archive::new(&mut file);
        let index = Self::of(archive.entries_with_seek().map_err(|e| unreadable(&e))?)?;
        let end = index.entries.iter().find(|(_, entry)| match entry {
            Entry::File(place) => place.offset.saturating_add(place.size) > bytes,
            Entry::Link(_) => false,
        });
        match end {
            Some((name, _)) => Err(format!("it ends within {name}: it was not copied whole")),
            None => Ok(index),
        }
    }

    /// Looks through an archive that cannot be read from the middle.
    pub(super) fn reading(reader: &mut dyn Read) -> Result<Self, String> {
        let mut archive = tar::Archive::new(reader);
        Self::of(archive.entries().map_err(|e| unreadable(&e))?)
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "tar's kinds are open: what is neither file nor folder nor link is refused"
    )]
    fn of<R: Read>(entries: tar::Entries<'_, R>) -> Result<Self, String> {
        let mut index = Self::default();
        let mut extended = Extended::default();
        for raw in entries.raw(true) {
            let mut raw = raw.map_err(|e| unreadable(&e))?;
            let offset = raw.raw_file_position();
            let kind = raw.header().entry_type();
            match kind {
                EntryType::XHeader if !extended.pax_seen => {
                    let bytes = extension(&mut raw).map_err(|e| e.to_string())?;
                    extended.pax(&bytes).map_err(|e| e.to_string())?;
                }
                EntryType::GNULongName => {
                    extended.path = Some(trimmed(extension(&mut raw).map_err(|e| e.to_string())?));
                }
                EntryType::GNULongLink => {
                    extended.link = Some(trimmed(extension(&mut raw).map_err(|e| e.to_string())?));
                }
                EntryType::XGlobalHeader => {}
                _ => {
                    let entry = entry(raw.header(), std::mem::take(&mut extended))
                        .map_err(|e| e.to_string())?;
                    let name = name(&entry.path, &[])
                        .ok_or_else(|| fault(&entry.path, "leads out of the archive"))?;
                    let found = match kind {
                        EntryType::Directory => continue,
                        EntryType::Regular | EntryType::Continuous => {
                            let compression = begins(&mut raw).map_err(|e| unreadable(&e))?;
                            Entry::File(Place { offset, size: entry.size, compression })
                        }
                        EntryType::Symlink => Entry::Link(symbolic(&name, &entry.link)?),
                        EntryType::Link => Entry::Link(
                            self::name(&entry.link, &[])
                                .ok_or_else(|| fault(&entry.path, "links out of the archive"))?,
                        ),
                        _ => return Err(fault(&entry.path, "is neither file, folder nor link")),
                    };
                    index.add(name, found)?;
                }
            }
        }
        Ok(index)
    }

    fn add(&mut self, name: String, entry: Entry) -> Result<(), String> {
        self.name_bytes += name.len();
        if let Entry::Link(target) = &entry {
            self.name_bytes += target.len();
        }
        if self.entries.len() >= ENTRIES_MAX || self.name_bytes > NAME_BYTES_MAX {
            return Err(format!(
                "it has more than {ENTRIES_MAX} entries, or {NAME_BYTES_MAX} bytes of names: it is \
                 no archive of images"
            ));
        }
        match self.entries.insert(name.clone(), entry) {
            None => Ok(()),
            Some(_) => Err(format!("entry {name:?} is there twice: which is meant?")),
        }
    }

    /// Where a file is.
    pub(super) fn find(&self, name: &str) -> Result<Place, String> {
        let mut name = name.strip_prefix("./").unwrap_or(name);
        for _ in 0..=LINKS_MAX {
            match self.entries.get(name) {
                Some(Entry::File(place)) => return Ok(*place),
                Some(Entry::Link(target)) => name = target,
                None => return Err("is not there".to_owned()),
            }
        }
        Err("is a link to a link to a link".to_owned())
    }
}

/// How a file is packed.
fn begins(file: &mut impl Read) -> std::io::Result<Compression> {
    let mut magic = Vec::new();
    file.take(4).read_to_end(&mut magic)?;
    Ok(Compression::of(&magic))
}

/// Where a symbolic link leads; by its name alone, as nothing is made on disk.
fn symbolic(name: &str, link: &[u8]) -> Result<String, String> {
    let above: Vec<&[u8]> = name.split('/').map(str::as_bytes).collect();
    let above = above.split_last().map_or(&[][..], |(_, above)| above);
    let fault = || fault(name.as_bytes(), "links out of the archive");
    if link.first() == Some(&b'/') {
        return Err(fault());
    }
    self::name(link, above).ok_or_else(fault)
}

/// A path below `above`, in its shortest form; None where it leads out of the archive.
fn name(path: &[u8], above: &[&[u8]]) -> Option<String> {
    let mut parts = above.to_vec();
    if above.is_empty() {
        parts = clean(path)?;
    } else {
        for part in path.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => drop(parts.pop()?),
                part => parts.push(part),
            }
        }
    }
    Some(text(&parts.join(&b'/')))
}

fn fault(path: &[u8], reason: &str) -> String {
    format!("entry {:?} {reason}", text(path))
}

fn unreadable(error: &std::io::Error) -> String {
    // Not the whole error: it repeats what was found, and what is no archive says anything.
    format!(
        "it is no archive that can be read ({}); use `docker save`, or skopeo's docker-archive: \
         and oci-archive:",
        error.kind()
    )
}
