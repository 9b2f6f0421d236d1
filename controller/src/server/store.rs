//! The store: SQLite, one writer, everything that a restart must find.
//!
//! Rows hold what is looked up by; the rest of a thing is one CBOR record.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use limpet_protocol::{Held, KeyError, SecretName, WorkloadStatus, cbor};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

mod audit;
mod backup;
mod events;
mod keys;
mod secrets;
#[cfg(test)]
mod tests;
mod tokens;

pub(super) use audit::{AuditFilter, AuditRow};
pub(crate) use backup::{Existing, Source, restore};
pub(super) use events::{EventFilter, EventRow};
pub(super) use keys::Keys;

/// The version of the tables; a store with a higher one was written by a newer controller.
const VERSION: i64 = 3;

/// The files of the data folder.
const STORE: &str = "limpet.db";
/// A folder, which no backup holds: what is in it can be had again where it was built.
const PROGRAMS: &str = "agents";
const SIGNING_KEY: &str = "signing.key";
/// Files that hold secrets, of 0600 from their first byte on; a backup holds them too.
const KEYS: [&str; 4] = [SIGNING_KEY, "authority", secrets::STORE_KEY, "token.key"];

const TABLES: &str = "
    CREATE TABLE devices (id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE desired (device TEXT PRIMARY KEY, signed BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE deployments (name TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE reported (
        device TEXT NOT NULL, workload TEXT NOT NULL, at_ms INTEGER NOT NULL,
        status BLOB NOT NULL, PRIMARY KEY (device, workload)
    ) WITHOUT ROWID;
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER, device TEXT, workload TEXT,
        deployment TEXT, kind TEXT NOT NULL, message TEXT NOT NULL
    );
    CREATE INDEX events_by_device ON events (device, seq);
    CREATE INDEX events_by_deployment ON events (deployment, seq);
    CREATE TABLE results (name TEXT PRIMARY KEY, json TEXT NOT NULL) WITHOUT ROWID;
";

/// What comes to the tables of version 1.
const TABLES_2: &str = "
    CREATE TABLE forgotten (device TEXT PRIMARY KEY, held BLOB NOT NULL) WITHOUT ROWID;
";

/// What comes to the tables of version 2: settings of the whole fleet.
const SETTINGS: &str = "
    CREATE TABLE settings (name TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
";

/// What comes to those of version 2.
const TABLES_3: [&str; 5] = [SETTINGS, MEMBERS, audit::TABLES, tokens::TABLES, secrets::TABLES];

/// Devices that have joined.
const MEMBERS: &str = "
    CREATE TABLE members (device TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("another controller uses the data folder {0}: stop it, or say --data-dir")]
    InUse(PathBuf),
    #[error(
        "{path} was written by a newer version of limpet (format {version}, this one knows \
         {VERSION}): install that version, or use another --data-dir"
    )]
    Newer { path: PathBuf, version: i64 },
    #[error(
        "the store {path} cannot be used: {source}; restore it from a backup, or move it away to begin anew"
    )]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error("the store could not begin: another program holds it, or its disk fails")]
    NoTransaction,
    #[error("the store failed: {0}")]
    Sql(#[from] rusqlite::Error),
    #[error("the store holds a record that cannot be read: {0}")]
    Record(#[from] cbor::CborError),
    #[error("the store's key {0} is damaged: it must have 32 bytes; restore it from a backup")]
    StoreKey(PathBuf),
    #[error(
        "the store's key {0} is missing, and the store holds secrets under it: put it back, or \
         restore a backup"
    )]
    StoreKeyGone(PathBuf),
    #[error(
        "the secret {name}, version {version}, does not open: is store.key the one that belongs to \
         this store? Put that back, or restore a backup"
    )]
    Secret { name: SecretName, version: u32 },
    #[error("the controller's key {path}: {source}")]
    Key { path: PathBuf, source: KeyError },
    #[error(
        "{path} was written by a newer version of limpet (format {format}): install that version, \
         or restore a backup"
    )]
    NewerKeys { path: PathBuf, format: u8 },
    #[error(
        "{0} must be 32 bytes: take it from a backup; or remove it, and every token with it: then \
         `limpet up --new-login` makes one"
    )]
    TokenKey(PathBuf),
    #[error("the system gave no random bytes for a key")]
    NoRandomness,
}

/// The tables, and the folder they are in.
pub(super) struct Store {
    folder: PathBuf,
    connection: Connection,
    key: secrets::StoreKey,
    _lock: File,
}

