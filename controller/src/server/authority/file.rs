//! The file of the authority, in CBOR. It holds keys.
//!
//! Format 1 knew one authority and did not say its format.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use limpet_protocol::cbor;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::AuthorityError;
use crate::server::store;

/// The format that this version writes; one that it reads is not higher.
const FORMAT: u8 = 2;

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    format: u8,
    /// Makes certificates.
    pub(super) present: Kept,
    /// The certificate (DER) of the one whose place it is taking: its clients are let in. Nothing
    /// needs its key any more.
    pub(super) former: Option<ByteBuf>,
    /// Certificates (DER) of each authority by the one before it, the latest first.
    pub(super) links: Vec<ByteBuf>,
    /// All names that the controller was ever reached by: its certificate keeps them.
    pub(super) names: BTreeSet<String>,
}

/// An authority: its certificate in DER, and its key in PKCS #8.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) certificate: ByteBuf,
    pub(super) key: ByteBuf,
    /// Controller's wall clock, in milliseconds since 1970; 0 where format 1 did not say.
    pub(super) made_ms: u64,
}

/// What format 1 was.
#[derive(Serialize, Deserialize)]
struct Stored1 {
    certificate: ByteBuf,
    key: ByteBuf,
    names: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Format {
    #[serde(default)]
    format: u8,
}

impl Stored {
    /// A first authority.
    pub(super) fn first(present: Kept) -> Self {
        let (links, names) = (Vec::new(), BTreeSet::new());
        Self { format: FORMAT, present, former: None, links, names }
    }

    /// None where there is no file.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, AuthorityError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(AuthorityError::Read { path: path.into(), source }),
        };
        let damaged = |_| AuthorityError::Damaged(path.into());
        let Format { format } = cbor::decode(&bytes, bytes.len()).map_err(damaged)?;
        match format {
            0 => {
                let old: Stored1 = cbor::decode(&bytes, bytes.len()).map_err(damaged)?;
                let Stored1 { certificate, key, names } = old;
                let only = Self::first(Kept { certificate, key, made_ms: 0 });
                Ok(Some(Self { names, ..only }))
            }
            1..=FORMAT => cbor::decode(&bytes, bytes.len()).map(Some).map_err(damaged),
            _ => Err(AuthorityError::Newer { path: path.into(), format }),
        }
    }

    /// On disk when this returns.
    pub(super) fn write(&self, path: &Path) -> Result<(), AuthorityError> {
        Ok(store::write_key(path, &cbor::encode(self))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(byte: u8) -> Kept {
        let (certificate, key) = (ByteBuf::from([byte; 2]), ByteBuf::from([byte + 1; 2]));
        Kept { certificate, key, made_ms: 5 }
    }

    fn read(bytes: &[u8]) -> Result<Option<Stored>, AuthorityError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Stored::read(file.path())
    }

    fn bytes(hex: &str) -> Vec<u8> {
        let byte = |at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
        (0..hex.len() / 2).map(byte).collect()
    }

    #[test]
    fn golden_bytes() {
        let stored = Stored {
            former: Some(ByteBuf::from([3; 2])),
            links: vec![ByteBuf::from([9])],
            names: ["a.example".to_owned()].into(),
            ..Stored::first(kept(1))
        };
        let hex: String = cbor::encode(&stored).iter().map(|b| format!("{b:02x}")).collect();
        expect_test::expect!["a566666f726d6174026770726573656e74a36b6365727469666963617465420101636b6579420202676d6164655f6d730566666f726d6572420303656c696e6b73814109656e616d65738169612e6578616d706c65"].assert_eq(&hex);
        assert_eq!(read(&bytes(&hex)).unwrap(), Some(stored));
    }

    /// What version 0.1.0 wrote.
    const FORMAT_1: &str =
        "a36b6365727469666963617465420101636b6579420202656e616d65738169612e6578616d706c65";

    #[test]
    fn a_file_of_format_1_is_read() {
        let stored = read(&bytes(FORMAT_1)).unwrap().unwrap();
        let only = Stored::first(Kept { made_ms: 0, ..kept(1) });
        assert_eq!(stored, Stored { names: ["a.example".to_owned()].into(), ..only });
    }

    #[test]
    fn what_is_damaged_or_newer_is_left_alone() {
        let whole =
            cbor::encode(&Stored { former: Some(ByteBuf::from([3; 2])), ..Stored::first(kept(1)) });
        for length in 0..whole.len() {
            assert!(matches!(read(&whole[..length]), Err(AuthorityError::Damaged(_))), "{length}");
        }
        let newer = cbor::encode(&Stored { format: 3, ..Stored::first(kept(1)) });
        let why = read(&newer).unwrap_err().to_string();
        assert!(why.contains("newer version of limpet (format 3"), "{why}");
    }
}
