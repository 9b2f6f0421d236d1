//! The keys that sign what the fleet is told: the present one, and those before it.
//!
//! A file of 32 bytes is the seed of the only key, as every controller has it until it takes another.
//! Format 2 is CBOR. The secret half of a former key is kept for as long as a device may believe it,
//! the public half for what such a device holds.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use limpet_protocol::{KeyError, PublicKey, SigningKey, cbor};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{StoreError, write_key};

/// The format that this version writes; one that it reads is not higher.
const FORMAT: u8 = 2;
/// Former keys whose public half is kept, at most.
const FORMER_MAX: usize = 64;

/// All of them.
pub(in crate::server) struct Keys {
    path: PathBuf,
    present: SigningKey,
    /// The oldest first.
    former: Vec<Former>,
}

struct Former {
    public: PublicKey,
    /// None where nobody believes it any more.
    key: Option<SigningKey>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u8,
    present: ByteBuf,
    former: Vec<StoredFormer>,
}

#[derive(Serialize, Deserialize)]
struct StoredFormer {
    public: PublicKey,
    seed: Option<ByteBuf>,
}

type Result<T> = std::result::Result<T, StoreError>;

impl Keys {
    /// Reads them; a first one is made where there is no file.
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        match std::fs::read(&path) {
            Ok(bytes) => Self::read(path, &bytes),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let present = SigningKey::generate().map_err(broken(&path))?;
                write_key(&path, present.seed())?;
                Ok(Self { path, present, former: Vec::new() })
            }
            Err(source) => Err(StoreError::Io { action: "read", path, source }),
        }
    }

    fn read(path: PathBuf, bytes: &[u8]) -> Result<Self> {
        if bytes.len() == 32 {
            let present = SigningKey::from_seed(bytes).map_err(broken(&path))?;
            return Ok(Self { path, present, former: Vec::new() });
        }
        let stored: Stored =
            cbor::decode(bytes, bytes.len()).map_err(|_| broken(&path)(KeyError::Damaged))?;
        if stored.format > FORMAT {
            return Err(StoreError::NewerKeys { path, format: stored.format });
        }
        let present = SigningKey::from_seed(&stored.present).map_err(broken(&path))?;
        let former = |StoredFormer { public, seed }| {
            let key = seed.map(|seed| SigningKey::from_seed(&seed)).transpose();
            Ok(Former { public, key: key.map_err(broken(&path))? })
        };
        let former = stored.former.into_iter().map(former).collect::<Result<_>>()?;
        Ok(Self { path, present, former })
    }

    fn write(&self) -> Result<()> {
        let former = self.former.iter().map(|Former { public, key }| StoredFormer {
            public: *public,
            seed: key.as_ref().map(|key| ByteBuf::from(key.seed().to_vec())),
        });
        let present = ByteBuf::from(self.present.seed().to_vec());
        let stored = Stored { format: FORMAT, present, former: former.collect() };
        write_key(&self.path, &cbor::encode(&stored))
    }

    /// The one that all are to believe.
    pub(in crate::server) fn present(&self) -> &SigningKey {
        &self.present
    }

    /// The one that devices believe of whom nothing else was ever noted.
    pub(in crate::server) fn first(&self) -> PublicKey {
        self.former.first().map_or(self.present.public(), |former| former.public)
    }

    /// Whether there was another before the present one.
    pub(in crate::server) fn has_former(&self) -> bool {
        !self.former.is_empty()
    }

    /// The key with this public half, where it is there to sign with.
    pub(in crate::server) fn signing(&self, public: &PublicKey) -> Option<&SigningKey> {
        if *public == self.present.public() {
            return Some(&self.present);
        }
        self.former.iter().find(|former| former.public == *public)?.key.as_ref()
    }

    /// Whether it is one of this controller's.
    pub(in crate::server) fn has(&self, public: &PublicKey) -> bool {
        *public == self.present.public() || self.former.iter().any(|f| f.public == *public)
    }

    /// Makes another key the present one. On disk when this returns.
    pub(in crate::server) fn replace(&mut self) -> Result<()> {
        let fresh = SigningKey::generate().map_err(broken(&self.path))?;
        let before = std::mem::replace(&mut self.present, fresh);
        self.former.push(Former { public: before.public(), key: Some(before) });
        if self.former.len() > FORMER_MAX
            && let Some(at) = self.former.iter().position(|former| former.key.is_none())
        {
            self.former.remove(at);
        }
        let written = self.write();
        if written.is_err()
            && let Some(Former { key: Some(key), .. }) = self.former.pop()
        {
            self.present = key;
        }
        written
    }

    /// Forgets the secret halves of the keys that are older than any that was last heard to be
    /// believed. A younger one is kept: it may have been taken since by who has not said so yet.
    pub(in crate::server) fn retire(&mut self, believed: &BTreeSet<PublicKey>) -> Result<()> {
        let mut forgotten = false;
        for former in self.former.iter_mut().take_while(|f| !believed.contains(&f.public)) {
            forgotten |= former.key.take().is_some();
        }
        if forgotten { self.write() } else { Ok(()) }
    }
}

