//! Copies of the store, taken while it is in use, and put into an empty folder.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags};
use serde_bytes::ByteBuf;

use super::{KEYS, STORE, StoreError, VERSION, lock, sync_folder, write_key};
use crate::backup::{self, BackupError, Header, Pieces};
use crate::server::clock::now_ms;

/// A copy of the store while it is made.
pub(super) const PART: &str = "backup.part";

/// What a backup is made of.
pub(crate) struct Source {
    pub(super) folder: PathBuf,
}

/// Why a backup cannot be restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestoreError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{path}: {source}")]
    Backup { path: PathBuf, source: BackupError },
    #[error("{0}: the store in it fails its own check: use another backup")]
    Broken(PathBuf),
    #[error("{0} already holds a store: name another --data-dir, or say --replace to put it aside")]
    Occupied(PathBuf),
}

/// What to do with a store that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Refuse.
    Keep,
    /// Move it into a folder beside.
    PutAside,
}

impl Source {
    /// Copies the store as it is at one moment; writers go on meanwhile. Blocks.
    pub(crate) fn take(&self) -> Result<Pieces, StoreError> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let part = self.folder.join(PART);
        remove(&part)?;
        super::create(&part).map_err(io("make", &part))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
        let connection = Connection::open_with_flags(self.folder.join(STORE), flags)?;
        let copied = connection.execute("VACUUM INTO ?1", [part.display().to_string()]);
        let counted = copied.and_then(|_| count(&part));
        let opened = File::open(&part).and_then(|file| Ok((file.metadata()?.len(), file)));
        // It goes with the last handle to it, whatever becomes of this process.
        remove(&part)?;
        let [devices, deployments, events] = counted?;
        let (store_bytes, file) = opened.map_err(io("read", &part))?;
        let mut header = Header::new(now_ms(), keys(&self.folder)?, store_bytes);
        (header.devices, header.deployments, header.events) = (devices, deployments, events);
        Ok(Pieces::new(&header, file))
    }
}

fn keys(folder: &Path) -> Result<BTreeMap<String, ByteBuf>, StoreError> {
    let mut keys = BTreeMap::new();
    for name in KEYS {
        let path = folder.join(name);
        match std::fs::read(&path) {
            Ok(key) => drop(keys.insert(name.to_owned(), ByteBuf::from(key))),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(io("read", &path)(e)),
        }
    }
    Ok(keys)
}

fn count(path: &Path) -> rusqlite::Result<[u64; 3]> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let count = |table| {
        connection.query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |row| row.get(0))
    };
    Ok([count("devices")?, count("deployments")?, count("events")?])
}

/// Puts a backup into a data folder that no controller uses. Where it is refused, what was there is
/// there.
///
/// # Errors
/// When the file is no whole backup that this version knows, or the folder must not be used.
pub(crate) fn restore(
    file: &Path,
    folder: &Path,
    existing: Existing,
) -> Result<Header, RestoreError> {
    let unread = |source| RestoreError::Backup { path: file.into(), source };
    let source = File::open(file).map_err(|e| unread(BackupError::Read(e)))?;
    let _lock = lock(folder)?;
    let store = folder.join(STORE);
    let mut there = KEYS.iter().chain(&[STORE]).map(|name| folder.join(name));
    if existing == Existing::Keep && there.any(|path| path.exists()) {
        return Err(RestoreError::Occupied(folder.into()));
    }
    let fresh = folder.join("limpet.db.new");
    let unpacked = unpack(source, &fresh).map_err(unread);
    let checked = unpacked.and_then(|header| check(file, &fresh).map(|()| header));
    let header = checked.inspect_err(|_| drop(std::fs::remove_file(&fresh)))?;
    if existing == Existing::PutAside {
        put_aside(folder)?;
    }
    // The keys first: a store without its keys would be given others, which no device believes.
    for (name, key) in header.keys.iter().filter(|(name, _)| KEYS.contains(&name.as_str())) {
        write_key(&folder.join(name), key)?;
    }
    std::fs::rename(&fresh, &store).map_err(io("write", &store))?;
    sync_folder(folder)?;
    Ok(header)
}

fn unpack(source: File, fresh: &Path) -> Result<Header, BackupError> {
    let mut store = super::create(fresh).map_err(BackupError::Write)?;
    store.set_len(0).map_err(BackupError::Write)?;
    let header = backup::read(std::io::BufReader::new(source), &mut store)?;
    store.sync_all().map_err(BackupError::Write)?;
    Ok(header)
}

/// The store in a backup is one, whole, and of a version that is known.
fn check(file: &Path, fresh: &Path) -> Result<(), RestoreError> {
    let broken = |_| RestoreError::Broken(file.into());
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = Connection::open_with_flags(fresh, flags).map_err(broken)?;
    let version = connection.query_row("PRAGMA user_version", [], |row| row.get(0));
    let version: i64 = version.map_err(broken)?;
    if version > VERSION {
        return Err(StoreError::Newer { path: file.into(), version }.into());
    }
    let says = connection.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0));
    match says.map_err(broken)?.as_str() {
        "ok" => Ok(()),
        _ => Err(RestoreError::Broken(file.into())),
    }
}

fn put_aside(folder: &Path) -> Result<(), StoreError> {
    let aside = folder.join(format!("replaced-{}", now_ms()));
    std::fs::create_dir(&aside).map_err(io("make", &aside))?;
    for name in [STORE, "limpet.db-wal", "limpet.db-shm"].iter().chain(&KEYS) {
        match std::fs::rename(folder.join(name), aside.join(name)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(io("write", &aside)(e)),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(io("remove", path)(e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Io { action, path, source }
}
