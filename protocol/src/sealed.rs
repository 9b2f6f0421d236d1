//! What only one receiver can read: secrets, sealed to a device, and streams, sealed to whoever
//! looks.
//!
//! Each is HPKE (`hpke.rs`) under an `info` that says what it is: a box for one device, secret and
//! version opens as nothing else.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::cbor;
use crate::command::{SealedChunk, StreamChunk};
use crate::hpke::{Context, OpeningKey, SealError, SealingKey, TAG_BYTES};
use crate::id::{DeviceId, SecretName, StreamId};

/// A secret's value at most, in bytes.
pub const SECRET_BYTES_MAX: usize = 16 * 1024;

/// Bytes that sealing adds to a value: the sender's key, and the tag.
pub const SEALED_BYTES_MORE: usize = 32 + TAG_BYTES;

/// A value that nobody but its user may see: no message, log or debug output shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Plaintext(Zeroizing<Vec<u8>>);

impl Plaintext {
    /// The value.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Plaintext {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// One version of a secret, for one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSecret {
    /// Its name.
    #[serde(rename = "n")]
    pub name: SecretName,
    /// Its version, from 1.
    #[serde(rename = "v")]
    pub version: u32,
    /// The sender's key, then the sealed value.
    #[serde(rename = "b", with = "serde_bytes")]
    pub sealed: Vec<u8>,
}

impl SealedSecret {
    /// Seals a value to a device. Each call gives other bytes.
    ///
    /// # Errors
    /// When the key is none, or the system has no randomness.
    pub fn seal(
        to: &SealingKey,
        device: &DeviceId,
        (name, version): (&SecretName, u32),
        value: &Plaintext,
    ) -> Result<Self, SealError> {
        let (sender, context) = Context::sender(to, &secret_info(device, name, version))?;
        let sealed = [&sender.0, context.seal(0, &[], value.expose())?.as_slice()].concat();
        Ok(Self { name: name.clone(), version, sealed })
    }

    /// Opens it on the device that it was sealed for.
    ///
    /// # Errors
    /// When it was sealed for another device, secret or version, or has changed since.
    pub fn open(&self, key: &OpeningKey, device: &DeviceId) -> Result<Plaintext, SealError> {
        let Some((sender, sealed)) = self.sealed.split_first_chunk::<32>() else {
            return Err(SealError::Short);
        };
        let info = secret_info(device, &self.name, self.version);
        let context = Context::receiver(&SealingKey(*sender), key, &info)?;
        context.open(0, &[], sealed).map(Plaintext)
    }
}

fn secret_info(device: &DeviceId, name: &SecretName, version: u32) -> Vec<u8> {
    cbor::encode(&("limpet/v1 secret", device, name, version))
}

fn stream_info(device: &DeviceId, stream: StreamId) -> Vec<u8> {
    cbor::encode(&("limpet/v1 stream", device, stream))
}

fn chunk_aad(device: &DeviceId, stream: StreamId, number: u64) -> Vec<u8> {
    cbor::encode(&(device, stream, number))
}

/// The device's side of a stream. Both keys live as long as the stream: what was recorded of it
/// stays sealed, whatever becomes of anybody's lasting key.
pub struct StreamSealer {
    device: DeviceId,
    stream: StreamId,
    sender: SealingKey,
    context: Context,
    next: u64,
}

impl StreamSealer {
    /// Begins a stream to whoever holds the other half of `to`.
    ///
    /// # Errors
    /// When the key is none, or the system has no randomness.
    pub fn new(to: &SealingKey, device: DeviceId, stream: StreamId) -> Result<Self, SealError> {
        let (sender, context) = Context::sender(to, &stream_info(&device, stream))?;
        Ok(Self { device, stream, sender, context, next: 0 })
    }

    /// Seals the next chunk; gives its number.
    ///
    /// # Errors
    /// When it is longer than any cipher takes.
    pub fn seal(&mut self, chunk: &StreamChunk) -> Result<(u64, SealedChunk), SealError> {
        let number = self.next;
        let aad = chunk_aad(&self.device, self.stream, number);
        let body = self.context.seal(number, &aad, &cbor::encode(chunk))?;
        self.next = number.saturating_add(1);
        Ok((number, SealedChunk { sender: self.sender, body }))
    }
}

/// The side of whoever looks.
pub struct StreamOpener {
    device: DeviceId,
    stream: StreamId,
    key: OpeningKey,
    begun: Option<(SealingKey, Context)>,
    next: u64,
}

/// Why a chunk is refused.
#[derive(Debug, thiserror::Error)]
pub enum ChunkError {
    /// It came before, or later chunks did.
    #[error("chunk {number} of a stream came again, or behind chunk {latest}")]
    Late {
        /// Its number.
        number: u64,
        /// The latest that was taken.
        latest: u64,
    },
    /// A stream has one sender.
    #[error("chunk {0} of a stream is sealed with another key than those before it")]
    Sender(u64),
    /// It does not open.
    #[error("chunk {number} of a stream: {source}")]
    Seal {
        /// Its number.
        number: u64,
        /// Why.
        source: SealError,
    },
    /// It opens, and is none.
    #[error("chunk {number} of a stream: {source}")]
    Body {
        /// Its number.
        number: u64,
        /// Why.
        source: cbor::CborError,
    },
}

impl StreamOpener {
    /// Expects a stream, with a key of its own.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn new(device: DeviceId, stream: StreamId) -> Result<Self, SealError> {
        Ok(Self { device, stream, key: OpeningKey::generate()?, begun: None, next: 0 })
    }

    /// The stream.
    pub fn stream(&self) -> StreamId {
        self.stream
    }

    /// What the sender seals to.
    pub fn sealing_key(&self) -> SealingKey {
        self.key.public()
    }

    /// Opens a chunk, and says how many before it are missing.
    ///
    /// # Errors
    /// When it came before, was sealed by or for somebody else, or has changed since; what comes
    /// after it is none the worse.
    pub fn open(
        &mut self,
        number: u64,
        chunk: &SealedChunk,
    ) -> Result<(u64, StreamChunk), ChunkError> {
        let Some(missing) = number.checked_sub(self.next) else {
            let latest = self.next.saturating_sub(1);
            return Err(ChunkError::Late { number, latest });
        };
        let sealed = |source| ChunkError::Seal { number, source };
        let aad = chunk_aad(&self.device, self.stream, number);
        let text = match &self.begun {
            Some((sender, _)) if *sender != chunk.sender => return Err(ChunkError::Sender(number)),
            Some((_, context)) => context.open(number, &aad, &chunk.body).map_err(sealed)?,
            None => {
                let info = stream_info(&self.device, self.stream);
                let context = Context::receiver(&chunk.sender, &self.key, &info).map_err(sealed)?;
                let text = context.open(number, &aad, &chunk.body).map_err(sealed)?;
                self.begun = Some((chunk.sender, context));
                text
            }
        };
        let chunk = cbor::decode(&text, cbor::MESSAGE_BYTES_MAX)
            .map_err(|source| ChunkError::Body { number, source })?;
        self.next = number.saturating_add(1);
        Ok((missing, chunk))
    }
}

#[cfg(test)]
mod tests;
