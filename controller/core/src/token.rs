//! What a token lets its holder do, and until when.
//!
//! Whether a secret is a token's own is not decided here.

use std::collections::BTreeMap;
use std::fmt;

use limpet_protocol::{Digest, Labels};
use serde::{Deserialize, Serialize};

mod wish;

pub use wish::{
    API_TTL_MS, JOIN_TTL_MS, JOIN_TTL_MS_MAX, NAME_BYTES_MAX, PUBLISHER_TTL_MS, PublisherWish,
    TTL_MS_MAX, Ttl, USES_MAX, Wish, WishError,
};

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
