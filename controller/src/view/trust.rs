//! Tokens, and the audit log.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// Its id.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// `viewer`, `operator`, `admin`, `join` or `publisher`.
    pub role: String,
    /// `good`, `expired`, `used up` or `revoked`.
    pub status: String,
    /// When it was made (RFC 3339, UTC).
    pub made_at: String,
    /// When it ends (RFC 3339, UTC); null where it does not.
    pub expires_at: Option<String>,
    /// When it was last used since the controller began (RFC 3339, UTC).
    pub used_at: Option<String>,
    /// Labels of the devices that it is restricted to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub select: BTreeMap<String, String>,
    /// How many more devices may join with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses_left: Option<u32>,
    /// Labels that devices get that join with it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Devices that join with it wait for `limpet device approve`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_approval: bool,
}

/// Asks for a token.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// What people will call it.
    pub name: String,
    /// `viewer`, `operator`, `admin` or `join`.
    pub role: String,
    /// Seconds that it lives; where absent an hour for `join`, 90 days for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
    /// It lives until it is revoked; not for `join`.
    #[serde(default)]
    pub never_expires: bool,
    /// Labels of the devices that it is restricted to; for `viewer` and `operator`.
    #[serde(default)]
    pub select: BTreeMap<String, String>,
    /// How many devices may join with it, 1 where absent; for `join`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// Labels that they get; for `join`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// They wait for an operator's approval; for `join`.
    #[serde(default)]
    pub require_approval: bool,
}

/// A token that was made. Its secret is nowhere else.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenMade {
    /// The token.
    pub token: TokenView,
    /// The string for `limpet login`, or for `limpet-agent join`.
    pub text: String,
}

/// Who asks.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WhoView {
    /// As the audit log names it.
    pub who: String,
    /// `viewer`, `operator` or `admin`.
    pub role: String,
    /// Labels of the devices that it is restricted to.
    pub select: BTreeMap<String, String>,
}

/// An entry of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditView {
    /// Counts up.
    pub seq: u64,
    /// When (RFC 3339, UTC).
    pub at: String,
    /// `token ID NAME`, `device ID`, `mqtt CLIENT`, `local` or `stranger`.
    pub who: String,
    /// `ADDRESS:PORT`; null for the controller's own machine at its start.
    pub from: Option<String>,
    /// What: `deployment.apply`.
    pub action: String,
    /// To what: `deployment/web`.
    pub object: String,
    /// What was there before.
    pub before: Option<String>,
    /// What is there after.
    pub after: Option<String>,
    /// `ok`, a word for what was done, or `refused: ` and why.
    pub outcome: String,
}

/// Asks for a certificate to publish manifests with.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PublisherRequest {
    /// What people will call it: lower-case letters, digits and '-'.
    pub name: String,
    /// Its Ed25519 public key, in 64 hexadecimal digits.
    pub key: String,
    /// Seconds that it lives; a year where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
}

/// A publisher's certificate.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PublisherMade {
    /// What it is revoked by.
    pub token: TokenView,
    /// In PEM.
    pub certificate: String,
    /// Of the authorities that the broker's certificate comes from, in PEM.
    pub authorities: String,
    /// `mqtts://HOST:PORT`
    pub broker: String,
}

/// Replaces the fleet's authority.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RotateAuthority {
    /// End the former one, instead of beginning with another.
    #[serde(default)]
    pub finish: bool,
    /// Even if some have not taken the new one.
    #[serde(default)]
    pub force: bool,
}

/// How far the fleet has come with what replaces something.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RotationView {
    /// Members that are not revoked.
    pub members: usize,
    /// The certificate authority.
    pub authority: AuthorityView,
    /// The key that signs what devices are told.
    pub signing_key: SigningKeyView,
}

/// The key that signs what devices are told.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SigningKeyView {
    /// The first 16 hexadecimal digits of its public half.
    pub fingerprint: String,
    /// Members that have not taken it yet.
    pub waiting: Vec<String>,
}

/// The fleet's certificate authority.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuthorityView {
    /// SHA-256 of its certificate, in hexadecimal.
    pub pin: String,
    /// When it was made (RFC 3339, UTC); null where it is the fleet's first.
    pub made_at: Option<String>,
    /// It is taking the place of another, whose clients are let in as well.
    pub replaces: bool,
    /// Members that have not been told, or have not answered.
    pub waiting: Vec<String>,
    /// Publishers whose certificates are of the other.
    pub publishers: Vec<String>,
}
