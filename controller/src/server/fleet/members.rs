//! Members of the fleet: devices that have joined, their keys, and whether they are let in.

use std::collections::BTreeMap;

use limpet_protocol::{DeviceId, Digest, Labels, PublicKey, TokenId};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::audit::Entry;
use super::caller::Caller;
use super::{Fleet, JoinRefusal};
use crate::pem::pem;
use crate::server::authority::{Authority, AuthorityError};
use crate::server::store::{StoreError, Table};

mod certificates;
mod exchange;
mod rotation;
mod serving;
mod signer;
#[cfg(test)]
mod tests;

use certificates::Taken;
pub(in crate::server) use rotation::{AuthorityStep, RotateError};

/// How a member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::server) enum Standing {
    /// It is let in.
    Member,
    /// It joined, and waits for `limpet device approve`.
    Waiting,
    /// It is not let in any more.
    Revoked,
}

/// What is stored of a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) key: PublicKey,
    pub(super) standing: Standing,
    /// Labels that its token gave it; they win over its own.
    pub(super) labels: Labels,
    pub(super) token: TokenId,
    pub(super) joined_ms: u64,
    /// When the latest certificate made for it ends.
    pub(super) certified_until_ms: u64,
    /// The authorities that it was told of with that; None where an earlier version did not note it.
    #[serde(default)]
    pub(super) roots: Option<Digest>,
    /// Whose signature it believes; None where an earlier version did not note it.
    #[serde(default)]
    pub(super) controller: Option<PublicKey>,
}

/// Who may be a member, and what members are told.
pub(super) struct Members {
    pub(super) records: BTreeMap<DeviceId, Member>,
    /// The command that offers something on the present connection, and what it offers.
    offered: BTreeMap<DeviceId, (u64, Taken)>,
    /// None where anybody is let in, and trusted on first use (`--insecure`).
    terms: Option<Terms>,
    /// The latest time that a device was told, in milliseconds.
    told_ms: u64,
}

/// What members are told.
pub(in crate::server) struct Terms {
    pub(in crate::server) authority: Authority,
    pub(in crate::server) brokers: Vec<String>,
    pub(in crate::server) servers: Vec<String>,
    /// Certificates (DER) of the authorities of a broker of somebody else; empty where there is none.
    pub(in crate::server) broker_roots: Vec<ByteBuf>,
    /// How long a device's certificate is good.
    pub(in crate::server) certificate_ms: u64,
    /// How long after its end a device may still ask for another.
    pub(in crate::server) renew_expired_ms: u64,
    /// How long the controller's own certificate is good.
    pub(in crate::server) server_ms: u64,
    /// When the one that is served ends; 0 where another is to be served as soon as can be.
    pub(in crate::server) served_until_ms: u64,
}

impl Terms {
    /// Certificates (PEM) of the authorities that the broker's own comes from.
    pub(super) fn broker_authorities(&self) -> String {
        match self.broker_roots.as_slice() {
            [] => self.authority.pem(),
            roots => roots.iter().map(|root| pem("CERTIFICATE", root)).collect(),
        }
    }
}

#[cfg(any(test, fuzzing))]
impl Terms {
    /// Those of a controller whose data folder this is.
    pub(in crate::server) fn sample(folder: &std::path::Path) -> Result<Self, AuthorityError> {
        Ok(Self {
            authority: Authority::open(folder, &[], 0)?,
            brokers: vec!["mqtts://limpet.example:8883".to_owned()],
            servers: vec!["limpet.example:8420".to_owned()],
            certificate_ms: 90_000,
            broker_roots: Vec::new(),
            renew_expired_ms: 0,
            server_ms: 90_000,
            served_until_ms: 0,
        })
    }
}

/// Why a device is not made a member.
#[derive(Debug, thiserror::Error)]
pub(in crate::server) enum MemberError {
    #[error("this controller lets anybody in (--insecure): there is nothing to join")]
    Insecure,
    #[error("this is no signed request of a device: {0}")]
    Envelope(String),
    #[error(transparent)]
    Token(#[from] JoinRefusal),
    #[error(
        "the id {id} belongs to another device (its key is {known}): choose another with \
         --device-id, or let go of that one with `limpet device remove {id}`"
    )]
    Taken { id: DeviceId, known: String },
    #[error("this device was revoked: `limpet device remove {0}` lets it join anew")]
    Revoked(DeviceId),
    #[error(
        "this device believes the signatures of {0}, which is no key of this controller, or none that \
         is kept: to make the device anew, end its agent and remove its data folder"
    )]
    Believes(String),
    #[error("there is no device {0} that has joined")]
    Unknown(DeviceId),
    #[error(
        "the certificate of {0} ended too long ago for this fleet (`limpet up --renew-expired`): \
         join again with another token"
    )]
    TooLate(DeviceId),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl Members {
    pub(super) fn new() -> Self {
        Self { records: BTreeMap::new(), offered: BTreeMap::new(), terms: None, told_ms: 0 }
    }

    /// What members are told, where there are members.
    pub(super) fn terms(&self) -> Option<&Terms> {
        self.terms.as_ref()
    }

    /// The key of a device, where it must be a member's.
    pub(super) fn key(&self, id: &DeviceId) -> Option<PublicKey> {
        self.records.get(id).map(|member| member.key)
    }
}

