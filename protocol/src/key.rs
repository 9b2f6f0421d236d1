//! Ed25519 keys (RFC 8032), over `ring`.

use std::fmt;
use std::str::FromStr;

use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};

use crate::id::{IdError, byte_id};

/// Why a key could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system has no randomness.
    #[error("the system gave no random bytes for a key")]
    NoRandomness,
    /// Not a seed of 32 bytes.
    #[error("the signing key is damaged: it must be a seed of 32 bytes")]
    Damaged,
}

/// What stands before the seed in PKCS #8.
const PKCS8_HEAD: [u8; 16] = *b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

/// A secret key, kept as its seed.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    seed: [u8; 32],
}

impl SigningKey {
    /// Makes a key from the system's randomness.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = [0; 32];
        SystemRandom::new().fill(&mut seed).map_err(|_| KeyError::NoRandomness)?;
        Self::from_seed(&seed)
    }

    /// Reads a key from its seed of 32 bytes.
    ///
    /// # Errors
    /// When it has another length.
    pub fn from_seed(seed: &[u8]) -> Result<Self, KeyError> {
        let seed: [u8; 32] = seed.try_into().map_err(|_| KeyError::Damaged)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| KeyError::Damaged)?;
        Ok(Self { pair, seed })
    }

    /// The secret that [`SigningKey::from_seed`] reads.
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// The key as PKCS #8 (RFC 5958, RFC 8410 section 7), as TLS libraries read it.
    pub fn pkcs8(&self) -> Vec<u8> {
        [PKCS8_HEAD.as_slice(), &self.seed].concat()
    }

    /// Reads what [`SigningKey::pkcs8`] and openssl write.
    ///
    /// # Errors
    /// When it is another kind of key, or more than a key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        Self::from_seed(der.strip_prefix(&PKCS8_HEAD).ok_or(KeyError::Damaged)?)
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public())
    }
}

byte_id!(
    /// A public key.
    PublicKey, 32
);

impl PublicKey {
    /// The first 16 hexadecimal digits: tells keys apart in names and messages.
    pub fn fingerprint(&self) -> String {
        self.to_string().chars().take(16).collect()
    }

    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}