/// A workload's status as a device reported it.
pub(super) struct ReportedRow {
    pub(super) device: String,
    pub(super) workload: String,
    pub(super) at_ms: u64,
    pub(super) status: WorkloadStatus,
}

type Result<T> = std::result::Result<T, StoreError>;

impl Store {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let lock = lock(folder)?;
        // Left where a backup, or an upload, did not come to its end.
        let _ = std::fs::remove_file(folder.join(backup::PART));
        for upload in std::fs::read_dir(folder.join(PROGRAMS)).into_iter().flatten().flatten() {
            if upload.path().extension().is_some_and(|part| part == "part") {
                let _ = std::fs::remove_file(upload.path());
            }
        }
        let connection = connect(&folder.join(STORE))?;
        let key = secrets::StoreKey::open(folder, &connection)?;
        Ok(Self { folder: folder.into(), connection, key, _lock: lock })
    }

    /// The keys that sign what the fleet is told; the first is made on first use.
    pub(super) fn keys(&self) -> Result<Keys> {
        Keys::open(self.folder.join(SIGNING_KEY))
    }

    /// What a backup of this store is made of.
    pub(super) fn source(&self) -> Source {
        Source { folder: self.folder.clone() }
    }

    /// The folder of agents' programs.
    pub(super) fn programs(&self) -> PathBuf {
        self.folder.join(PROGRAMS)
    }

    pub(super) fn begin(&self) -> Result<()> {
        Ok(self.connection.execute_batch("BEGIN IMMEDIATE")?)
    }

    /// To write: within a transaction only, so that what is refused as a whole is not kept in part.
    fn writer(&self) -> Result<&Connection> {
        match self.connection.is_autocommit() {
            true => Err(StoreError::NoTransaction),
            false => Ok(&self.connection),
        }
    }

    pub(super) fn commit(&self) -> Result<()> {
        Ok(self.connection.execute_batch("COMMIT")?)
    }

    pub(super) fn roll_back(&self) {
        if let Err(error) = self.connection.execute_batch("ROLLBACK") {
            log::debug!("nothing to roll back: {error}");
        }
    }

    /// All records of a table whose rows are a key and a record.
    pub(super) fn records<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>> {
        let (name, key) = table.names();
        let mut select = self.connection.prepare(&format!("SELECT {key}, record FROM {name}"))?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?)))?;
        rows.map(|row| {
            let (key, record) = row?;
            Ok((key, cbor::decode(&record, usize::MAX)?))
        })
        .collect()
    }

    /// One record of such a table.
    pub(super) fn record<T: DeserializeOwned>(&self, table: Table, key: &str) -> Result<Option<T>> {
        let (name, column) = table.names();
        let sql = format!("SELECT record FROM {name} WHERE {column} = ?1");
        let mut select = self.connection.prepare_cached(&sql)?;
        let record: Option<Vec<u8>> = select.query_row([key], |row| row.get(0)).optional()?;
        Ok(record.map(|record| cbor::decode(&record, record.len())).transpose()?)
    }

    pub(super) fn put<T: Serialize>(&self, table: Table, key: &str, record: &T) -> Result<()> {
        let (name, column) = table.names();
        let sql = format!("INSERT OR REPLACE INTO {name} ({column}, record) VALUES (?1, ?2)");
        self.writer()?.prepare_cached(&sql)?.execute(params![key, cbor::encode(record)])?;
        Ok(())
    }

    pub(super) fn delete(&self, table: Table, key: &str) -> Result<()> {
        let (name, column) = table.names();
        self.writer()?.execute(&format!("DELETE FROM {name} WHERE {column} = ?1"), [key])?;
        Ok(())
    }

    pub(super) fn desired(&self, device: &str) -> Result<Option<Vec<u8>>> {
        let mut select =
            self.connection.prepare_cached("SELECT signed FROM desired WHERE device = ?1")?;
        Ok(select.query_row([device], |row| row.get(0)).optional()?)
    }

    pub(super) fn put_desired(&self, device: &str, signed: &[u8]) -> Result<()> {
        self.writer()?
            .prepare_cached("INSERT OR REPLACE INTO desired (device, signed) VALUES (?1, ?2)")?
            .execute(params![device, signed])?;
        Ok(())
    }

    pub(super) fn reported(&self) -> Result<Vec<ReportedRow>> {
        let mut select =
            self.connection.prepare("SELECT device, workload, at_ms, status FROM reported")?;
        let rows = select.query_map([], |row| {
            let status: Vec<u8> = row.get(3)?;
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, status))
        })?;
        rows.map(|row| {
            let (device, workload, at_ms, status) = row?;
            let status = cbor::decode(&status, usize::MAX)?;
            Ok(ReportedRow { device, workload, at_ms, status })
        })
        .collect()
    }

    pub(super) fn put_reported(&self, row: &ReportedRow) -> Result<()> {
        self.writer()?
            .prepare_cached("INSERT OR REPLACE INTO reported VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![row.device, row.workload, row.at_ms, cbor::encode(&row.status)])?;
        Ok(())
    }

    pub(super) fn delete_reported(&self, device: &str, workload: &str) -> Result<()> {
        self.writer()?
            .prepare_cached("DELETE FROM reported WHERE device = ?1 AND workload = ?2")?
            .execute([device, workload])?;
        Ok(())
    }

    /// Forgets all that a device has reported, and what it was told, but for how far that had come.
    pub(super) fn forget_device(&self, device: &str, held: Held) -> Result<()> {
        self.writer()?.execute(
            "INSERT OR REPLACE INTO forgotten VALUES (?1, ?2)",
            params![device, cbor::encode(&held)],
        )?;
        for table in ["reported", "desired", "sealed"] {
            self.writer()?.execute(&format!("DELETE FROM {table} WHERE device = ?1"), [device])?;
        }
        self.delete(Table::Devices, device)
    }

    /// The latest desired state that a device can hold which was forgotten.
    pub(super) fn forgotten(&self, device: &str) -> Result<Option<Held>> {
        let mut select =
            self.connection.prepare_cached("SELECT held FROM forgotten WHERE device = ?1")?;
        let held: Option<Vec<u8>> = select.query_row([device], |row| row.get(0)).optional()?;
        Ok(held.map(|held| cbor::decode(&held, held.len())).transpose()?)
    }

    pub(super) fn results(&self) -> Result<Vec<(String, String)>> {
        let mut select = self.connection.prepare("SELECT name, json FROM results")?;
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<std::result::Result<_, _>>()?)
    }

    pub(super) fn put_result(&self, name: &str, json: &str) -> Result<()> {
        self.writer()?.execute("INSERT OR REPLACE INTO results VALUES (?1, ?2)", [name, json])?;
        Ok(())
    }
}

