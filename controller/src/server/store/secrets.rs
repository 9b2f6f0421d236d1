//! Secrets, encrypted under a key that lies beside the store, and what was sealed of them.
//!
//! A row holds a nonce and the value under ChaCha20-Poly1305, bound to its name and version. A
//! secret that was deleted leaves its version behind: one of the same name goes on from there, so
//! that no revision is ever another's.

use std::collections::BTreeMap;
use std::path::Path;

use limpet_controller_core::{Secret, Secrets};
use limpet_protocol::{Plaintext, SealedSecret, SealingKey, SecretName, cbor};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use rusqlite::{Connection, OptionalExtension, params};

use super::{Result, Store, StoreError, write_key};

/// The file of the key.
pub(super) const STORE_KEY: &str = "store.key";

/// What comes to the tables of version 2 for secrets.
pub(super) const TABLES: &str = "
    CREATE TABLE secrets (
        name TEXT PRIMARY KEY, version INTEGER NOT NULL, created_ms INTEGER NOT NULL, value BLOB
    ) WITHOUT ROWID;
    CREATE TABLE sealed (
        device TEXT NOT NULL, secret TEXT NOT NULL, version INTEGER NOT NULL, key BLOB NOT NULL,
        sealed BLOB NOT NULL, PRIMARY KEY (device, secret, version)
    ) WITHOUT ROWID;
";

/// The key that secrets are encrypted under.
pub(super) struct StoreKey(LessSafeKey);

/// A secret's name, version, and when that was set, by the wall clock in milliseconds.
pub(in crate::server) type SecretRow = (SecretName, u32, u64);

impl StoreKey {
    /// Reads the key of a data folder; made on first use.
    pub(super) fn open(folder: &Path, connection: &Connection) -> Result<Self> {
        let path = folder.join(STORE_KEY);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let bytes = bytes.try_into().map_err(|_| StoreError::StoreKey(path))?;
                return Self::of(bytes);
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(StoreError::Io { action: "read", path, source }),
        }
        let needed: i64 = connection.query_row(
            "SELECT COUNT(*) FROM secrets WHERE value IS NOT NULL",
            [],
            |row| row.get(0),
        )?;
        if needed > 0 {
            return Err(StoreError::StoreKeyGone(path));
        }
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).map_err(|_| StoreError::NoRandomness)?;
        write_key(&path, &bytes)?;
        Self::of(bytes)
    }

    fn of(bytes: [u8; 32]) -> Result<Self> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes);
        Ok(Self(LessSafeKey::new(key.map_err(|_| StoreError::NoRandomness)?)))
    }

    fn encrypt(&self, name: &SecretName, version: u32, value: &Plaintext) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| StoreError::NoRandomness)?;
        let mut text = value.expose().to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(aad(name, version)),
                &mut text,
            )
            .map_err(|_| StoreError::Secret { name: name.clone(), version })?;
        Ok([nonce.as_slice(), &text].concat())
    }

    fn decrypt(&self, name: &SecretName, version: u32, value: &[u8]) -> Result<Plaintext> {
        let failed = || StoreError::Secret { name: name.clone(), version };
        let (nonce, text) = value.split_first_chunk::<NONCE_LEN>().ok_or_else(failed)?;
        let mut text = text.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.0.open_in_place(nonce, Aad::from(aad(name, version)), &mut text);
        let length = opened.map_err(|_| failed())?.len();
        text.truncate(length);
        Ok(text.into())
    }
}

fn aad(name: &SecretName, version: u32) -> Vec<u8> {
    cbor::encode(&("limpet/v1 store", name, version))
}

impl Store {
    /// All secrets that there are. That each opens is checked.
    pub(in crate::server) fn secrets(&self) -> Result<Secrets> {
        let mut secrets = BTreeMap::new();
        for (name, version, _) in self.secret_rows()? {
            let Some(value) = self.secret(&name, version)? else {
                continue;
            };
            secrets.insert(name, Secret::of(version, value.expose()));
        }
        Ok(secrets)
    }

