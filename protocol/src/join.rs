//! How a device becomes a member of a fleet, and stays one.
//!
//! A device that joins makes its own key and sends `POST /api/v1/join`: a [`Join`], signed with that
//! key and naming the id that it wants, over TLS whose authority the invitation pins. The answer is
//! its [`Membership`], in CBOR. No certificate request is needed: the signature proves the key.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::invitation::Token;
use crate::key::PublicKey;

/// The media type of a signed message (RFC 9052 section 2).
pub const MEDIA_TYPE: &str = "application/cose";

/// Asks to become a member; signed as [`crate::Kind::Join`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// Lets it in.
    #[serde(rename = "t")]
    pub token: Token,
    /// Whose signature the device believes already, where it has been in a fleet.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<PublicKey>,
}

/// Asks for a new certificate over HTTPS, where the old one has expired; signed as
/// [`crate::Kind::Renew`]. The answer is a [`Membership`], which says nothing that is secret: to
/// repeat the request gains nobody anything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// Whose signature the device believes: the answer leaves it at that.
    #[serde(rename = "k", default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<PublicKey>,
}

/// What a member of a fleet knows of it: whom it believes, how it is known, and where to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Signs what the fleet's devices are told.
    #[serde(rename = "k")]
    pub controller: PublicKey,
    /// Certificates (DER) of the authorities that the controller's own must come from.
    #[serde(rename = "r")]
    pub roots: Vec<ByteBuf>,
    /// The device's certificate (DER), and those that lead from it to an authority.
    #[serde(rename = "c")]
    pub certificates: Vec<ByteBuf>,
    /// Brokers, as URLs: `mqtts://HOST:PORT`, `wss://HOST:PORT/PATH`. The first that answers is used.
    #[serde(rename = "b")]
    pub brokers: Vec<String>,
    /// The controller's API, `HOST:PORT`.
    #[serde(rename = "s")]
    pub servers: Vec<String>,
    /// Certificates (DER) of the authorities that a broker's own must come from; empty where those are
    /// `roots`. An external broker must not pass for the controller.
    #[serde(rename = "br", default, skip_serializing_if = "Vec::is_empty")]
    pub broker_roots: Vec<ByteBuf>,
}
