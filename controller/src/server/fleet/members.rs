//! Members of the fleet: devices that have joined, their keys, and whether they are let in.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use limpet_protocol::envelope;
use limpet_protocol::{Action, DeviceId, Join, Kind, Labels, Membership, PublicKey, TokenId};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::audit::Entry;
use super::caller::{Caller, Who};
use super::{Fleet, JoinRefusal};
use crate::server::authority::{Authority, AuthorityError};
use crate::server::store::{StoreError, Table};

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
}

/// Who may be a member, and what members are told.
pub(super) struct Members {
    pub(super) records: BTreeMap<DeviceId, Member>,
    /// The command that offers a new certificate, and when that ends.
    offered: BTreeMap<DeviceId, (u64, u64)>,
    /// None where anybody is let in, and trusted on first use (`--insecure`).
    terms: Option<Terms>,
}

/// What members are told.
pub(in crate::server) struct Terms {
    pub(in crate::server) authority: Authority,
    pub(in crate::server) brokers: Vec<String>,
    pub(in crate::server) servers: Vec<String>,
    /// How long a device's certificate is good.
    pub(in crate::server) certificate_ms: u64,
    /// How long after its end a device may still ask for another.
    pub(in crate::server) renew_expired_ms: u64,
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
        Self { records: BTreeMap::new(), offered: BTreeMap::new(), terms: None }
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
        let records = self.store.records::<Member>(Table::Members)?;
        let known = |(id, member): (String, _)| Some((id.parse().ok()?, member));
        self.members.records = records.into_iter().filter_map(known).collect();
        Ok(())
    }

    /// Makes a device a member: `signed` is its [`Join`].
    pub(in crate::server) fn join(
        &mut self,
        signed: &[u8],
        from: SocketAddr,
    ) -> Result<Membership, MemberError> {
        if self.members.terms.is_none() {
            return Err(MemberError::Insecure);
        }
        let (id, key, join) = self.request::<Join>(signed, Kind::Join)?;
        if let Err(why) = self.may_join(&id, &key) {
            // Who has no token is told nothing of ids, and may not try tokens here either.
            self.check_join_token(&join.token, &id, from)?;
            let by = Caller { who: Who::Device(id.clone()), from: Some(from) };
            let (object, outcome) = (format!("device/{id}"), format!("refused: {why}"));
            let entry = Entry { action: "device.join", object, outcome, ..Entry::default() };
            self.audit_refused(&by, join.token.id, entry);
            return Err(why);
        }
        let grant = self.use_join_token(&join.token, &id, from)?;
        let standing = match grant.require_approval {
            true => Standing::Waiting,
            false => Standing::Member,
        };
        let known = self.members.records.get(&id);
        let standing = known.map_or(standing, |known| known.standing);
        let member = Member {
            key,
            standing,
            labels: grant.labels,
            token: grant.token,
            joined_ms: self.now_ms,
            certified_until_ms: 0,
        };
        self.members.records.insert(id.clone(), member);
        if standing == Standing::Waiting {
            let said = "waits for `limpet device approve`".to_owned();
            self.note("device-waits", Some(&id), said);
        }
        self.certify(&id)
    }

    /// Gives a member another certificate: `signed` is its [`limpet_protocol::Renew`].
    pub(in crate::server) fn renew(
        &mut self,
        signed: &[u8],
        from: SocketAddr,
    ) -> Result<Membership, MemberError> {
        let (id, key, _) = self.request::<limpet_protocol::Renew>(signed, Kind::Renew)?;
        let late_ms = self.members.terms.as_ref().map_or(0, |terms| terms.renew_expired_ms);
        let renewed = match self.members.records.get(&id) {
            Some(member) if member.key != key => Err(MemberError::Unknown(id.clone())),
            None => Err(MemberError::Unknown(id.clone())),
            Some(Member { standing: Standing::Revoked, .. }) => {
                Err(MemberError::Revoked(id.clone()))
            }
            Some(member) if member.certified_until_ms.saturating_add(late_ms) < self.now_ms => {
                Err(MemberError::TooLate(id.clone()))
            }
            Some(_) => self.certify(&id),
        };
        let outcome = match &renewed {
            Ok(_) => "ok".to_owned(),
            Err(why) => format!("refused: {why}"),
        };
        let by = Caller { who: Who::Device(id.clone()), from: Some(from) };
        let object = format!("device/{id}");
        self.audit_stranger(
            &by,
            Entry { action: "device.renew", object, outcome, ..Entry::default() },
        );
        renewed
    }

    fn request<T: serde::de::DeserializeOwned>(
        &self,
        signed: &[u8],
        kind: Kind,
    ) -> Result<(DeviceId, PublicKey, T), MemberError> {
        let opened = envelope::open_first(signed, &self.prefix, kind)
            .map_err(|e| MemberError::Envelope(e.to_string()))?;
        let body = opened.read().map_err(|e| MemberError::Envelope(e.to_string()))?;
        Ok((opened.header.device, opened.signer, body))
    }

    fn may_join(&self, id: &DeviceId, key: &PublicKey) -> Result<(), MemberError> {
        let known = self.members.key(id).or(self.devices.get(id).map(|device| device.record.key));
        match (known, self.members.records.get(id)) {
            (Some(known), _) if known != *key => {
                Err(MemberError::Taken { id: id.clone(), known: known.fingerprint() })
            }
            (_, Some(Member { standing: Standing::Revoked, .. })) => {
                Err(MemberError::Revoked(id.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Makes a certificate for a member that takes it at once.
    fn certify(&mut self, id: &DeviceId) -> Result<Membership, MemberError> {
        let (membership, until_ms) = self.membership(id)?;
        self.certified(id, until_ms);
        Ok(membership)
    }

    /// A member's terms with a new certificate, and when that ends.
    fn membership(&self, id: &DeviceId) -> Result<(Membership, u64), MemberError> {
        let terms = self.members.terms.as_ref().ok_or(MemberError::Insecure)?;
        let unknown = || MemberError::Unknown(id.clone());
        let member = self.members.records.get(id).ok_or_else(unknown)?;
        let lives_ms = terms.certificate_ms;
        let certificate = terms.authority.certify(id, &member.key, self.now_ms, lives_ms)?;
        let membership = Membership {
            controller: self.key.public(),
            roots: vec![terms.authority.root()],
            certificates: vec![ByteBuf::from(certificate)],
            brokers: terms.brokers.clone(),
            servers: terms.servers.clone(),
        };
        Ok((membership, self.now_ms.saturating_add(lives_ms)))
    }

    /// A member has a certificate that ends then.
    fn certified(&mut self, id: &DeviceId, until_ms: u64) {
        if let Some(member) = self.members.records.get_mut(id) {
            member.certified_until_ms = until_ms;
            let put = self.store.put(Table::Members, id.as_str(), member);
            self.stored(put);
        }
    }

    /// The authority's certificates, in PEM; empty where there is none.
    pub(in crate::server) fn authorities(&self) -> String {
        self.members.terms.as_ref().map(|terms| terms.authority.pem()).unwrap_or_default()
    }

    /// Why a device is not let in by the broker, where it is not.
    pub(super) fn keeps_out(&self, id: &DeviceId, fingerprint: &str) -> Option<String> {
        self.members.terms.as_ref()?;
        match self.members.records.get(id) {
            None => Some(format!("device {id} has not joined this fleet")),
            Some(member) if member.key.fingerprint() != fingerprint => {
                Some(format!("device {id} comes with a certificate of another key"))
            }
            Some(member) => match member.standing {
                Standing::Member => None,
                Standing::Waiting => Some(format!("device {id} waits for `limpet device approve`")),
                Standing::Revoked => Some(format!("device {id} was revoked")),
            },
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
        let key = member.key;
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
            let client = format!("limpet/{id}/{}", key.fingerprint());
            self.outgoing_drop(client);
        }
        Ok(())
    }

    /// Renews certificates that have lived half their life, over the device's connection.
    pub(super) fn renew_certificate(&mut self, id: &DeviceId) {
        let Some(terms) = &self.members.terms else { return };
        let Some(member) = self.members.records.get(id) else { return };
        let left_ms = member.certified_until_ms.saturating_sub(self.now_ms);
        if left_ms > terms.certificate_ms / 2 {
            return;
        }
        match self.membership(id) {
            Ok((membership, until_ms)) => {
                let number = self.command(id, Action::Membership(Box::new(membership)));
                let offered = number.map(|number| (number, until_ms));
                offered.map(|offered| self.members.offered.insert(id.clone(), offered));
            }
            Err(error) => log::error!("device {id}: {error}"),
        }
    }

    /// A member has taken the certificate that it was offered, or says why not.
    pub(super) fn took_certificate(&mut self, id: &DeviceId, number: u64, error: Option<&str>) {
        match (self.members.offered.get(id).copied(), error) {
            (Some((offered, until_ms)), None) if offered == number => self.certified(id, until_ms),
            (Some((offered, _)), Some(why)) if offered == number => {
                log::error!("device {id} does not take its new certificate: {why:.512}");
            }
            _ => return,
        }
        self.members.offered.remove(id);
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
        let known = self.members.records.remove(id).is_some();
        if known {
            let deleted = self.store.delete(Table::Members, id.as_str());
            self.stored(deleted);
        }
        known
    }
}