fn broken(path: &Path) -> impl Fn(KeyError) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Key { path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SigningKey {
        SigningKey::from_seed(&[byte; 32]).unwrap()
    }

    fn at(folder: &tempfile::TempDir) -> PathBuf {
        folder.path().join("signing.key")
    }

    #[test]
    fn golden_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let former = |byte, key| Former { public: self::key(byte).public(), key };
        let former = vec![former(1, None), former(2, Some(key(2)))];
        Keys { path: at(&folder), present: key(3), former }.write().unwrap();
        let bytes = std::fs::read(at(&folder)).unwrap();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        expect_test::expect!["a366666f726d6174026770726573656e745820030303030303030303030303030303030303030303030303030303030303030366666f726d657282a2667075626c696358208a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c6473656564f6a2667075626c696358208139770ea87d175f56a35466c34c7ecccb8d8a91b4ee37a25df60f5b8fc9b394647365656458200202020202020202020202020202020202020202020202020202020202020202"].assert_eq(&hex);
        let read = Keys::open(at(&folder)).unwrap();
        assert_eq!((read.present.seed(), read.first()), (key(3).seed(), key(1).public()));
        assert!(read.signing(&key(1).public()).is_none() && read.has(&key(1).public()));
        assert_eq!(read.signing(&key(2).public()).unwrap().seed(), key(2).seed());
        assert!(!read.has(&key(4).public()));
    }

    #[test]
    fn a_file_of_32_bytes_is_the_only_key_until_another_is_made() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(at(&folder), [1; 32]).unwrap();
        let mut keys = Keys::open(at(&folder)).unwrap();
        assert!(keys.present().seed() == key(1).seed() && !keys.has_former());
        keys.replace().unwrap();
        keys.replace().unwrap();
        let read = || Keys::open(at(&folder)).unwrap();
        assert_eq!((read().present.public(), read().former.len()), (keys.present.public(), 2));
        assert_eq!((read().first(), read().former[0].public), (key(1).public(), key(1).public()));
        // Who believes the oldest may have taken a younger one, and not have said so yet.
        let younger = keys.former[1].public;
        keys.retire(&[key(1).public()].into()).unwrap();
        assert!(read().former.iter().all(|former| former.key.is_some()));
        keys.retire(&[younger].into()).unwrap();
        assert!(read().signing(&key(1).public()).is_none() && read().has(&key(1).public()));
        assert!(read().signing(&younger).is_some());
        keys.retire(&[keys.present().public()].into()).unwrap();
        assert!(read().former.iter().all(|former| former.key.is_none()));
    }

    #[test]
    fn what_is_damaged_or_newer_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut keys = Keys::open(at(&folder)).unwrap();
        keys.replace().unwrap();
        let whole = std::fs::read(at(&folder)).unwrap();
        for length in (0..whole.len()).filter(|length| *length != 32) {
            std::fs::write(at(&folder), &whole[..length]).unwrap();
            assert!(matches!(Keys::open(at(&folder)), Err(StoreError::Key { .. })), "{length}");
        }
        let newer = Stored { format: 3, present: ByteBuf::from([1; 32]), former: vec![] };
        std::fs::write(at(&folder), cbor::encode(&newer)).unwrap();
        let why = Keys::open(at(&folder)).err().unwrap().to_string();
        assert!(why.contains("newer version of limpet"), "{why}");
    }
}