/// Tables whose rows are a key and a record.
#[derive(Debug, Clone, Copy)]
pub(super) enum Table {
    Devices,
    Deployments,
    Settings,
    Tokens,
    Members,
}

impl Table {
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Devices => ("devices", "id"),
            Self::Deployments => ("deployments", "name"),
            Self::Settings => ("settings", "name"),
            Self::Tokens => ("tokens", "id"),
            Self::Members => ("members", "device"),
        }
    }
}

fn begin(connection: &Connection, tables: &[&str]) -> Result<()> {
    let tables = tables.concat();
    let all = format!("BEGIN; {tables} PRAGMA user_version = {VERSION}; COMMIT;");
    Ok(connection.execute_batch(&all)?)
}

/// Makes the data folder where it is missing, and holds it: one program may use it.
fn lock(folder: &Path) -> Result<File> {
    let io = |action| move |source| StoreError::Io { action, path: folder.into(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io("make"))?;
    let lock = File::create(folder.join("lock")).map_err(io("lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::InUse(folder.into())),
        Err(std::fs::TryLockError::Error(e)) => Err(io("lock")(e)),
    }
}

/// Writes a file that only its owner can read, from its first byte on.
pub(super) fn write_key(path: &Path, seed: &[u8]) -> Result<()> {
    let fresh = path.with_extension("new");
    let written = || {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(seed)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    written().map_err(|source| StoreError::Io { action: "write", path: path.into(), source })
}

/// Makes a file where it is missing, for this user alone: SQLite would make it for all to read.
fn create(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn sync_folder(folder: &Path) -> Result<()> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| StoreError::Io { action: "write", path: folder.into(), source })
}

fn connect(path: &Path) -> Result<Connection> {
    let open = |source| StoreError::Open { path: path.into(), source };
    create(path).map_err(|source| StoreError::Io { action: "open", path: path.into(), source })?;
    let connection = Connection::open(path).map_err(open)?;
    // FULL: what is acknowledged to a device survives a power cut.
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
        .map_err(open)?;
    let version: i64 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(open)?;
    let tables_3 = TABLES_3.concat();
    match version {
        0 => begin(&connection, &[TABLES, TABLES_2, &tables_3])?,
        1 => begin(&connection, &[TABLES_2, &tables_3])?,
        2 => begin(&connection, &[&tables_3])?,
        VERSION => {}
        version => {
            return Err(StoreError::Newer { path: path.into(), version });
        }
    }
    Ok(connection)
}
