//! One layer's archive becomes a folder for overlayfs (OCI image-spec, layer.md).
//!
//! Whatever the archive says, nothing is written outside the folder: every path is opened below it
//! with `openat2(RESOLVE_IN_ROOT)`, where links lead at most to the folder's own root, and what is
//! made there is made by its last name alone, which is never followed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use tar::EntryType;

mod entry;

use super::room;

pub(super) use entry::{Entry, Extended, entry, extension, text, trimmed};

/// Entries of one layer at most.
const ENTRIES_MAX: u64 = 1_000_000;
/// Folders that entries are in and that the archive does not make at most: few do not make theirs.
const IMPLIED_MAX: u64 = 65_536;

/// Archives consist of blocks of this size (POSIX pax).
const BLOCK_BYTES: u64 = 512;
/// All the paths of folders of one layer: kept in memory until the end.
const FOLDER_BYTES_MAX: usize = 16 << 20;

/// Why a layer is not unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The archive ends too soon, or is none.
    #[error("cannot read it: {0}")]
    Read(#[source] std::io::Error),
    /// Not a compression we know, or a faulty one.
    #[error("cannot decompress it: {0}")]
    Compression(String),
    /// Not a layer.
    #[error("its media type {0:?} is none of tar, gzip and zstd")]
    MediaType(String),
    /// An entry that must not be made.
    #[error("entry {entry:?} {reason}")]
    Entry {
        /// Its path.
        entry: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An entry that could not be made.
    #[error("cannot {action} entry {entry:?}: {source}")]
    Make {
        /// What was tried.
        action: &'static str,
        /// Its path.
        entry: String,
        /// Why not.
        source: std::io::Error,
    },
    /// An entry larger than what may be written.
    #[error(
        "entry {entry:?} needs {claims} bytes, {left} may be written: it does not fit; remove \
         something, or use a larger disk"
    )]
    Space {
        /// Its path.
        entry: String,
        /// Its size.
        claims: u64,
        /// What is left.
        left: u64,
    },
    /// More entries than any image has.
    #[error("it has more than {ENTRIES_MAX} entries")]
    TooMany,
    /// Disk for the taking, at a few bytes of archive each.
    #[error("it has more than {IMPLIED_MAX} folders that it uses without making them")]
    TooManyImplied,
}

impl UnpackError {
    /// Whether there was no room for it.
    pub(super) fn is_for_want_of_room(&self) -> bool {
        match self {
            Self::Space { .. } => true,
            Self::Make { source, .. } => source.kind() == std::io::ErrorKind::StorageFull,
            Self::Read(_)
            | Self::Compression(_)
            | Self::MediaType(_)
            | Self::Entry { .. }
            | Self::TooMany
            | Self::TooManyImplied => false,
        }
    }
}

/// Unpacks an archive into an empty folder, writing at most `bytes_max`, and leaving to others what
/// must stay free.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "tar's kinds are open: what is none of those that describe another is an entry"
)]
pub(super) fn unpack(
    reader: &mut dyn Read,
    folder: &Path,
    bytes_max: u64,
) -> Result<(), UnpackError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = fs::open(folder, flags, Mode::empty()).map_err(|e| UnpackError::Read(e.into()))?;
    let ended = Rc::new(Cell::new(false));
    let reader = Aligned { reader, read: 0, ended: Rc::clone(&ended) };
    let mut tree = Tree {
        root,
        left: bytes_max,
        implied: 0,
        folder_times: BTreeMap::new(),
        folder_bytes: 0,
        ended,
    };
    let mut archive = tar::Archive::new(reader);
    let mut extended = Extended::default();
    let mut count: u64 = 0;
    for raw in archive.entries().map_err(UnpackError::Read)?.raw(true) {
        let mut raw = raw.map_err(UnpackError::Read)?;
        count += 1;
        if count > ENTRIES_MAX {
            return Err(UnpackError::TooMany);
        }
        match raw.header().entry_type() {
            EntryType::XHeader if !extended.pax_seen => extended.pax(&extension(&mut raw)?)?,
            EntryType::GNULongName => extended.path = Some(trimmed(extension(&mut raw)?)),
            EntryType::GNULongLink => extended.link = Some(trimmed(extension(&mut raw)?)),
            EntryType::XGlobalHeader => {}
            _ => {
                let entry = entry(raw.header(), std::mem::take(&mut extended))?;
                tree.make(&entry, &mut raw)?;
            }
        }
    }
    tree.finish()
}

/// An archive that ends without the zeros that should fill its last block, as umoci writes them and
/// Go's reader takes them: they are added here.
struct Aligned<'a> {
    reader: &'a mut dyn Read,
    read: u64,
    ended: Rc<Cell<bool>>,
}

