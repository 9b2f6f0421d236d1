//! What an archive says of one entry, read and bounded; nothing is made here.

use std::io::Read;

use tar::EntryType;

use super::UnpackError;

/// A path at most (PATH_MAX).
const PATH_BYTES_MAX: usize = 4096;
/// Extended headers and long names are read up to this size: the kernel's own bound on all
/// attributes of a file.
const EXTENSION_BYTES_MAX: u64 = 128 * 1024;

/// What extended headers say of the entry that follows (POSIX pax, and GNU's long names).
#[derive(Default)]
pub(in crate::image) struct Extended {
    pub(in crate::image) path: Option<Vec<u8>>,
    pub(in crate::image) link: Option<Vec<u8>>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<i64>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
    size: Option<u64>,
    /// One header of this kind describes an entry: more would only fill the memory.
    pub(in crate::image) pax_seen: bool,
}

/// One entry, with everything that says what it is.
pub(in crate::image) struct Entry {
    pub(in crate::image) path: Vec<u8>,
    pub(in crate::image) link: Vec<u8>,
    pub(in crate::image) kind: EntryType,
    pub(in crate::image) size: u64,
    pub(in crate::image) mode: u32,
    pub(in crate::image) uid: u32,
    pub(in crate::image) gid: u32,
    pub(in crate::image) mtime: i64,
    pub(in crate::image) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(in crate::image) fn extension<R: Read>(
    raw: &mut tar::Entry<'_, R>,
) -> Result<Vec<u8>, UnpackError> {
    let mut bytes = Vec::new();
    if raw.size() > EXTENSION_BYTES_MAX {
        return Err(UnpackError::Entry {
            entry: "extended header".to_owned(),
            reason: "is larger than 128 KiB",
        });
    }
    raw.read_to_end(&mut bytes).map_err(UnpackError::Read)?;
    Ok(bytes)
}

pub(in crate::image) fn trimmed(mut bytes: Vec<u8>) -> Vec<u8> {
    while bytes.last() == Some(&0) {
        bytes.pop();
    }
    bytes
}

impl Extended {
    /// Reads records of the form `LENGTH KEY=VALUE\n`, where the value may hold any byte.
    pub(in crate::image) fn pax(&mut self, mut bytes: &[u8]) -> Result<(), UnpackError> {
        let fault =
            || UnpackError::Entry { entry: "extended header".to_owned(), reason: "is malformed" };
        self.pax_seen = true;
        while !bytes.is_empty() {
            let space = bytes.iter().position(|b| *b == b' ').ok_or_else(fault)?;
            let length: usize = text(&bytes[..space]).parse().map_err(|_| fault())?;
            let record = bytes.get(space + 1..length.saturating_sub(1)).ok_or_else(fault)?;
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(fault)?;
            self.set(&text(&record[..equals]), &record[equals + 1..]).ok_or_else(fault)?;
            bytes = bytes.get(length..).ok_or_else(fault)?;
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &[u8]) -> Option<()> {
        match key {
            "path" => self.path = Some(value.to_vec()),
            "linkpath" => self.link = Some(value.to_vec()),
            "uid" => self.uid = Some(text(value).parse().ok()?),
            "gid" => self.gid = Some(text(value).parse().ok()?),
            "size" => self.size = Some(text(value).parse().ok()?),
            "mtime" => {
                let whole = text(value).split('.').next().unwrap_or_default().to_owned();
                self.mtime = Some(whole.parse().ok()?);
            }
            _ if key.starts_with("GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    self.xattrs.push((name.as_bytes().to_vec(), value.to_vec()));
                }
            }
        }
        Some(())
    }
}

pub(in crate::image) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(in crate::image) fn entry(
    header: &tar::Header,
    extended: Extended,
) -> Result<Entry, UnpackError> {
    let path = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
    let size = header.entry_size().map_err(UnpackError::Read)?;
    let refuse = |reason| Err(UnpackError::Entry { entry: text(&path), reason });
    if extended.sparse || header.entry_type() == EntryType::GNUSparse {
        return refuse("is sparse, which layers must not be (OCI image-spec, layer.md)");
    }
    if extended.size.is_some_and(|claimed| claimed != size) {
        return refuse("has two sizes");
    }
    if path.len() > PATH_BYTES_MAX || path.contains(&0) {
        return refuse("has a path that no file can have");
    }
    let id = |number: std::io::Result<u64>| {
        number.ok().and_then(|id| u32::try_from(id).ok()).unwrap_or(0)
    };
    Ok(Entry {
        link: extended
            .link
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default(),
        kind: header.entry_type(),
        size,
        mode: header.mode().map_err(UnpackError::Read)? & 0o7777,
        uid: extended.uid.unwrap_or_else(|| id(header.uid())),
        gid: extended.gid.unwrap_or_else(|| id(header.gid())),
        mtime: extended.mtime.unwrap_or_else(|| {
            header.mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0)
        }),
        xattrs: extended.xattrs,
        path,
    })
}
