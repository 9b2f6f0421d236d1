//! The envelope of every message, both ways: COSE_Sign1 (RFC 9052 section 4.2) with Ed25519.
//!
//! The protected header names the signer and, under a private-use label, what the message is:
//! version, prefix, device, kind, epoch and number. A signed message cannot be passed off as
//! another one.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::value::SeqAccessDeserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::{ByteBuf, Bytes};

use crate::cbor::{self, CborError};
use crate::id::DeviceId;
use crate::key::{PublicKey, SigningKey};
use crate::topic::Prefix;

#[cfg(any(test, fuzzing))]
pub mod fuzz;

/// The version of the wire that this crate speaks.
pub const VERSION: u8 = 1;

/// CBOR tag 18, COSE_Sign1, as its one byte.
const TAG_SIGN1: u8 = 0xd2;
/// COSE header labels: algorithm, key id (RFC 9052 section 3.1).
const LABEL_ALG: i64 = 1;
const LABEL_KID: i64 = 4;
/// Private-use label (RFC 9052 section 11.1: below -65536).
const LABEL_LIMPET: i64 = -65_537;
/// EdDSA (RFC 9053 section 2.2).
const ALG_EDDSA: i64 = -8;

/// Kinds of messages to and from a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// [`crate::DesiredState`]; its number is the generation.
    Desired,
    /// [`crate::Command`]; its number grows with each command to a device.
    Command,
    /// [`crate::Ack`]; its number is that of the connection it answers.
    Ack,
    /// [`crate::Presence`]; its number is that of the connection.
    Presence,
    /// [`crate::Hello`]; its number is that of the connection.
    Hello,
    /// [`crate::Reported`]; its number is its sequence.
    Reported,
    /// [`crate::EventBatch`]; its number is that of its last event.
    Event,
    /// [`crate::CommandResult`]; its number is that of the command.
    Result,
    /// [`crate::SealedChunk`]; its number counts the chunks of a stream from 0.
    Stream,
    /// [`crate::Returned`]; its number is that of the command.
    Returned,
    /// [`crate::Join`]; its number is 0.
    Join,
    /// [`crate::Renew`]; its number is 0.
    Renew,
    /// [`crate::SignedManifest`]; its device is the deployment's name, and its number the time when it
    /// was signed.
    Manifest,
}

impl Kind {
    /// All kinds that travel to or from a device over MQTT.
    pub const ALL: [Self; 10] = [
        Self::Desired,
        Self::Command,
        Self::Ack,
        Self::Presence,
        Self::Hello,
        Self::Reported,
        Self::Event,
        Self::Result,
        Self::Stream,
        Self::Returned,
    ];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{self:?}").to_ascii_lowercase();
        f.pad(&name)
    }
}

/// What the signed part of a message says that it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The topic prefix of the fleet.
    pub prefix: String,
    /// The device it is to or from.
    pub device: DeviceId,
    /// What it is.
    pub kind: Kind,
    /// Epoch of the desired state that its sender holds.
    pub epoch: u64,
    /// Its number; see [`Kind`].
    pub number: u64,
}

/// What a receiver will accept.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The topic prefix of the fleet.
    pub prefix: &'a Prefix,
    /// The device that the topic names.
    pub device: &'a DeviceId,
    /// The kind that the topic names.
    pub kind: Kind,
    /// The signer; None trusts the key that the message carries (first use).
    pub signer: Option<&'a PublicKey>,
}

/// A message whose signature holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// What it is.
    pub header: Header,
    /// Who signed it.
    pub signer: PublicKey,
    /// The body, in CBOR.
    pub body: Vec<u8>,
}

