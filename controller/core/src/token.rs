//! What a token lets its holder do, and until when.
//!
//! Whether a secret is a token's own is not decided here.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use limpet_protocol::{Digest, Labels, hello};
use serde::{Deserialize, Serialize};

/// Names of tokens at most, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// A string that lets devices join lives this long at most: such strings lie about in scripts, and
/// one that never ends is a door that never closes.
pub const JOIN_TTL_MS_MAX: u64 = 30 * DAY_MS;
/// How long it lives unless somebody says otherwise.
pub const JOIN_TTL_MS: u64 = 3_600_000;
/// How long an operator's token lives unless somebody says otherwise.
pub const API_TTL_MS: u64 = 90 * DAY_MS;
/// Devices that one token lets join at most.
pub const USES_MAX: u32 = 100_000;
const DAY_MS: u64 = 24 * 3_600_000;

/// What an operator may do; each may what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads.
    Viewer,
    /// Changes deployments and devices.
    Operator,
    /// Everything.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        })
    }
}

/// What a token is restricted to: devices that carry all these labels, and deployments that select
/// by all of them. Empty is everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scope(pub BTreeMap<String, String>);

impl Scope {
    /// Everything.
    pub fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a device with these labels is in it.
    pub fn has_device(&self, labels: &Labels) -> bool {
        let label = |key: &str| labels.iter().find(|(k, _)| k.as_str() == key);
        self.0.iter().all(|(key, value)| label(key).is_some_and(|(_, v)| v.as_str() == value))
    }

    /// Whether a deployment that selects by this can only ever run on devices that are in it.
    pub fn has_select(&self, select: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, value)| select.get(key) == Some(value))
    }
}

/// `site=berlin,rack=2`.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{key}={value}")?;
        }
        Ok(())
    }
}

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grant {
    /// The API.
    Api {
        /// What may be done.
        role: Role,
        /// With what.
        scope: Scope,
    },
    /// Devices join the fleet.
    Join {
        /// How many more may.
        uses_left: u32,
        /// Labels that they get.
        labels: Labels,
        /// An operator looks at each before it is told anything.
        require_approval: bool,
    },
    /// A certificate for somebody who publishes manifests over MQTT.
    Publisher,
}

impl Grant {
    /// The word for it: an operator's role, `join` or `publisher`.
    pub fn word(&self) -> String {
        match self {
            Self::Api { role, .. } => role.to_string(),
            Self::Join { .. } => "join".to_owned(),
            Self::Publisher => "publisher".to_owned(),
        }
    }
}

/// What is stored of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// What people call it.
    pub name: String,
    /// What it is for.
    pub grant: Grant,
    /// When it was made, as this and all times here by the wall clock.
    pub made_ms: u64,
    /// When it ends; None where it does not.
    pub expires_ms: Option<u64>,
    /// When somebody took it back.
    pub revoked_ms: Option<u64>,
    /// The keyed hash of its secret.
    pub hash: Digest,
}

/// Why a token that is genuine opens nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its time is over since then.
    Expired(u64),
    /// All its uses are used up.
    UsedUp,
    /// It was taken back then.
    Revoked(u64),
}

impl TokenRecord {
    /// Why it opens nothing; None where it is good.
    pub fn ended(&self, now_ms: u64) -> Option<Ended> {
        if let Some(at_ms) = self.revoked_ms {
            return Some(Ended::Revoked(at_ms));
        }
        // Said first: who knows that it is used up makes another, whatever the time.
        if matches!(self.grant, Grant::Join { uses_left: 0, .. }) {
            return Some(Ended::UsedUp);
        }
        self.expires_ms.filter(|at_ms| *at_ms <= now_ms).map(Ended::Expired)
    }

    /// One device less may join with it.
    pub fn used(&mut self) {
        if let Grant::Join { uses_left, .. } = &mut self.grant {
            *uses_left = uses_left.saturating_sub(1);
        }
    }
}

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
        if self.ttl == Some(Ttl::Ms(0)) {
            return Err(WishError::NoTtl);
        }
        let name = self.name.clone();
        let (grant, ttl) = match self.role.as_str() {
            "join" => self.join()?,
            _ => self.api()?,
        };
        let expires_ms = match ttl {
            Ttl::Ms(ttl_ms) => Some(now_ms.saturating_add(ttl_ms)),
            Ttl::Never => None,
        };
        Ok(TokenRecord { name, grant, made_ms: now_ms, expires_ms, revoked_ms: None, hash })
    }

    fn join(self) -> Result<(Grant, Ttl), WishError> {
        if !self.select.is_empty() {
            return Err(WishError::Foreign("select", "a role of the API"));
        }
        let ttl = self.ttl.unwrap_or(Ttl::Ms(JOIN_TTL_MS));
        if !matches!(ttl, Ttl::Ms(1..=JOIN_TTL_MS_MAX)) {
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
