//! What devices ask over HTTPS: to join, and for another certificate.

use std::net::SocketAddr;

use limpet_controller_core::token::Ended;
use limpet_protocol::{DeviceId, Join, Kind, Membership, PublicKey, Renew, Token, envelope};
use serde::de::DeserializeOwned;

use super::super::audit::Entry;
use super::super::caller::{Caller, Who};
use super::{Fleet, Member, MemberError, Standing};

impl Fleet {
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
        if let Err(why) = self.may_join(&id, &key, join.controller) {
            // Who has no token is told nothing of ids, and may not try tokens here either.
            self.check_join_token(&join.token, &id, from)?;
            let by = Caller { who: Who::Device(id.clone()), from: Some(from) };
            let (object, outcome) = (format!("device/{id}"), format!("refused: {why}"));
            let entry = Entry { action: "device.join", object, outcome, ..Entry::default() };
            self.audit_refused(&by, join.token.id, entry);
            return Err(why);
        }
        // One that was a member before may believe a former key.
        let controller = join.controller.unwrap_or(self.keys.present().public());
        if self.has_joined_with(&id, &join.token) {
            return self.certify(&id, controller);
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
            roots: None,
            controller: None,
        };
        self.members.records.insert(id.clone(), member);
        if standing == Standing::Waiting {
            let said = "waits for `limpet device approve`".to_owned();
            self.note("device-waits", Some(&id), said);
        }
        self.certify(&id, controller)
    }

    /// Gives a member another certificate: `signed` is its [`Renew`].
    pub(in crate::server) fn renew(
        &mut self,
        signed: &[u8],
        from: SocketAddr,
    ) -> Result<Membership, MemberError> {
        let (id, key, Renew { controller }) = self.request::<Renew>(signed, Kind::Renew)?;
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
            Some(_) => self.certify(&id, self.heard_or_noted(&id, controller)),
        };
        let by = Caller { who: Who::Device(id.clone()), from: Some(from) };
        let (action, object) = ("device.renew", format!("device/{id}"));
        let entry = Entry { action, object, ..Entry::default() };
        self.audit_done(&by, entry, renewed.as_ref().err());
        renewed
    }

    fn request<T: DeserializeOwned>(
        &self,
        signed: &[u8],
        kind: Kind,
    ) -> Result<(DeviceId, PublicKey, T), MemberError> {
        let opened = envelope::open_first(signed, &self.prefix, kind)
            .map_err(|e| MemberError::Envelope(e.to_string()))?;
        let body = opened.read().map_err(|e| MemberError::Envelope(e.to_string()))?;
        Ok((opened.header.device, opened.signer, body))
    }

    /// Whether a device, which may join, is a member by this very token: the answer was lost on its way,
    /// and the token may be used up by that, or its time be over since.
    fn has_joined_with(&self, id: &DeviceId, token: &Token) -> bool {
        let ended = self.tokens.genuine(token).map(|record| record.ended(self.now_ms));
        let member = self.members.records.get(id);
        matches!(ended, Some(None | Some(Ended::UsedUp | Ended::Expired(_))))
            && member.is_some_and(|member| {
                member.token == token.id && member.certified_until_ms > self.now_ms
            })
    }

    fn may_join(
        &self,
        id: &DeviceId,
        key: &PublicKey,
        believed: Option<PublicKey>,
    ) -> Result<(), MemberError> {
        let known = self.members.key(id).or(self.devices.get(id).map(|device| device.record.key));
        let stranger = believed.filter(|believed| self.keys.signing(believed).is_none());
        match (known, self.members.records.get(id), stranger) {
            (Some(known), ..) if known != *key => {
                Err(MemberError::Taken { id: id.clone(), known: known.fingerprint() })
            }
            (_, Some(Member { standing: Standing::Revoked, .. }), _) => {
                Err(MemberError::Revoked(id.clone()))
            }
            (.., Some(stranger)) => Err(MemberError::Believes(stranger.fingerprint())),
            (.., None) => Ok(()),
        }
    }
}