impl Read for Aligned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut read = if self.ended.get() { 0 } else { self.reader.read(buffer)? };
        if read == 0 && !buffer.is_empty() {
            self.ended.set(true);
            let missing = self.read.next_multiple_of(BLOCK_BYTES) - self.read;
            read = usize::try_from(missing).unwrap_or(0).min(buffer.len());
            buffer[..read].fill(0);
        }
        self.read += read as u64;
        Ok(read)
    }
}

/// The folder that is being filled.
struct Tree {
    root: OwnedFd,
    left: u64,
    /// Folders that were made for what is in them.
    implied: u64,
    /// Set at the end: every file that is made in a folder changes its time.
    folder_times: BTreeMap<Vec<u8>, i64>,
    folder_bytes: usize,
    /// The archive has ended.
    ended: Rc<Cell<bool>>,
}

impl Tree {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "tar's kinds are open: what is none of a layer's is refused"
    )]
    fn make(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), UnpackError> {
        let fault = |reason| UnpackError::Entry { entry: text(&entry.path), reason };
        let path = clean(&entry.path).ok_or_else(|| fault("leads out of the image"))?;
        self.fits(entry)?;
        let Some((name, parents)) = path.split_last() else {
            return self.describe(&self.root, OsStr::new("."), entry, AtFlags::empty());
        };
        let parent = self.folder(parents, entry)?;
        let name = OsStr::from_bytes(name);
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return whiteout(&parent, hidden, entry);
        }
        let fail = |action| {
            let entry = text(&entry.path);
            move |e: Errno| UnpackError::Make { action, entry, source: e.into() }
        };
        if entry.kind != EntryType::Directory {
            clear(&parent, name).map_err(fail("replace what is at"))?;
        }
        match entry.kind {
            EntryType::Directory => {
                make_folder(&parent, name).map_err(fail("make"))?;
                let path = path.join(&b'/');
                self.folder_bytes += path.len();
                if self.folder_bytes > FOLDER_BYTES_MAX {
                    return Err(fault("is one folder too many: their names alone fill the memory"));
                }
                self.folder_times.insert(path, entry.mtime);
            }
            EntryType::Symlink => {
                let target = OsStr::from_bytes(&entry.link);
                fs::symlinkat(target, &parent, name).map_err(fail("link"))?;
            }
            EntryType::Link => return self.hard_link(&parent, name, entry),
            EntryType::Fifo => {
                fs::mknodat(&parent, name, FileType::Fifo, Mode::RUSR, 0).map_err(fail("make"))?;
            }
            EntryType::Regular | EntryType::Continuous => {
                self.file(&parent, name, entry, content)?;
            }
            EntryType::Block | EntryType::Char => {
                return Err(fault("is a device node, which images may not hold"));
            }
            _ => return Err(fault("is of a kind that layers may not hold")),
        }
        let link = entry.kind == EntryType::Symlink;
        let flags = if link { AtFlags::SYMLINK_NOFOLLOW } else { AtFlags::empty() };
        self.describe(&parent, name, entry, flags)
    }

    /// Looked at before each entry: images are not alone on the disk.
    fn fits(&self, entry: &Entry) -> Result<(), UnpackError> {
        let spare = room::spare_bytes_at(&self.root).map_err(|e| UnpackError::Make {
            action: "find room for",
            entry: text(&entry.path),
            source: e.into(),
        })?;
        let is_file = matches!(entry.kind, EntryType::Regular | EntryType::Continuous);
        let claims = if is_file { entry.size.max(1) } else { 1 };
        let left = self.left.min(spare);
        if claims <= left {
            return Ok(());
        }
        Err(UnpackError::Space { entry: text(&entry.path), claims, left })
    }

    /// Opens the folder that an entry is in; makes it where the archive does not.
    fn folder(&mut self, parents: &[&[u8]], entry: &Entry) -> Result<OwnedFd, UnpackError> {
        let fail = |e: Errno| UnpackError::Make {
            action: "open the folder of",
            entry: text(&entry.path),
            source: e.into(),
        };
        let whole = if parents.is_empty() { b".".to_vec() } else { parents.join(&b'/') };
        match self.open_folder(&whole) {
            Err(Errno::NOENT) => {}
            opened => return opened.map_err(fail),
        }
        for depth in 1..=parents.len() {
            let (name, above) = parents[..depth].split_last().ok_or(Errno::INVAL).map_err(fail)?;
            let above = if above.is_empty() { b".".to_vec() } else { above.join(&b'/') };
            let above = self.open_folder(&above).map_err(fail)?;
            match fs::mkdirat(&above, OsStr::from_bytes(name), Mode::from_raw_mode(0o755)) {
                Ok(()) => self.implied += 1,
                Err(Errno::EXIST) => {}
                Err(e) => return Err(fail(e)),
            }
            if self.implied > IMPLIED_MAX {
                return Err(UnpackError::TooManyImplied);
            }
        }
        self.open_folder(&whole).map_err(fail)
    }

    fn open_folder(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        fs::openat2(&self.root, OsStr::from_bytes(path), flags, Mode::empty(), resolve)
    }

    fn file(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
        content: &mut dyn Read,
    ) -> Result<(), UnpackError> {
        self.left = self.left.saturating_sub(entry.size);
        let fail = |source: std::io::Error| UnpackError::Make {
            action: "write",
            entry: text(&entry.path),
            source,
        };
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let file = fs::openat(parent, name, flags, mode).map_err(|e| fail(e.into()))?;
        let written = std::io::copy(content, &mut File::from(file)).map_err(fail)?;
        if written == entry.size && !self.ended.get() {
            return Ok(());
        }
        Err(UnpackError::Entry { entry: text(&entry.path), reason: "is cut off" })
    }

    fn hard_link(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let fault = |reason| UnpackError::Entry { entry: text(&entry.path), reason };
        let target = clean(&entry.link).ok_or_else(|| fault("links out of the image"))?;
        let (file, parents) = target.split_last().ok_or_else(|| fault("links to nothing"))?;
        let folder = self.folder(parents, entry)?;
        fs::linkat(&folder, OsStr::from_bytes(file), parent, name, AtFlags::empty()).map_err(|e| {
            UnpackError::Make { action: "link", entry: text(&entry.path), source: e.into() }
        })
    }

    /// Owner first: changing it takes the set-user-id bits and capabilities away.
    fn describe(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        entry: &Entry,
        flags: AtFlags,
    ) -> Result<(), UnpackError> {
        let fail = |action| {
            let entry = text(&entry.path);
            move |e: Errno| UnpackError::Make { action, entry, source: e.into() }
        };
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(fail("own"))?;
        if flags.is_empty() {
            fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(fail("set the mode of"))?;
            self.attributes(parent, name, entry).map_err(fail("set an attribute of"))?;
        }
        fs::utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(fail("set the time of"))
    }

    /// Capabilities and the user's own attributes; others mean something to the host.
    fn attributes(&self, parent: &OwnedFd, name: &OsStr, entry: &Entry) -> Result<(), Errno> {
        let wanted = entry
            .xattrs
            .iter()
            .filter(|(key, _)| key == b"security.capability" || key.starts_with(b"user."));
        let mut file: Option<OwnedFd> = None;
        for (key, value) in wanted {
            let file = match &file {
                Some(file) => file,
                None => {
                    let flags =
                        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    file.insert(fs::openat(parent, name, flags, Mode::empty())?)
                }
            };
            fs::fsetxattr(file, OsStr::from_bytes(key), value, XattrFlags::empty())?;
        }
        Ok(())
    }

    fn finish(self) -> Result<(), UnpackError> {
        for (path, mtime) in self.folder_times.iter().rev() {
            // Replaced by something else further on in the archive: that has its own time.
            let Ok(folder) = self.open_folder(path) else {
                continue;
            };
            let done = fs::utimensat(&folder, ".", &times(*mtime), AtFlags::empty());
            done.map_err(|e| UnpackError::Make {
                action: "set the time of",
                entry: text(path),
                source: e.into(),
            })?;
        }
        Ok(())
    }
}