/// Why a message is refused.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Not CBOR of the right shape.
    #[error(transparent)]
    Cbor(#[from] CborError),
    /// Not a COSE_Sign1 message.
    #[error("not a signed message (COSE_Sign1)")]
    NotSigned,
    /// Signed with another algorithm than Ed25519.
    #[error("signed with algorithm {0}; only EdDSA ({ALG_EDDSA}) is accepted")]
    Algorithm(i64),
    /// Of a version that this one does not know.
    #[error("message version {0} is not known here (this is version {VERSION}); upgrade this side")]
    Version(u8),
    /// Signed by somebody else.
    #[error("signed by {}, expected {}", actual.fingerprint(), expected.fingerprint())]
    Signer {
        /// Who signed.
        actual: PublicKey,
        /// Who should have.
        expected: PublicKey,
    },
    /// The signature does not match the content.
    #[error("the signature does not match the content")]
    Signature,
    /// Meant for another fleet, device or purpose.
    #[error("signed as {signed}, but came as {topic}")]
    Misdirected {
        /// What the signed part says.
        signed: String,
        /// What the topic says.
        topic: String,
    },
}

/// Signs a message.
pub fn seal<T: Serialize>(key: &SigningKey, header: &Header, body: &T) -> Vec<u8> {
    let protected = cbor::encode(&Protected { signer: key.public(), header: header.clone() });
    let payload = cbor::encode(body);
    let signature = key.sign(&to_be_signed(&protected, &payload));
    sign1(&protected, &payload, &signature)
}

/// The array of RFC 9052 section 4.2 behind its tag, with an empty unprotected header.
fn sign1(protected: &[u8], payload: &[u8], signature: &[u8]) -> Vec<u8> {
    let unprotected = BTreeMap::<i64, ()>::new();
    let parts = (Bytes::new(protected), unprotected, Bytes::new(payload), Bytes::new(signature));
    [&[TAG_SIGN1], cbor::encode(&parts).as_slice()].concat()
}

/// Checks a message and gives its signed content.
///
/// # Errors
/// When it is malformed, too long, of another version, not signed by the expected key, or signed
/// as something other than what its topic says.
pub fn open(message: &[u8], expected: Expected<'_>) -> Result<Envelope, EnvelopeError> {
    Unverified::read(message)?.verify(expected)
}

/// Checks a message of a stranger, who says in it which device it is, and whose key signs it.
///
/// # Errors
/// As [`open`].
pub fn open_first(message: &[u8], prefix: &Prefix, kind: Kind) -> Result<Envelope, EnvelopeError> {
    let unverified = Unverified::read(message)?;
    let device = unverified.content.header.device.clone();
    unverified.verify(Expected { prefix, device: &device, kind, signer: None })
}

/// Whether bytes begin as a signed message does. No manifest begins like that.
pub fn is_signed(message: &[u8]) -> bool {
    message.first() == Some(&TAG_SIGN1)
}

/// Whose key a message says that it is signed with. It is not checked: that costs more, and is of no
/// use where that key counts for nothing.
///
/// # Errors
/// When it is malformed, too long, or of another version.
pub fn claimed_signer(message: &[u8]) -> Result<PublicKey, EnvelopeError> {
    Ok(Unverified::read(message)?.content.signer)
}

/// A message that is well formed.
struct Unverified {
    content: Protected,
    protected: ByteBuf,
    payload: ByteBuf,
    signature: ByteBuf,
}

impl Unverified {
    fn read(message: &[u8]) -> Result<Self, EnvelopeError> {
        let Some((&TAG_SIGN1, parts)) = message.split_first() else {
            return Err(EnvelopeError::NotSigned);
        };
        let (protected, _, payload, signature): (ByteBuf, IgnoredAny, ByteBuf, ByteBuf) =
            cbor::decode(parts, cbor::MESSAGE_BYTES_MAX)?;
        // What is not signed cannot vary either: there is one encoding of a message.
        if sign1(&protected, &payload, &signature) != message {
            return Err(EnvelopeError::NotSigned);
        }
        match cbor::decode(&protected, 1024)? {
            Decoded::Known(content) => Ok(Self { content, protected, payload, signature }),
            Decoded::Algorithm(alg) => Err(EnvelopeError::Algorithm(alg)),
            Decoded::Version(version) => Err(EnvelopeError::Version(version)),
        }
    }

