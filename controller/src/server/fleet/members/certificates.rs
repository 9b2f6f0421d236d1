//! Certificates of members: made when they ask, and offered over their connection in good time.

use limpet_controller_core::certificate;
use limpet_protocol::{Action, DeviceId, Digest, Membership, PublicKey};
use serde_bytes::ByteBuf;

use super::{Fleet, MemberError};
use crate::server::store::Table;

/// What a member has once it has taken a membership.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    /// When its certificate ends.
    until_ms: u64,
    /// The authorities that it believes.
    roots: Digest,
    /// Whose signature it believes.
    controller: PublicKey,
}

impl Fleet {
    /// Makes a certificate for a member that takes it at once, and believes this key.
    pub(super) fn certify(
        &mut self,
        id: &DeviceId,
        controller: PublicKey,
    ) -> Result<Membership, MemberError> {
        let (membership, taken) = self.membership(id, controller)?;
        self.taken(id, taken);
        Ok(membership)
    }

    /// A member's terms with a new certificate, and what it has with them.
    fn membership(
        &self,
        id: &DeviceId,
        controller: PublicKey,
    ) -> Result<(Membership, Taken), MemberError> {
        let terms = self.members.terms.as_ref().ok_or(MemberError::Insecure)?;
        let unknown = || MemberError::Unknown(id.clone());
        let member = self.members.records.get(id).ok_or_else(unknown)?;
        let lives_ms = terms.certificate_ms;
        let certificate = terms.authority.certify(id, &member.key, self.now_ms, lives_ms)?;
        let membership = Membership {
            controller,
            roots: terms.authority.roots(),
            certificates: vec![ByteBuf::from(certificate)],
            brokers: terms.brokers.clone(),
            servers: terms.servers.clone(),
            broker_roots: terms.broker_roots.clone(),
        };
        let until_ms = self.now_ms.saturating_add(lives_ms);
        Ok((membership, Taken { until_ms, roots: terms.authority.digest(), controller }))
    }

    fn taken(&mut self, id: &DeviceId, taken: Taken) {
        if let Some(member) = self.members.records.get_mut(id) {
            member.certified_until_ms = taken.until_ms;
            member.roots = Some(taken.roots);
            member.controller = Some(taken.controller);
            let put = self.store.put(Table::Members, id.as_str(), member);
            self.stored(put);
        }
    }

    /// Offers each member that is connected what it has not taken yet.
    pub(super) fn offer_to_all(&mut self) {
        let connected = self.devices.iter().filter(|(_, device)| device.link.is_some());
        let ids: Vec<DeviceId> = connected.map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.renew_certificate(&id);
        }
    }

    /// Offers a member another certificate over its connection where half of the present one's life
    /// is over, or where it does not believe the authorities or the signing key in force. Nothing is
    /// offered beside what was not answered yet, nor after what was refused on this connection.
    pub(in crate::server::fleet) fn renew_certificate(&mut self, id: &DeviceId) {
        let Some(terms) = &self.members.terms else { return };
        let Ok(Some(member)) = self.admitted(id) else { return };
        let until_ms = member.certified_until_ms;
        let is_due = certificate::is_due(self.now_ms, until_ms, terms.certificate_ms);
        let is_told = terms.authority.is_told(member.roots);
        if self.members.offered.contains_key(id) {
            return;
        }
        let (believed, present) = (self.signer(id).public(), self.keys.present().public());
        let rekeys = believed != present && self.may_rekey(id);
        if is_told && !is_due && !rekeys {
            return;
        }
        match self.membership(id, if rekeys { present } else { believed }) {
            Ok((membership, taken)) => {
                let number = self.command(id, Action::Membership(Box::new(membership)));
                let offer = number.map(|number| (number, taken));
                offer.map(|offer| self.members.offered.insert(id.clone(), offer));
            }
            Err(error) => log::error!("device {id}: {error}"),
        }
    }

    /// A member begins another connection: what it was offered before may have been lost.
    pub(in crate::server::fleet) fn offer_again(&mut self, id: &DeviceId) {
        self.members.offered.remove(id);
        self.renew_certificate(id);
    }

    /// A member has taken what it was offered, or says why not: then it is not asked again on this
    /// connection.
    pub(in crate::server::fleet) fn took_certificate(
        &mut self,
        id: &DeviceId,
        number: u64,
        error: Option<&str>,
    ) {
        let offer = self.members.offered.get(id).copied();
        let Some((_, taken)) = offer.filter(|(offered, _)| *offered == number) else { return };
        match error {
            None => {
                self.members.offered.remove(id);
                let before = self.signer(id).public();
                self.taken(id, taken);
                let link = self.devices.get_mut(id).and_then(|device| device.link.as_mut());
                if let Some(link) = link {
                    link.controller = Some(taken.controller);
                }
                if before != taken.controller {
                    self.retire_keys();
                    // What it holds is provable still, but not once this key is the one before.
                    self.publish_desired(id);
                }
                self.renew_certificate(id);
            }
            Some(why) => log::error!("device {id} does not take what it is offered: {why:.512}"),
        }
    }
}
