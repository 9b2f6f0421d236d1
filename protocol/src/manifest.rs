//! A manifest that its publisher has signed: whoever carries it can delay or withhold it, and no more.
//!
//! It travels as [`Kind::Manifest`]. What is signed names the fleet's prefix, the deployment, the time
//! of signing, and until when it may be taken: a controller takes none that is not later than the
//! latest change of the deployment, whoever made that.

use serde::{Deserialize, Serialize};

use crate::envelope::{self, Envelope, EnvelopeError, Expected, Header, Kind};
use crate::id::{DeploymentName, DeviceId};
use crate::key::SigningKey;
use crate::topic::Prefix;

/// A signed manifest may be taken for this long at most, in milliseconds.
pub const LIFE_MS_MAX: u64 = 30 * 24 * 3_600_000;

/// The body of a signed manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedManifest {
    /// It is not taken after this, in milliseconds since 1970.
    #[serde(rename = "u")]
    pub until_ms: u64,
    /// The manifest, in YAML, JSON or CBOR; empty deletes the deployment.
    #[serde(rename = "m", with = "serde_bytes")]
    pub manifest: Vec<u8>,
}

impl SignedManifest {
    /// Signs it for one deployment of one fleet, at this time in milliseconds since 1970.
    pub fn seal(
        &self,
        key: &SigningKey,
        prefix: &Prefix,
        name: &DeploymentName,
        at_ms: u64,
    ) -> Vec<u8> {
        let (prefix, device) = (prefix.to_string(), DeviceId::from(name));
        let header = Header { prefix, device, kind: Kind::Manifest, epoch: 0, number: at_ms };
        envelope::seal(key, &header, self)
    }

    /// Checks a message, whoever has signed it.
    ///
    /// # Errors
    /// When it is malformed, not signed, or signed for another fleet or deployment.
    pub fn open(
        message: &[u8],
        prefix: &Prefix,
        name: &DeploymentName,
    ) -> Result<(Envelope, Self), EnvelopeError> {
        let device = DeviceId::from(name);
        let kind = Kind::Manifest;
        let opened =
            envelope::open(message, Expected { prefix, device: &device, kind, signer: None })?;
        let body = opened.read()?;
        Ok((opened, body))
    }
}
