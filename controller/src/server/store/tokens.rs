//! The key of tokens' hashes.

use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use super::{Result, Store, StoreError, write_key};

pub(super) const TABLES: &str = "
    CREATE TABLE tokens (id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
";

const TOKEN_KEY: &str = "token.key";

impl Store {
    /// The key that tokens are hashed under; made on first use.
    ///
    /// It is a file beside the store, so that who can write the store alone, or has a copy of it
    /// alone, can neither make a token nor try one.
    pub(in crate::server) fn token_key(&self) -> Result<hmac::Key> {
        let path = self.folder.join(TOKEN_KEY);
        let key = |bytes: &[u8]| hmac::Key::new(hmac::HMAC_SHA256, bytes);
        match std::fs::read(&path) {
            Ok(bytes) if bytes.len() == 32 => return Ok(key(&bytes)),
            Ok(_) => return Err(StoreError::TokenKey(path)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(StoreError::Io { action: "read", path, source }),
        }
        let mut bytes = [0; 32];
        SystemRandom::new().fill(&mut bytes).map_err(|_| StoreError::NoRandomness)?;
        write_key(&path, &bytes)?;
        Ok(key(&bytes))
    }
}