impl Fleet {
    /// From here on only members are let in, on these terms.
    pub(in crate::server) fn set_terms(&mut self, terms: Terms) {
        self.members.terms = Some(terms);
    }

    pub(super) fn load_members(&mut self) -> Result<(), StoreError> {
        self.members.told_ms = self.store.record(Table::Settings, serving::TOLD)?.unwrap_or(0);
        let records = self.store.records::<Member>(Table::Members)?;
        let known = |(id, member): (String, _)| Some((id.parse().ok()?, member));
        self.members.records = records.into_iter().filter_map(known).collect();
        // What was to be served or offered may have been undone with the rest.
        self.not_served();
        self.members.offered.clear();
        Ok(())
    }

    /// The authority's certificates, in PEM; empty where there is none.
    pub(in crate::server) fn authorities(&self) -> String {
        self.members.terms.as_ref().map(|terms| terms.authority.pem()).unwrap_or_default()
    }

    /// The member that a device must be to be let in and heard; None where anybody is.
    ///
    /// # Errors
    /// Why it is neither let in nor heard.
    pub(super) fn admitted(&self, id: &DeviceId) -> Result<Option<&Member>, String> {
        if self.members.terms.is_none() {
            return Ok(None);
        }
        let member = self.members.records.get(id);
        let member = member.ok_or_else(|| format!("device {id} has not joined this fleet"))?;
        match member.standing {
            Standing::Member => Ok(Some(member)),
            Standing::Waiting => Err(format!("device {id} waits for `limpet device approve`")),
            Standing::Revoked => Err(format!("device {id} was revoked")),
        }
    }

    /// Why a client with this key is not let in as this device, where it is not.
    pub(super) fn keeps_out(&self, id: &DeviceId, fingerprint: &str) -> Option<String> {
        match self.admitted(id) {
            Ok(Some(member)) if member.key.fingerprint() != fingerprint => {
                Some(format!("device {id} comes with a certificate of another key"))
            }
            Ok(_) => None,
            Err(why) => Some(why),
        }
    }

    /// Lets a member in, or out.
    pub(in crate::server) fn set_standing(
        &mut self,
        by: &Caller,
        id: &DeviceId,
        standing: Standing,
    ) -> Result<(), MemberError> {
        let member = self.members.records.get_mut(id);
        let member = member.ok_or_else(|| MemberError::Unknown(id.clone()))?;
        let before = format!("{:?}", member.standing);
        member.standing = standing;
        let client = client(id, &member.key.fingerprint());
        let put = self.store.put(Table::Members, id.as_str(), member);
        self.stored(put);
        let action = match standing {
            Standing::Revoked => "device.revoke",
            Standing::Member | Standing::Waiting => "device.approve",
        };
        self.audit(
            by,
            Entry {
                action,
                object: format!("device/{id}"),
                before: Some(before),
                after: Some(format!("{standing:?}")),
                outcome: "ok".to_owned(),
            },
        );
        if standing == Standing::Revoked {
            self.cut(client);
            // It is told nothing more, even before its connection has ended.
            self.gone(id);
        }
        Ok(())
    }

    /// The labels of a device: its own, and those that its token gave it.
    pub(super) fn labels(&self, id: &DeviceId, hello: &limpet_protocol::Hello) -> Labels {
        let mut labels = hello.labels.clone();
        if let Some(member) = self.members.records.get(id) {
            labels.extend(member.labels.clone());
        }
        labels
    }

    /// Whether it was one.
    pub(super) fn forget_member(&mut self, id: &DeviceId) -> bool {
        let known = self.members.records.remove(id);
        self.members.offered.remove(id);
        if let Some(member) = &known {
            self.cut(client(id, &member.key.fingerprint()));
            let deleted = self.store.delete(Table::Members, id.as_str());
            self.stored(deleted);
        }
        known.is_some()
    }
}

/// The id that a device has as a client of the broker.
pub(super) fn client(id: &DeviceId, fingerprint: &str) -> String {
    format!("limpet/{id}/{fingerprint}")
}