/// The names along a path; None where one of them leads up. `/` and `.` count for nothing.
pub(super) fn clean(path: &[u8]) -> Option<Vec<&[u8]>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.map(|part| (part != b"..").then_some(part)).collect()
}

/// Hides something of the layers below, as overlayfs wants it (Documentation/filesystems/overlayfs).
fn whiteout(parent: &OwnedFd, hidden: &[u8], entry: &Entry) -> Result<(), UnpackError> {
    let made = if hidden == b".wh..opq" {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        fs::openat(parent, ".", flags, Mode::empty()).and_then(|folder| {
            fs::fsetxattr(folder, "trusted.overlay.opaque", b"y", XattrFlags::empty())
        })
    } else if hidden.is_empty() || hidden == b"." || hidden == b".." {
        return Err(UnpackError::Entry { entry: text(&entry.path), reason: "hides nothing" });
    } else {
        let name = OsStr::from_bytes(hidden);
        clear(parent, name)
            .and_then(|()| fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0))
    };
    made.map_err(|e| UnpackError::Make {
        action: "hide",
        entry: text(&entry.path),
        source: e.into(),
    })
}

/// Takes away what an earlier entry made at this name.
fn clear(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR) => fs::unlinkat(parent, name, AtFlags::REMOVEDIR),
        Err(e) => Err(e),
    }
}

fn make_folder(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) => {
            let there = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
                return Ok(());
            }
            clear(parent, name)?;
            fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
        }
        made => made,
    }
}

fn times(mtime: i64) -> Timestamps {
    let time = Timespec { tv_sec: mtime, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests;