    fn verify(self, expected: Expected<'_>) -> Result<Envelope, EnvelopeError> {
        let Self { content: Protected { signer, header }, protected, payload, signature } = self;
        if let Some(&known) = expected.signer.filter(|known| **known != signer) {
            return Err(EnvelopeError::Signer { actual: signer, expected: known });
        }
        if !signer.verifies(&to_be_signed(&protected, &payload), &signature) {
            return Err(EnvelopeError::Signature);
        }
        let signed = (header.prefix.as_str(), &header.device, header.kind);
        let topic = (expected.prefix.as_str(), expected.device, expected.kind);
        if signed != topic {
            let show = |(prefix, device, kind)| format!("{prefix} {device} {kind}");
            return Err(EnvelopeError::Misdirected { signed: show(signed), topic: show(topic) });
        }
        Ok(Envelope { header, signer, body: payload.into_vec() })
    }
}

impl Envelope {
    /// Reads the body as what its kind says.
    ///
    /// # Errors
    /// When it is malformed.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, CborError> {
        cbor::decode(&self.body, cbor::MESSAGE_BYTES_MAX)
    }
}

/// `Sig_structure` of RFC 9052 section 4.4, without external data.
fn to_be_signed(protected: &[u8], payload: &[u8]) -> Vec<u8> {
    cbor::encode(&("Signature1", Bytes::new(protected), Bytes::new(&[]), Bytes::new(payload)))
}

struct Protected {
    signer: PublicKey,
    header: Header,
}

enum Decoded {
    Known(Protected),
    Algorithm(i64),
    Version(u8),
}

impl Serialize for Protected {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Header { prefix, device, kind, epoch, number } = &self.header;
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry(&LABEL_ALG, &ALG_EDDSA)?;
        map.serialize_entry(&LABEL_KID, &self.signer)?;
        map.serialize_entry(&LABEL_LIMPET, &(VERSION, prefix, device, kind, epoch, number))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Decoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ProtectedVisitor)
    }
}

struct ProtectedVisitor;

impl<'de> Visitor<'de> for ProtectedVisitor {
    type Value = Decoded;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a COSE header with alg, kid and Limpet's label")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Decoded, A::Error> {
        use serde::de::Error;
        let (mut alg, mut signer, mut fields) = (false, None::<PublicKey>, None::<Fields>);
        while let Some(label) = map.next_key::<i64>()? {
            match label {
                LABEL_ALG if !alg => {
                    let named: i64 = map.next_value()?;
                    if named != ALG_EDDSA {
                        // What else it says, it says in its own way.
                        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                        return Ok(Decoded::Algorithm(named));
                    }
                    alg = true;
                }
                LABEL_KID if signer.is_none() => signer = Some(map.next_value()?),
                LABEL_LIMPET if fields.is_none() => fields = Some(map.next_value()?),
                _ => return Err(A::Error::custom(format_args!("header label {label}"))),
            }
        }
        let missing = |name| A::Error::custom(format_args!("header without {name}"));
        alg.then_some(()).ok_or_else(|| missing("alg"))?;
        let signer = signer.ok_or_else(|| missing("kid"))?;
        Ok(match fields.ok_or_else(|| missing("Limpet's label"))? {
            Fields::Known(header) => Decoded::Known(Protected { signer, header }),
            Fields::Version(version) => Decoded::Version(version),
        })
    }
}

/// What is under Limpet's label. The version comes first, so that a later one may change all that
/// follows it.
enum Fields {
    Known(Header),
    Version(u8),
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a version, prefix, device, kind, epoch and number")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Fields, A::Error> {
        let version = seq.next_element::<u64>()?.unwrap_or_default();
        if version != u64::from(VERSION) {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Fields::Version(u8::try_from(version).unwrap_or(u8::MAX)));
        }
        let rest = SeqAccessDeserializer::new(seq);
        let (prefix, device, kind, epoch, number) = Deserialize::deserialize(rest)?;
        Ok(Fields::Known(Header { prefix, device, kind, epoch, number }))
    }
}
