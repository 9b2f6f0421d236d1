//! CBOR (RFC 8949) with a bound on everything that is read.

use serde::Serialize;
use serde::de::DeserializeOwned;

mod item;
mod read;

use item::{Fault, Items};
use read::Reader;

/// The largest message on the wire, in bytes; the MQTT packet limit follows from it.
pub const MESSAGE_BYTES_MAX: usize = 240 * 1024;

/// Why bytes are not the message they should be.
#[derive(Debug, thiserror::Error)]
pub enum CborError {
    /// Longer than allowed.
    #[error("message of {bytes} bytes is over the limit of {max}")]
    TooLong {
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// Truncated, too deep, with trailing bytes, or of another shape.
    #[error("malformed CBOR: {reason}, at byte {at}")]
    Malformed {
        /// Why it is.
        reason: String,
        /// How far it was read.
        at: usize,
    },
}

/// The bytes of a value, deterministic for one type: fields in order, definite lengths.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let encoded = serde_cbor::to_vec(value);
    #[expect(
        clippy::expect_used,
        reason = "writing to memory; our types have no failing Serialize"
    )]
    encoded.expect("wire types encode")
}

/// Reads exactly one value from all of `bytes`.
///
/// # Errors
/// When it is longer than `max`, truncated, nested deeper than 128, followed by other bytes, or of
/// another shape.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, CborError> {
    if bytes.len() > max {
        return Err(CborError::TooLong { bytes: bytes.len(), max });
    }
    let mut items = Items::new(bytes);
    let fault = match T::deserialize(Reader(&mut items)) {
        Ok(value) if items.rest() == 0 => return Ok(value),
        Ok(_) => Fault::Trailing,
        Err(fault) => fault,
    };
    Err(malformed(&fault, bytes.len().saturating_sub(items.rest())))
}

fn malformed(fault: &Fault, at: usize) -> CborError {
    CborError::Malformed { reason: fault.to_string(), at }
}

#[cfg(test)]
mod tests;
