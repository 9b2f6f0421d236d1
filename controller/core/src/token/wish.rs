//! What an operator asks for, before it is checked.

use std::collections::BTreeMap;
use std::str::FromStr;

use limpet_protocol::{DeploymentName, Digest, Labels, PublicKey, hello};

use super::{Grant, Role, Scope, TokenRecord};

/// Names of tokens at most, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// A string that lets devices join lives this long at most: such strings lie about in scripts, and
/// one that never ends is a door that never closes.
pub const JOIN_TTL_MS_MAX: u64 = 30 * DAY_MS;
/// How long it lives unless somebody says otherwise.
pub const JOIN_TTL_MS: u64 = 3_600_000;
/// How long an operator's token lives unless somebody says otherwise.
pub const API_TTL_MS: u64 = 90 * DAY_MS;
/// How long a publisher's certificate lives unless somebody says otherwise.
pub const PUBLISHER_TTL_MS: u64 = 365 * DAY_MS;
/// What ends lives this long at most: who means for ever says so.
pub const TTL_MS_MAX: u64 = 3650 * DAY_MS;
/// Devices that one token lets join at most.
pub const USES_MAX: u32 = 100_000;
const DAY_MS: u64 = 24 * 3_600_000;

/// Asks for a token: what an operator wrote, before it is checked.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// What it is to be called.
    pub name: String,
    /// `viewer`, `operator`, `admin` or `join`.
    pub role: String,
    /// How long it lives; None where nothing was said.
    pub ttl: Option<Ttl>,
    /// The labels that it is restricted to.
    pub select: BTreeMap<String, String>,
    /// How many devices may join with it.
    pub uses: Option<u32>,
    /// Labels that they get.
    pub labels: BTreeMap<String, String>,
    /// They wait for approval.
    pub require_approval: bool,
}

/// How long a token lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ttl {
    /// This many milliseconds.
    Ms(u64),
    /// Until it is revoked.
    Never,
}

impl Ttl {
    /// When it is over; None where never.
    fn end_ms(self, now_ms: u64) -> Result<Option<u64>, WishError> {
        match self {
            Self::Never => Ok(None),
            Self::Ms(0) => Err(WishError::NoTtl),
            Self::Ms(ttl_ms) if ttl_ms > TTL_MS_MAX => Err(WishError::LongTtl),
            Self::Ms(ttl_ms) => Ok(Some(now_ms.saturating_add(ttl_ms))),
        }
    }
}

/// Asks for a certificate to publish manifests with.
#[derive(Debug, Clone, Copy)]
pub struct PublisherWish<'a> {
    /// What it is to be called.
    pub name: &'a str,
    /// Its Ed25519 public key, in hexadecimal.
    pub key: &'a str,
    /// How long it lives, in milliseconds; None where nothing was said.
    pub ttl_ms: Option<u64>,
}

impl PublisherWish<'_> {
    /// The record of the certificate that is wished for, and the key that it is over.
    ///
    /// # Errors
    /// When it must not be made.
    pub fn record(self, now_ms: u64) -> Result<(TokenRecord, PublicKey), WishError> {
        let Self { name, key, ttl_ms } = self;
        let key: PublicKey = key.parse().map_err(|_| WishError::PublisherKey)?;
        if name.parse::<DeploymentName>().is_err() {
            return Err(WishError::PublisherName(name.chars().take(80).collect()));
        }
        let record = TokenRecord {
            name: name.to_owned(),
            grant: Grant::Publisher,
            made_ms: now_ms,
            expires_ms: Ttl::Ms(ttl_ms.unwrap_or(PUBLISHER_TTL_MS)).end_ms(now_ms)?,
            revoked_ms: None,
            // It has no secret but its key.
            hash: Digest::of(&key.0),
        };
        Ok((record, key))
    }
}