    /// Names, versions and times of all secrets that there are.
    pub(in crate::server) fn secret_rows(&self) -> Result<Vec<SecretRow>> {
        let sql = "SELECT name, version, created_ms FROM secrets WHERE value IS NOT NULL";
        let mut select = self.connection.prepare(sql)?;
        let rows =
            select.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?)))?;
        let mut found = Vec::new();
        for row in rows {
            let (name, version, created_ms) = row?;
            if let Ok(name) = name.parse() {
                found.push((name, version, created_ms));
            }
        }
        Ok(found)
    }

    /// The value of a secret, where this is its version.
    pub(in crate::server) fn secret(
        &self,
        name: &SecretName,
        version: u32,
    ) -> Result<Option<Plaintext>> {
        let sql = "SELECT value FROM secrets WHERE name = ?1 AND version = ?2";
        let mut select = self.connection.prepare_cached(sql)?;
        let row = select.query_row(params![name.as_str(), version], |row| row.get(0));
        let value: Option<Vec<u8>> = row.optional()?.flatten();
        value.map(|value| self.key.decrypt(name, version, &value)).transpose()
    }

    /// The latest version that a secret of this name has had; 0 where there was none.
    pub(in crate::server) fn secret_version(&self, name: &SecretName) -> Result<u32> {
        let mut select =
            self.connection.prepare_cached("SELECT version FROM secrets WHERE name = ?1")?;
        Ok(select.query_row([name.as_str()], |row| row.get(0)).optional()?.unwrap_or(0))
    }

    /// Sets a secret, and forgets what was sealed of its earlier versions.
    pub(in crate::server) fn put_secret(
        &self,
        (name, version, created_ms): &SecretRow,
        value: &Plaintext,
    ) -> Result<Secret> {
        let encrypted = self.key.encrypt(name, *version, value)?;
        self.writer()?
            .prepare_cached("INSERT OR REPLACE INTO secrets VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![name.as_str(), version, created_ms, encrypted])?;
        self.writer()?.execute("DELETE FROM sealed WHERE secret = ?1", [name.as_str()])?;
        Ok(Secret::of(*version, value.expose()))
    }

    /// Forgets a secret, but for its version.
    pub(in crate::server) fn delete_secret(&self, name: &SecretName) -> Result<()> {
        self.writer()?
            .execute("UPDATE secrets SET value = NULL WHERE name = ?1", [name.as_str()])?;
        self.writer()?.execute("DELETE FROM sealed WHERE secret = ?1", [name.as_str()])?;
        Ok(())
    }

    /// What was sealed of a secret to this key of a device.
    pub(in crate::server) fn sealed(
        &self,
        (device, key): (&str, &SealingKey),
        (name, version): (&SecretName, u32),
    ) -> Result<Option<SealedSecret>> {
        let mut select = self.connection.prepare_cached(
            "SELECT sealed FROM sealed
             WHERE device = ?1 AND secret = ?2 AND version = ?3 AND key = ?4",
        )?;
        let found = params![device, name.as_str(), version, key.0.as_slice()];
        let sealed = select.query_row(found, |row| row.get(0)).optional()?;
        Ok(sealed.map(|sealed| SealedSecret { name: name.clone(), version, sealed }))
    }

    /// Keeps what was sealed, so that a device is told the same again.
    pub(in crate::server) fn put_sealed(
        &self,
        (device, key): (&str, &SealingKey),
        secret: &SealedSecret,
    ) -> Result<()> {
        let SealedSecret { name, version, sealed } = secret;
        self.writer()?
            .prepare_cached("INSERT OR REPLACE INTO sealed VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![device, name.as_str(), version, key.0.as_slice(), sealed])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> SecretName {
        "db".parse().unwrap()
    }

    fn set(store: &Store, version: u32, value: &[u8]) {
        store.begin().unwrap();
        store.put_secret(&(name(), version, 5), &value.to_vec().into()).unwrap();
        store.commit().unwrap();
    }

    #[test]
    fn a_secret_is_encrypted_and_opens_under_its_name_and_version_only() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        set(&store, 1, b"hunter2 and more");
        assert_eq!(store.secret(&name(), 1).unwrap().unwrap().expose(), b"hunter2 and more");
        assert_eq!(store.secret(&name(), 2).unwrap(), None);
        let secret = Secret { version: 1, bytes: 16, is_text: true };
        assert_eq!(store.secrets().unwrap(), Secrets::from([(name(), secret)]));
        let row: Vec<u8> =
            store.connection.query_row("SELECT value FROM secrets", [], |row| row.get(0)).unwrap();
        assert!(!row.windows(7).any(|part| part == b"hunter2"));
        for (other, version) in [("db", 2), ("dc", 1)] {
            assert!(store.key.decrypt(&other.parse().unwrap(), version, &row).is_err());
        }
        for at in 0..row.len() {
            let mut bad = row.clone();
            bad[at] ^= 1;
            assert!(store.key.decrypt(&name(), 1, &bad).is_err(), "flipped at {at}");
            assert!(store.key.decrypt(&name(), 1, &row[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_version_is_never_used_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        set(&store, 3, b"x");
        store.begin().unwrap();
        store.delete_secret(&name()).unwrap();
        store.commit().unwrap();
        assert!(store.secrets().unwrap().is_empty());
        assert_eq!(store.secret(&name(), 3).unwrap(), None);
        assert_eq!(store.secret_version(&name()).unwrap(), 3);
    }

    #[test]
    fn what_was_sealed_is_kept_per_device_and_key() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let sealed = SealedSecret { name: name(), version: 1, sealed: vec![1, 2] };
        let (one, other) = (SealingKey([1; 32]), SealingKey([2; 32]));
        store.begin().unwrap();
        store.put_sealed(("pi-1", &one), &sealed).unwrap();
        let found = |device, key| store.sealed((device, key), (&name(), 1)).unwrap();
        assert_eq!(found("pi-1", &one), Some(sealed));
        assert_eq!((found("pi-1", &other), found("pi-2", &one)), (None, None));
        store.put_secret(&(name(), 2, 5), &b"x".to_vec().into()).unwrap();
        assert_eq!(found("pi-1", &one), None);
        store.commit().unwrap();
    }

    #[test]
    fn the_key_is_made_private_and_its_loss_is_told() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(STORE_KEY);
        let store = Store::open(folder.path()).unwrap();
        set(&store, 1, b"x");
        drop(store);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let key = std::fs::read(&path).unwrap();
        let refused =
            || Store::open(folder.path()).and_then(|s| s.secrets()).unwrap_err().to_string();
        std::fs::write(&path, &key[1..]).unwrap();
        assert!(refused().contains("must have 32 bytes"), "{}", refused());
        std::fs::write(&path, [7; 32]).unwrap();
        assert!(refused().contains("secret db, version 1"), "{}", refused());
        std::fs::remove_file(&path).unwrap();
        assert!(refused().contains("store.key is missing"), "{}", refused());
        assert!(!path.exists());
        std::fs::write(&path, key).unwrap();
        assert_eq!(Store::open(folder.path()).unwrap().secrets().unwrap().len(), 1);
    }
}
