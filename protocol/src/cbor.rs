//! CBOR (RFC 8949) with a bound on everything that is read.

use serde::Serialize;
use serde::de::DeserializeOwned;

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
    #[error("malformed CBOR: {0}")]
    Malformed(#[source] serde_cbor::Error),
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
/// When it is longer than `max`, truncated, nested deeper than 128 (serde_cbor's bound), followed
/// by other bytes, or of another shape.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], max: usize) -> Result<T, CborError> {
    if bytes.len() > max {
        return Err(CborError::TooLong { bytes: bytes.len(), max });
    }
    serde_cbor::from_slice(bytes).map_err(CborError::Malformed)
}