/// Why a token is not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WishError {
    /// The name.
    #[error("a token's name has 1 to {NAME_BYTES_MAX} printable characters")]
    Name,
    /// The role.
    #[error("there is no role {0:?}: it is viewer, operator, admin or join")]
    Role(String),
    /// A publisher is a certificate.
    #[error("publishers get a certificate, no token: see `limpet token create --publisher`")]
    Publisher,
    /// A join token that lives too long.
    #[error("a join token must end: within {} days", JOIN_TTL_MS_MAX / DAY_MS)]
    JoinTtl,
    /// Over before it begins.
    #[error("a token must live for a while: its time to live is 0")]
    NoTtl,
    /// Longer than anybody can mean.
    #[error("its time to live is too long: at most {} days", TTL_MS_MAX / DAY_MS)]
    LongTtl,
    /// A publisher's key.
    #[error("a publisher's key is an Ed25519 public key, in 64 hexadecimal digits")]
    PublisherKey,
    /// A publisher's name.
    #[error(
        "publisher {0:?}: use lower-case letters, digits and '-', beginning and ending with a letter \
         or digit"
    )]
    PublisherName(String),
    /// How many devices.
    #[error("a join token is for 1 to {USES_MAX} devices")]
    Uses,
    /// An admin of something.
    #[error("an admin token cannot be restricted by labels: an admin makes tokens, also for all")]
    AdminScope,
    /// A word that goes with another role.
    #[error("{0} goes with {1} only")]
    Foreign(&'static str, &'static str),
    /// A label.
    #[error("label {0:?}: key and value have at most 63 bytes, and the key at least 1")]
    Label(String),
    /// Too many labels.
    #[error("at most {} labels", hello::LABELS_MAX)]
    Labels,
}

impl FromStr for Role {
    type Err = WishError;

    fn from_str(text: &str) -> Result<Self, WishError> {
        match text {
            "viewer" => Ok(Self::Viewer),
            "operator" => Ok(Self::Operator),
            "admin" => Ok(Self::Admin),
            "publisher" => Err(WishError::Publisher),
            other => Err(WishError::Role(other.chars().take(40).collect())),
        }
    }
}

impl Wish {
    /// The record of the token that is wished for.
    ///
    /// # Errors
    /// When it must not be made.
    pub fn record(self, now_ms: u64, hash: Digest) -> Result<TokenRecord, WishError> {
        let length = 1..=NAME_BYTES_MAX;
        if !length.contains(&self.name.len()) || self.name.chars().any(char::is_control) {
            return Err(WishError::Name);
        }
        let name = self.name.clone();
        let (grant, ttl) = match self.role.as_str() {
            "join" => self.join()?,
            _ => self.api()?,
        };
        let expires_ms = ttl.end_ms(now_ms)?;
        Ok(TokenRecord { name, grant, made_ms: now_ms, expires_ms, revoked_ms: None, hash })
    }

    fn join(self) -> Result<(Grant, Ttl), WishError> {
        if !self.select.is_empty() {
            return Err(WishError::Foreign("select", "a role of the API"));
        }
        let ttl = self.ttl.unwrap_or(Ttl::Ms(JOIN_TTL_MS));
        if !matches!(ttl, Ttl::Ms(..=JOIN_TTL_MS_MAX)) {
            return Err(WishError::JoinTtl);
        }
        let uses_left = self.uses.unwrap_or(1);
        if !(1..=USES_MAX).contains(&uses_left) {
            return Err(WishError::Uses);
        }
        let labels = labels(&self.labels)?;
        Ok((Grant::Join { uses_left, labels, require_approval: self.require_approval }, ttl))
    }

    fn api(self) -> Result<(Grant, Ttl), WishError> {
        let role: Role = self.role.parse()?;
        let foreign = [
            ("uses", self.uses.is_some()),
            ("labels", !self.labels.is_empty()),
            ("require_approval", self.require_approval),
        ];
        if let Some((word, _)) = foreign.iter().find(|(_, given)| *given) {
            return Err(WishError::Foreign(word, "role join"));
        }
        if role == Role::Admin && !self.select.is_empty() {
            return Err(WishError::AdminScope);
        }
        labels(&self.select)?;
        let scope = Scope(self.select);
        Ok((Grant::Api { role, scope }, self.ttl.unwrap_or(Ttl::Ms(API_TTL_MS))))
    }
}

/// Labels as devices carry them.
fn labels(given: &BTreeMap<String, String>) -> Result<Labels, WishError> {
    if given.len() > hello::LABELS_MAX {
        return Err(WishError::Labels);
    }
    let label = |(key, value): (&String, &String)| {
        let bad = || WishError::Label(format!("{key:.80}={value:.80}"));
        if key.is_empty() {
            return Err(bad());
        }
        let key = heapless(key).ok_or_else(bad)?;
        Ok((key, heapless(value).ok_or_else(bad)?))
    };
    given.iter().map(label).collect()
}

fn heapless<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}
